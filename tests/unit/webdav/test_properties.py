from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.webdav.properties import etag_of, exact_time, flag_of, http_date, iso_date, size_of, time_of

NS = 10**9


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (" 42 ", 42),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("-1", None),
        ("1e3", None),
        ("0x10", None),
        ("\u0663", None),
        ("9" * 5000, None),
        ("", None),
        (None, None),
    ],
)
def test_sizes(text: str | None, size: int | None) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000),
        ("2023-11-14T22:13:20", 1_700_000_000),
        ("1960-01-01T00:00:00Z", -315_619_200),
        ("9999-12-31T23:59:59Z", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Tue, 99 Nov 2023 22:13:20 GMT", None),
        ("yesterday", None),
        ("", None),
        ("1" * 100_000, None),
        (None, None),
    ],
)
def test_times_in_either_form(text: str | None, seconds: int | None) -> None:
    assert time_of(text) == (None if seconds is None else seconds * NS)


@given(st.text(max_size=40))
def test_no_text_breaks_a_value(text: str) -> None:
    for value in (size_of(text), time_of(text), exact_time(text, 0)):
        assert value is None or -(2**63) <= value < 2**63
    assert flag_of(text) in (None, True, False)
    etag = etag_of(text)
    assert etag is None or (etag.isprintable() and etag.endswith('"'))


@given(st.integers(-(2**33), 2**33), st.integers(0, NS - 1))
def test_dates_read_what_they_wrote(seconds: int, fraction: int) -> None:
    if seconds > -62_135_596_800 // 8:
        assert time_of(iso_date(seconds * NS + fraction)) == seconds * NS + fraction // 1000 * 1000
    if seconds >= 0 and datetime.datetime.fromtimestamp(seconds, datetime.UTC).year < 2200:
        assert time_of(http_date(seconds * NS + fraction)) == seconds * NS


def test_the_etag_tells_the_fraction_of_a_second() -> None:
    assert exact_time('"1700000000:123456:123456789"', 1_700_000_000 * NS) == 1_700_000_000_123_456_789
    assert exact_time('"1700000000:123456"', 1_700_000_000 * NS) == 1_700_000_000_123_456_000
    assert exact_time('"1700000001:5"', 1_700_000_000 * NS) == 1_700_000_000 * NS
    assert exact_time('"17979cfe362a0015-5-1f"', 1_700_000_000 * NS) == 0x17979CFE362A0015
    assert exact_time('"x"', 7) == 7
    assert exact_time(None, 7) == 7
    assert exact_time('"1:2:3"', None) is None


@pytest.mark.parametrize(
    ("text", "etag"),
    [
        ('"abc"', '"abc"'),
        (' W/"abc" ', 'W/"abc"'),
        ("abc", '"abc"'),
        ('"a"b"', None),
        ("W/abc", None),
        ('"a\nb"', None),
        ('"\u00e9"', None),
        ('"' + "x" * 300 + '"', None),
        ("", None),
    ],
)
def test_etags(text: str, etag: str | None) -> None:
    assert etag_of(text) == etag
