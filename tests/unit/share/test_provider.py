"""What is listed, with which properties, and what is never served."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from lxml import etree

from tests.support.dav import APACHE, Dav, multistatus, shared


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "share"
    root.mkdir()
    return root


@pytest.fixture
def dav(root: Path) -> Iterator[Dav]:
    with shared(root) as dav:
        yield dav


def propfind(*names: str) -> bytes:
    element = etree.Element("{DAV:}propfind")
    prop = etree.SubElement(element, "{DAV:}prop")
    for name in names:
        etree.SubElement(prop, name)
    return etree.tostring(element)


# --- properties ---------------------------------------------------------


def test_properties_of_files_and_folders(root: Path, dav: Dav) -> None:
    (root / "file.txt").write_bytes(b"hello")
    os.utime(root / "file.txt", ns=(0, 1_700_000_000_123_456_789))
    (root / "run").write_bytes(b"")
    (root / "run").chmod(0o755)
    (root / "folder").mkdir()
    listing = dav.list("/")
    assert set(listing) == {b"/", b"/file.txt", b"/run", b"/folder/"}
    file = listing[b"/file.txt"]
    assert file["getcontentlength"] == "5"
    assert file["resourcetype"] == ""
    assert file["displayname"] == "file.txt"
    assert parsedate_to_datetime(file["getlastmodified"]).timestamp() == 1_700_000_000
    assert re.fullmatch(r'"[0-9a-f]+-5-[0-9a-f]+"', file["getetag"])
    assert (file["executable"], listing[b"/run"]["executable"]) == ("F", "T")
    assert listing[b"/run"]["getcontentlength"] == "0"
    folder = listing[b"/folder/"]
    assert folder["resourcetype"] == "collection"
    assert not {"getcontentlength", "executable"} & folder.keys()


def test_the_etag_changes_with_the_content_within_a_second(root: Path, dav: Dav) -> None:
    tags = set()
    for i in range(20):
        assert dav.put("/f", b"%02d" % i) in (201, 204)  # same name, same size
        head = dav("HEAD", "/f").headers["etag"]
        assert head == dav.list("/f", "0")[b"/f"]["getetag"]
        tags.add(head)
    assert len(tags) == 20
    (root / "f").write_bytes(b"in place")
    assert dav("HEAD", "/f").headers["etag"] not in tags


def test_the_etag_stays_with_the_content_over_a_rename(dav: Dav) -> None:
    assert dav.put("/a", b"x") == 201
    tag = dav("HEAD", "/a").headers["etag"]
    assert dav.move("/a", "/b") == 201
    assert dav("HEAD", "/b").headers["etag"] == tag


def test_quota_is_told_when_asked_by_name(root: Path, dav: Dav) -> None:
    asked = propfind("{DAV:}quota-available-bytes", "{DAV:}quota-used-bytes")
    props = multistatus(dav("PROPFIND", "/", asked, Depth="0").body)[b"/"]
    fs = os.statvfs(root)
    assert abs(int(props["quota-available-bytes"]) - fs.f_bavail * fs.f_frsize) < 1 << 30
    assert int(props["quota-used-bytes"]) > 0
    everything = multistatus(dav("PROPFIND", "/", Depth="0").body)[b"/"]
    assert "getlastmodified" in everything
    assert not any(name.startswith("quota") for name in everything)


def test_an_unknown_property_is_404_and_the_others_are_not(root: Path, dav: Dav) -> None:
    (root / "f").write_text("x")
    got = dav("PROPFIND", "/f", propfind("{x}none", "{DAV:}getcontentlength"), Depth="0")
    assert multistatus(got.body)[b"/f"] == {"getcontentlength": "1"}
    assert b"HTTP/1.1 404" in got.body


@pytest.mark.parametrize(("value", "mode"), [("T", 0o751), ("F", 0o640)])
def test_executable_is_set_where_reading_is(root: Path, dav: Dav, value: str, mode: int) -> None:
    (root / "f").write_text("x")
    (root / "f").chmod(0o641 if value == "T" else 0o750)
    assert dav.proppatch("/f", f"{APACHE}executable", value) == 200
    assert (root / "f").stat().st_mode & 0o777 == mode
    assert dav.list("/f", "0")[b"/f"]["executable"] == value


@pytest.mark.parametrize(
    ("text", "mtime"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("2023-11-14T23:13:20.123456789+01:00", 1_700_000_000_123_456_789),
        ("1969-12-31T23:59:58.5Z", -1_500_000_000),
        ("1969-12-31T23:59:59Z", -1_000_000_000),
    ],
)
def test_the_modification_time_is_set(root: Path, dav: Dav, text: str, mtime: int) -> None:
    (root / "f").write_text("x")
    (root / "d").mkdir()
    for name in ("f", "d"):
        assert dav.proppatch(f"/{name}", "{DAV:}getlastmodified", text) == 200
        assert (root / name).stat().st_mtime_ns == mtime


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("{DAV:}getlastmodified", "yesterday", 409),
        ("{DAV:}getlastmodified", "", 409),
        ("{DAV:}getlastmodified", "9999-99-99T99:99:99Z", 409),
        (f"{APACHE}executable", "yes", 409),
        ("{DAV:}getetag", "x", 403),
        ("{DAV:}displayname", "x", 403),
        ("{x}dead", "x", 403),
    ],
)
def test_what_cannot_be_set_says_so(root: Path, dav: Dav, name: str, value: str, status: int) -> None:
    (root / "f").write_text("x")
    before = (root / "f").stat()
    assert dav.proppatch("/f", name, value) == status
    assert (root / "f").stat().st_mtime_ns == before.st_mtime_ns
    assert (root / "f").stat().st_mode == before.st_mode


# --- depth and size -----------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Depth": "infinity"}])
def test_a_whole_tree_is_not_listed_at_once(dav: Dav, headers: dict[str, str]) -> None:
    got = dav.send("PROPFIND", "/", headers)
    assert got.status == 403
    assert b"propfind-finite-depth" in got.body


def test_5000_files_are_listed_fast(root: Path, dav: Dav) -> None:
    for i in range(5000):
        (root / f"file-{i:04}").touch()
    started = time.monotonic()
    listing = dav.list("/")
    assert len(listing) == 5001
    assert time.monotonic() - started < 5  # 0.3 s on an idle machine


def test_what_is_not_there(root: Path, dav: Dav) -> None:
    (root / "f").write_text("x")
    for path in ("/none", "/none/below", "/f/below"):
        assert dav("PROPFIND", path, Depth="0").status == 404
        assert dav("GET", path).status == 404
        assert dav("DELETE", path).status == 404


# --- what is never served -----------------------------------------------


def test_links_out_of_the_share_are_neither_shown_nor_followed(root: Path, dav: Dav) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "dir").symlink_to(outside)
    (root / "relative").symlink_to("../outside/secret")
    (root / "to-link").symlink_to("dir")
    (root / "root").symlink_to("/")
    (root / "gone").symlink_to("nowhere")
    assert dav.names("/") == set()
    for path in ("/dir", "/dir/secret", "/relative", "/to-link/secret", "/root/etc/passwd"):
        assert dav("GET", path).status == 403
        assert dav("PROPFIND", path, Depth="1").status == 403
        assert dav.put(path, b"x") == 403
    assert dav("MKCOL", "/dir/new").status == 403
    (root / "f").write_text("x")
    for method in ("COPY", "MOVE"):
        assert dav.move("/f", "/dir/stolen", method) == 403
        assert dav.move("/dir/secret", "/copy", method) == 403
    assert dav.proppatch("/f", f"{APACHE}executable", "T") == 200
    assert {path.name for path in outside.iterdir()} == {"secret"}
    assert (outside / "secret").read_text() == "secret"


def test_links_within_the_share_are_followed(root: Path, dav: Dav) -> None:
    (root / "real").mkdir()
    (root / "real" / "f").write_text("x")
    (root / "dir").symlink_to("real")
    (root / "link").symlink_to("real/f")
    assert dav.names("/") == {b"real", b"dir", b"link"}
    assert dav.get("/dir/f") == b"x"
    assert dav.put("/link", b"through the link") == 204
    assert (root / "link").is_symlink()
    assert dav.get("/real/f") == b"through the link"
    assert dav("DELETE", "/link").status == 204
    assert dav("DELETE", "/dir").status == 204
    assert (root / "real" / "f").exists()


def test_a_link_upwards_is_not_listed(root: Path, dav: Dav) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "up").symlink_to("..")
    (root / "a" / "b" / "self").symlink_to(".")
    assert dav.names("/a/b") == set()


def test_neither_devices_nor_pipes_nor_sockets(root: Path, dav: Dav) -> None:
    os.mkfifo(root / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "socket"))
    assert dav.names("/") == set()
    for path in ("/pipe", "/socket"):
        assert dav("GET", path).status == 403  # and does not wait for a writer
        assert dav.put(path, b"x") == 403
    listener.close()


def test_a_member_that_cannot_be_looked_at_does_not_break_the_listing(
    root: Path, dav: Dav, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "good").write_text("x")
    (root / "link").symlink_to("good")

    def failing(path: str) -> str:
        raise OSError("no")

    monkeypatch.setattr(
        "hvbridge.share.provider.os.path.realpath",
        lambda path: failing(path) if path.endswith("link") else path,
    )
    assert dav.names("/") == {b"good"}


def test_a_folder_has_no_content(dav: Dav) -> None:
    assert dav("GET", "/").status == 403
    assert b"<html" not in dav("GET", "/").body


# --- read-only ----------------------------------------------------------


def test_read_only_refuses_every_write(root: Path) -> None:
    (root / "f").write_text("x")
    (root / "d").mkdir()
    with shared(root, read_only=True) as dav:
        assert dav.put("/f", b"y") == 403
        assert dav.put("/new", b"y") == 403
        assert dav("DELETE", "/f").status == 403
        assert dav("MKCOL", "/new").status == 403
        assert dav.move("/f", "/g") == 403
        assert dav.move("/f", "/g", "COPY") == 403
        assert dav("PROPPATCH", "/f", b"<x/>").status == 403
        assert dav("LOCK", "/f", b"<x/>").status == 403
        assert dav.get("/f") == b"x"
        assert dav.names("/") == {b"f", b"d"}
        assert dav("OPTIONS", "/f").headers["allow"] == "OPTIONS, HEAD, GET, PROPFIND"
    assert (root / "f").read_text() == "x"
    assert {path.name for path in root.iterdir()} == {"f", "d"}
