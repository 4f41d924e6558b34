from __future__ import annotations

import contextlib
import dataclasses
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.config import Limits
from hvbridge.errors import FsError, IOFailed, TooLarge
from hvbridge.webdav.multistatus import MAX_PROPERTIES, MAX_TEXT, MultistatusParser, RawResponse, status_of
from tests.support.scripted_webdav import entry, multistatus

LIMITS = Limits()

# XML 1.0's own characters; a bare carriage return would be read as a newline (§2.11).
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r"), max_size=30)
raw_responses = st.builds(
    RawResponse,
    href=text,
    collection=st.booleans(),
    properties=st.dictionaries(
        st.sampled_from(["{DAV:}displayname", "{DAV:}getetag", "{urn:x}odd"]), text, max_size=3
    ),
    failed=st.dictionaries(st.sampled_from(["{DAV:}a", "{urn:x}b"]), st.integers(400, 599), max_size=2),
)


def parse(
    data: bytes, cuts: list[int] | None = None, *, mend: bool = False, limits: Limits = LIMITS
) -> list[RawResponse]:
    parser = MultistatusParser(limits, mend_ampersands=mend)
    found: list[RawResponse] = []
    at = 0
    for cut in sorted({min(cut, len(data)) for cut in cuts or []} | {len(data)}):
        found += parser.feed(data[at:cut])
        at = cut
    return found + parser.close()


def written(response: RawResponse) -> str:
    def element(tag: str, content: str) -> str:
        namespace, _, name = tag[1:].partition("}")
        return f'<x:{name} xmlns:x="{namespace}">{content}</x:{name}>'

    kind = "<D:resourcetype>" + ("<D:collection/>" if response.collection else "") + "</D:resourcetype>"
    good = kind + "".join(element(tag, escape(value)) for tag, value in response.properties.items())
    bad = "".join(
        f"<D:propstat><D:prop>{element(tag, '')}</D:prop>"
        f"<D:status>HTTP/1.1 {status} No</D:status></D:propstat>"
        for tag, status in response.failed.items()
    )
    return (
        f"<D:response><D:href>{escape(response.href)}</D:href><D:propstat><D:prop>{good}</D:prop>"
        f"<D:status>HTTP/1.1 200 OK</D:status></D:propstat>{bad}</D:response>"
    )


def document(responses: list[RawResponse]) -> bytes:
    return multistatus(*map(written, responses))


def plain(response: RawResponse) -> RawResponse:
    properties = {k: v for k, v in response.properties.items() if k != "{DAV:}resourcetype"}
    return dataclasses.replace(response, properties=properties)


@given(st.lists(raw_responses, max_size=4), st.lists(st.integers(0, 3000), max_size=6), st.booleans())
def test_what_is_written_is_read_however_it_is_cut(
    responses: list[RawResponse], cuts: list[int], mend: bool
) -> None:
    found = parse(document(responses), cuts, mend=mend)
    assert [plain(response) for response in found] == responses
    assert all("{DAV:}resourcetype" in response.properties for response in found)


@given(st.lists(raw_responses, max_size=3), st.integers(0, 3000))
def test_a_cut_answer_is_never_a_short_listing(responses: list[RawResponse], at: int) -> None:
    whole = document(responses)
    with pytest.raises(IOFailed):
        parse(whole[: min(at, len(whole) - 1)])


@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_an_error(data: bytes, mend: bool) -> None:
    with pytest.raises(FsError):
        parse(data, [5, 20], mend=mend)


@given(
    st.lists(raw_responses, min_size=1, max_size=3), st.integers(0, 2000), st.binary(min_size=1, max_size=8)
)
def test_damage_is_an_error_or_a_listing_never_a_crash(
    responses: list[RawResponse], at: int, damage: bytes
) -> None:
    whole = bytearray(document(responses))
    at = min(at, len(whole))
    whole[at : at + len(damage)] = damage
    with contextlib.suppress(FsError):
        assert len(parse(bytes(whole), mend=True)) <= len(responses) + 1


def test_phodavs_bare_ampersands() -> None:
    body = multistatus(
        entry("http://x/R&D/in&amp;side", 1), entry("http://x/a&b;c", 2), entry("http://x/R&D/last", 3)
    )
    assert [response.href for response in parse(body, mend=True)] == [
        "http://x/R&D/in&side",
        "http://x/a&b;c",
        "http://x/R&D/last",
    ]
    with pytest.raises(IOFailed):
        parse(body)


@pytest.mark.parametrize("name", ["a\x01b", "\x1f", "\ufffe", "\uffff", "\x00x"])
def test_characters_that_xml_cannot_carry(name: str) -> None:
    body = multistatus(entry(f"/{name}", 1, f"<D:displayname>{name}</D:displayname>"), entry("/other", 2))
    first, second = parse(body)
    assert (first.href, first.properties["{DAV:}displayname"]) == (f"/{name}", name)
    assert second.href == "/other"


def test_bytes_that_are_not_utf8_become_replacement_characters() -> None:
    body = multistatus(entry("/XX", 1), entry("/good", 2)).replace(b"XX", b"\xff\xfe")
    assert [response.href for response in parse(body)] == ["/\ufffd\ufffd", "/good"]


@pytest.mark.parametrize(
    "head",
    [
        b'<!DOCTYPE multistatus [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>',
        b'<!DOCTYPE multistatus SYSTEM "file:///etc/passwd">',
        b'<?xml version="1.0"?>\n<!DOCTYPE x>',
    ],
)
def test_a_doctype_is_refused(head: bytes) -> None:
    body = head + multistatus(entry("/x", 1))
    for cuts in ([], list(range(len(body)))):
        with pytest.raises(IOFailed, match="DOCTYPE"):
            parse(body, cuts)


def test_an_entity_is_refused_without_a_doctype() -> None:
    with pytest.raises(IOFailed):
        parse(multistatus(entry("/&xxe;", 1)))


def test_other_encodings_are_not_obeyed() -> None:
    body = '<?xml version="1.0" encoding="utf-16"?>'.encode("utf-16") + multistatus()
    with pytest.raises(IOFailed):
        parse(body)


def test_limits() -> None:
    few = dataclasses.replace(LIMITS, listing_entries=3, listing_bytes=2000, xml_depth=8)
    assert len(parse(multistatus(*[entry("/x", 1)] * 3), limits=few)) == 3
    with pytest.raises(TooLarge, match="entries"):
        parse(multistatus(*[entry("/x", 1)] * 4), limits=few)
    with pytest.raises(TooLarge, match="bytes"):
        parse(b" " * 2001, limits=few)
    with pytest.raises(IOFailed, match="nests"):
        parse(b'<D:multistatus xmlns:D="DAV:">' + b"<a>" * 8, limits=few)
    with pytest.raises(IOFailed, match="text"):
        parse(multistatus(entry("/" + "x" * MAX_TEXT, 1)))
    with pytest.raises(IOFailed, match="text"):
        parse(multistatus(entry("/" + "x>" * MAX_TEXT, 1)))
    many = "".join(f"<D:p{i}/>" for i in range(MAX_PROPERTIES))
    with pytest.raises(IOFailed, match="properties"):
        parse(multistatus(entry("/x", 1, many)))


@pytest.mark.parametrize("body", [b"", b"<html></html>", b"<multistatus/>", b'{"json": 1}', b"<a:b/>"])
def test_what_is_no_multistatus(body: bytes) -> None:
    with pytest.raises(IOFailed):
        parse(body)


def test_elements_elsewhere_say_nothing() -> None:
    body = multistatus(
        "<D:href>/not-in-a-response</D:href><D:sync-token>1</D:sync-token>",
        "<D:response><D:href>/a</D:href><D:x><D:prop><D:displayname>no</D:displayname></D:prop></D:x>"
        "<D:status>HTTP/1.1 423 Locked</D:status></D:response>",
        "<D:wrapped><D:response><D:href>/deep</D:href></D:response></D:wrapped>",
    )
    assert parse(body) == [RawResponse(href="/a", status=423)]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("HTTP/1.1 200 OK", 200),
        (" HTTP/1.1 404 ", 404),
        ("HTTP/2 507", 507),
        ("200", None),
        ("HTTP/1.1 2000", None),
    ],
)
def test_status_lines(line: str, status: int | None) -> None:
    assert status_of(line) == status
