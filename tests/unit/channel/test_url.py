"""Channel URLs: every form, every refusal, and there and back again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.channel.url import (
    ChannelURL,
    ChardevURL,
    FdURL,
    HttpURL,
    SpiceListenURL,
    StdioURL,
    TcpListenURL,
    TcpURL,
    UnixListenURL,
    UnixURL,
    parse,
)
from hvbridge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("unix:///run/x.sock", UnixURL(Path("/run/x.sock"))),
        ("unix:/run/x.sock", UnixURL(Path("/run/x.sock"))),
        ("unix:///run/a%20b%3Fc%23d", UnixURL(Path("/run/a b?c#d"))),
        ("unix:///run/Grüße", UnixURL(Path("/run/Grüße"))),
        ("unix-listen:///run/x", UnixListenURL(Path("/run/x"), 0o600)),
        ("unix-listen:///run/x?mode=0660", UnixListenURL(Path("/run/x"), 0o660)),
        ("unix-listen:///run/x?mode=777", UnixListenURL(Path("/run/x"), 0o777)),
        ("tcp://host.example:5000", TcpURL("host.example", 5000)),
        ("tcp://127.0.0.1:5000/", TcpURL("127.0.0.1", 5000)),
        ("tcp://[::1]:5000", TcpURL("::1", 5000)),
        ("tcp://[fe80::1%25eth0]:5000", TcpURL("fe80::1%eth0", 5000)),
        ("tcp-listen://127.0.0.1:0", TcpListenURL("127.0.0.1", 0)),
        ("tcp-listen://[::]:7", TcpListenURL("::", 7)),
        ("spice-listen://0.0.0.0:5900", SpiceListenURL("0.0.0.0", 5900)),
        (
            "spice-listen://h:5900?tls-cert=/c.pem&tls-key=/k%26.pem&password-file=/p",
            SpiceListenURL("h", 5900, Path("/c.pem"), Path("/k&.pem"), Path("/p")),
        ),
        ("chardev:///dev/pts/3", ChardevURL(Path("/dev/pts/3"))),
        ("stdio:", StdioURL()),
        ("fd:7", FdURL(7)),
        ("http://localhost:8080/dav/", HttpURL("http", "localhost", 8080, "/dav/")),
        ("https://h", HttpURL("https", "h", 443)),
        ("http://h", HttpURL("http", "h", 80, "/")),
        ("http://ann%40x@h:1/a%20b?password-file=/p", HttpURL("http", "h", 1, "/a%20b", "ann@x", Path("/p"))),
    ],
)
def test_forms(text: str, value: ChannelURL) -> None:
    assert parse(text) == value
    assert parse(str(value)) == value


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("", "unix:///path"),
        ("nonsense", "spice-listen://host:port"),
        ("/run/x.sock", "unix:///path"),
        ("UNIX:///x", "unix:///path"),
        ("unix:run/x", "unix:///absolute/path"),
        ("unix://run/x", "unix:///absolute/path"),
        ("unix:///run/", "name the file itself"),
        ("unix:///run/x?mode=0660", "unknown option 'mode'"),
        ("unix:///" + "x" * 107, "107 bytes"),
        ("unix:///a%00b", "NUL"),
        ("unix:///a%FFb", "UTF-8"),
        ("unix:///a#b", "%23"),
        ("unix-listen:///x?mode=rw", "three octal digits"),
        ("unix-listen:///x?mode=4755", "three octal digits"),
        ("unix-listen:///x?mode=0600&mode=0660", "twice"),
        ("unix-listen:///x?mode", "mode=…"),
        ("unix-listen:///x?mode=", "mode=…"),
        ("tcp:host:5", "tcp://host:port"),
        ("tcp://host", "port"),
        ("tcp://host:", "port"),
        ("tcp://host:abc", "port"),
        ("tcp://host:-1", "port"),
        ("tcp://host:65536", "65535"),
        ("tcp://host:٥", "port"),
        ("tcp://host:0", "port 0"),
        ("tcp://:5000", "127.0.0.1"),
        ("tcp-listen://:5000", "127.0.0.1"),
        ("tcp://::1:5000", "brackets"),
        ("tcp://[::zz]:5000", "not an IPv6 address"),
        ("tcp://a b:5000", "no host name"),
        ("tcp://-h:5000", "no host name"),
        ("tcp://h:1/path", "no port"),
        ("tcp://h:1?x=y", "unknown option 'x'"),
        ("tcp-listen://h:1?tls-cert=/c&tls-key=/k", "spice-listen"),
        ("spice-listen://h:1?tls-cert=/c", "belong together"),
        ("spice-listen://h:1?tls-cert=c&tls-key=k", "absolute"),
        ("spice-listen://h:1?password-file=secret", "absolute"),
        ("chardev:pts/3", "chardev:///absolute/path"),
        ("stdio:x", "stdio:"),
        ("stdio:?x=1", "unknown option"),
        ("fd:", "fd:3"),
        ("fd:-1", "fd:3"),
        ("fd:x", "fd:3"),
        ("http:/h", "http://host:port/path"),
        ("http://h:0/", "port 0"),
        ("http://h/a b", "%20"),
        ("http://h/%zz", "percent-encode"),
        ("http://h/?x=1", "unknown option"),
        ("http://@h/", "user"),
        ("http://h/?password-file=/p", "user@"),
    ],
)
def test_refusals_name_the_mend(text: str, mend: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert mend in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "spice-listen://h:1?password=s3cret",
        "http://ann:s3cret@h/",
        "http://ann@h/?password=s3cret",
        "ftp://ann:s3cret@h/",
        "ftp://h/?password=s3cret",
    ],
)
def test_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "s3cret" not in str(caught.value)
    if not text.startswith("ftp"):
        assert "password-file" in str(caught.value)


def test_only_http_is_plain() -> None:
    plain = [text for text in ("http://h/", "https://h/", "stdio:", "unix:///x") if parse(text).is_plain]
    assert plain == ["http://h/", "https://h/"]


def test_the_base_of_http_has_neither_user_nor_options() -> None:
    url = parse("http://ann@[::1]:8/dav/?password-file=/p")
    assert isinstance(url, HttpURL)
    assert url.base == "http://[::1]:8/dav/"


paths = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
    .map(lambda name: Path("/" + name.lstrip("/") + "x"))
    .filter(lambda path: len(bytes(path)) <= 107)
)
ports = st.integers(1, 65535)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){0,3}", fullmatch=True),
    st.ip_addresses(v=6).map(str),
)
users = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
urls: st.SearchStrategy[ChannelURL] = st.one_of(
    st.builds(UnixURL, paths),
    st.builds(UnixListenURL, paths, st.integers(0, 0o777)),
    st.builds(ChardevURL, paths),
    st.builds(TcpURL, hosts, ports),
    st.builds(TcpListenURL, hosts, st.integers(0, 65535)),
    st.builds(SpiceListenURL, hosts, ports, paths, paths, st.none() | paths),
    st.builds(FdURL, st.integers(0, 9999)),
    st.builds(HttpURL, st.sampled_from(["http", "https"]), hosts, ports, st.just("/a%20b/"), users),
)


@given(urls)
def test_there_and_back(url: ChannelURL) -> None:
    assert parse(str(url)) == url


@given(
    st.text(max_size=40)
    | st.sampled_from(["unix", "tcp", "http", "fd"]).flatmap(
        lambda scheme: st.text(max_size=30).map(lambda rest: f"{scheme}://{rest}")
    )
)
def test_any_text_is_a_url_or_a_usage_error(text: str) -> None:
    try:
        url = parse(text)
    except UsageError:
        return
    assert parse(str(url)) == url
