"""PUT, COPY, MOVE, DELETE, GET: whole or not at all, and nothing lost on the way."""

from __future__ import annotations

import contextlib
import http.client
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvbridge.errors import ChannelClosed
from hvbridge.share.requests import BLOCK
from tests.support.dav import Dav, T, answer, href, request, shared
from tests.support.pipes import eventually

LOCK = (
    b"""<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>"""
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "share"
    root.mkdir()
    return root


@pytest.fixture
def dav(root: Path) -> Iterator[Dav]:
    with shared(root) as dav:
        yield dav


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is below, hidden names included; ``None`` for folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


# --- PUT ----------------------------------------------------------------


def test_put_creates_and_replaces_and_tells_the_etag(root: Path, dav: Dav) -> None:
    body = os.urandom(3 << 20)
    got = dav("PUT", "/f", body)
    assert got.status == 201
    assert (root / "f").read_bytes() == body
    assert got.headers["etag"] == dav("HEAD", "/f").headers["etag"]
    got = dav("PUT", "/f", b"")
    assert (got.status, (root / "f").read_bytes()) == (204, b"")
    assert tree(root) == {"f": b""}


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(root: Path, dav: Dav) -> None:
    old = os.umask(0o022)
    try:
        assert dav.put("/new", b"x") == 201
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / "new").stat().st_mode) == 0o644
    (root / "old").write_text("x")
    (root / "old").chmod(0o750)
    assert dav.put("/old", b"y") == 204
    assert stat.S_IMODE((root / "old").stat().st_mode) == 0o750


def test_no_set_uid_for_content_from_the_channel(root: Path, dav: Dav) -> None:
    (root / "f").write_text("x")
    (root / "f").chmod(0o4755)
    assert dav.put("/f", b"y") == 204
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o755


def test_a_reader_of_the_old_content_keeps_it(root: Path, dav: Dav) -> None:
    (root / "f").write_bytes(b"old")
    with (root / "f").open("rb") as reader:
        assert dav.put("/f", b"new") == 204
        assert reader.read() == b"old"


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("sent", [0, 1, 65_535, 200_000, 999_999])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_cut_upload_leaves_everything_as_it_was(
    root: Path, dav: Dav, existed: bool, sent: int, chunked: bool
) -> None:
    if existed:
        (root / "f").write_bytes(b"old")
        (root / "f").chmod(0o751)
    before = (root / "f").stat() if existed else None
    stream = dav.session.open_stream()
    headers = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": "1000000"}
    body = b"f4240\r\n" + bytes(sent) if chunked else bytes(sent)
    stream.write(request("PUT", "/f", body, **headers))
    stream.close()
    eventually(lambda: dav.session.open_streams == 0)
    assert dav("PROPFIND", "/", Depth="0").status == 207  # the share goes on
    eventually(lambda: not open_in(root))
    assert tree(root) == ({"f": b"old"} if existed else {})
    if before is not None:
        now = (root / "f").stat()
        assert (now.st_ino, now.st_mode, now.st_mtime_ns) == (
            before.st_ino,
            before.st_mode,
            before.st_mtime_ns,
        )


def test_the_end_of_the_channel_leaves_no_half_file(root: Path) -> None:
    with shared(root) as dav:
        stream = dav.session.open_stream()
        stream.write(request("PUT", "/f", bytes(500_000), Content_Length="1000000"))
        eventually(lambda: open_in(root) != [])
    assert not open_in(root)
    assert tree(root) == {}


def open_in(folder: Path) -> list[str]:
    """Files in ``folder`` that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            target = str(link.readlink())
            if target.startswith(f"{folder}/"):
                found.append(target)
    return found


def test_a_chunked_body_arrives_whole(root: Path, dav: Dav) -> None:
    body = b"5\r\nhello\r\n" + b"186A0\r\n" + b"x" * 100_000 + b"\r\n0\r\n\r\n"
    assert dav.put("/f", body, Transfer_Encoding="chunked") == 201
    assert (root / "f").read_bytes() == b"hello" + b"x" * 100_000


def test_without_unnamed_files_a_hidden_one_does(
    root: Path, dav: Dav, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filesystems without O_TMPFILE, such as many network ones."""
    opened = os.open

    def no_tmpfile(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return opened(path, flags, mode)

    monkeypatch.setattr("hvbridge.share.placing.os.open", no_tmpfile)
    stream = dav.session.open_stream()
    stream.write(request("PUT", "/f", bytes(BLOCK), Content_Length=str(2 * BLOCK)))
    eventually(lambda: list(tree(root).values()) == [bytes(BLOCK)])
    assert dav.names("/") == set()
    stream.close()
    eventually(lambda: not any(root.iterdir()))
    assert dav.put("/f", b"whole") == 201
    assert tree(root) == {"f": b"whole"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/folder", {}, 405),
        ("/new/", {}, 405),
        ("/none/f", {}, 409),
        ("/file/f", {}, 409),
        ("/file", {"Content_Range": "bytes 0-1/2"}, 400),
        ("/file", {"Content_Encoding": "gzip"}, 501),
        ("/file", {"If_Match": '"other"'}, 412),
        ("/new", {"If_Match": "*"}, 412),
        ("/file", {"If_None_Match": "*"}, 412),
        ("/file", {"If": '(["other"])'}, 412),
        ("/new", {"If": '(["other"])'}, 412),
        ("/file", {"Content_Length": "many"}, 400),
        ("/file", {"Content_Length": "-1"}, 400),
    ],
)
def test_puts_that_are_refused(root: Path, dav: Dav, path: str, headers: dict[str, str], status: int) -> None:
    (root / "folder").mkdir()
    (root / "file").write_bytes(b"old")
    assert dav.put(path, b"ab", **headers) == status
    assert tree(root) == {"folder": None, "file": b"old"}


def test_conditions_that_hold(root: Path, dav: Dav) -> None:
    assert dav.put("/f", b"1", If_None_Match="*") == 201
    tag = dav("HEAD", "/f").headers["etag"]
    assert dav.put("/f", b"2", If_Match=tag) == 204
    assert dav.put("/f", b"3", If_Match=tag) == 412
    tag = dav("HEAD", "/f").headers["etag"]
    assert dav.put("/f", b"4", If=f"([{tag}])") == 204
    assert (root / "f").read_bytes() == b"4"


def test_a_change_during_an_upload_is_seen(root: Path, dav: Dav) -> None:
    """If-Match holds when the file takes its place, not only when the upload began."""
    (root / "f").write_bytes(b"old")
    tag = dav("HEAD", "/f").headers["etag"]
    stream = dav.session.open_stream()
    stream.write(request("PUT", "/f", b"half", Content_Length="8", If_Match=tag))
    eventually(lambda: open_in(root) != [])
    (root / "f").write_bytes(b"somebody else's")
    stream.write(b"half")
    assert answer(stream).status == 412
    assert (root / "f").read_bytes() == b"somebody else's"
    stream.close()


def test_a_refused_body_is_read_or_the_connection_closed(root: Path, dav: Dav) -> None:
    (root / "d").mkdir()
    stream = dav.session.open_stream()
    assert dav("PUT", "/d", bytes(1 << 20), stream=stream).status == 405
    assert dav("PUT", "/f", b"next on the same connection", stream=stream).status == 201
    with contextlib.suppress(ChannelClosed):  # it may close while we still send
        stream.write(request("PUT", "/d", bytes(5 << 20), Content_Length=str(1 << 40)))
    got = answer(stream)
    assert (got.status, got.headers["connection"]) == (405, "close")
    assert stream.read(1, T) == b""
    stream.close()


def test_expect_100_continue(root: Path, dav: Dav) -> None:
    stream = dav.session.open_stream()
    stream.write(request("PUT", "/f", b"", Content_Length="4", Expect="100-continue"))
    assert stream.read(1000, T) == b"HTTP/1.1 100 Continue\r\n\r\n"
    stream.write(b"body")
    assert answer(stream).status == 201
    assert (root / "f").read_bytes() == b"body"
    stream.close()


def test_a_full_disk_is_507(root: Path, dav: Dav, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "f").write_bytes(b"old")

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hvbridge.share.placing.Draft.write", full)
    assert dav.put("/f", b"new") == 507
    assert tree(root) == {"f": b"old"}


# --- MOVE and COPY ------------------------------------------------------


@pytest.mark.parametrize("method", ["MOVE", "COPY"])
def test_a_file_over_a_file(root: Path, dav: Dav, method: str) -> None:
    (root / "a").write_bytes(b"a")
    (root / "a").chmod(0o755)
    os.utime(root / "a", ns=(0, 123_456_789))
    (root / "b").write_bytes(b"b")
    assert dav.move("/a", "/b", method, Overwrite="F") == 412
    assert tree(root) == {"a": b"a", "b": b"b"}
    assert dav.move("/a", "/b", method) == 204
    assert tree(root) == ({"b": b"a"} if method == "MOVE" else {"a": b"a", "b": b"a"})
    now = (root / "b").stat()
    assert stat.S_IMODE(now.st_mode) == 0o755
    assert now.st_mtime_ns == 123_456_789
    assert dav.move("/b", "/c", method, Overwrite="F") == 201


@pytest.mark.parametrize("method", ["MOVE", "COPY"])
def test_a_folder_with_all_that_is_in_it(root: Path, dav: Dav, method: str) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_bytes(b"x")
    (root / "a").chmod(0o750)
    (root / "t").mkdir()
    (root / "t" / "old").write_bytes(b"old")
    assert dav.move("/a", "/n", "COPY") == 201
    assert dav.move("/a", "/t", method) == 204
    moved = {"b": None, "b/f": b"x"}
    assert tree(root / "t") == tree(root / "n") == moved
    assert stat.S_IMODE((root / "t").stat().st_mode) == 0o750
    assert (root / "a").exists() == (method == "COPY")
    assert {path.name for path in root.iterdir()} - {"a"} == {"n", "t"}


@pytest.mark.parametrize("method", ["MOVE", "COPY"])
def test_a_file_over_a_folder_and_the_other_way(root: Path, dav: Dav, method: str) -> None:
    for name in ("d1", "d2"):
        (root / name).mkdir()
        (root / name / "x").write_bytes(b"x")
    (root / "f1").write_bytes(b"1")
    (root / "f2").write_bytes(b"2")
    assert dav.move("/f1", "/d1", method) == 204
    assert (root / "d1").read_bytes() == b"1"
    assert dav.move("/d2", "/f2", method) == 204
    assert tree(root / "f2") == {"x": b"x"}
    assert not [name for name in tree(root) if "hvbridge" in name]


def test_copy_of_a_folder_alone(root: Path, dav: Dav) -> None:
    (root / "a").mkdir()
    (root / "a" / "f").write_bytes(b"x")
    assert dav.move("/a", "/b", "COPY", Depth="0") == 201
    assert tree(root / "b") == {}


@pytest.mark.parametrize("method", ["MOVE", "COPY"])
@pytest.mark.parametrize(
    ("source", "target", "status"),
    [
        ("/d", "/d", 403),
        ("/d", "/d/below", 403),
        ("/d/f", "/d", 403),
        ("/", "/x", 403),
        ("/d", "/", 403),
        ("/d/f", "/d/f", 403),
        ("/none", "/x", 404),
        ("/d/f", "/none/x", 409),
        ("/d/f", "/d/f/x", 403),
        ("/g", "/d/f/x", 409),
    ],
)
def test_moves_that_are_refused(
    root: Path, dav: Dav, method: str, source: str, target: str, status: int
) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"x")
    (root / "g").write_bytes(b"g")
    before = tree(root)
    assert dav.move(source, target, method) == status
    assert tree(root) == before


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("http://share/g", 201),
        ("HTTP://SHARE/g", 201),
        ("http://elsewhere/g", 502),
        ("ftp://share/g", 400),
        ("g", 400),
        ("", 400),
        ("/g?x=1", 400),
        ("/g#x", 400),
    ],
)
def test_destinations(root: Path, dav: Dav, destination: str, status: int) -> None:
    (root / "f").write_bytes(b"x")
    assert dav("MOVE", "/f", Destination=destination).status == status
    assert tree(root) == {"g" if status == 201 else "f": b"x"}
    assert dav("MOVE", "/f").status in (400, 404)


def test_two_names_of_one_file_become_one(root: Path, dav: Dav) -> None:
    (root / "a").write_bytes(b"x")
    os.link(root / "a", root / "b")
    assert dav.move("/a", "/b") == 204
    assert tree(root) == {"b": b"x"}


def test_a_failed_swap_puts_the_old_folder_back(
    root: Path, dav: Dav, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / name).write_bytes(b"x")
    rename = os.rename

    def failing(source: str, target: str) -> None:
        if source.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr("hvbridge.share.placing.os.rename", failing)
    before = tree(root)
    assert dav.move("/a", "/b") == 403
    assert tree(root) == before


def test_a_move_to_another_filesystem(root: Path, dav: Dav, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a").mkdir()
    (root / "a" / "f").write_bytes(b"x")
    replace = os.replace

    def failing(source: str, target: str) -> None:
        if ".hvbridge-" not in source:
            raise OSError(18, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr("hvbridge.share.placing.os.replace", failing)
    assert dav.move("/a/f", "/g") == 201
    assert dav.move("/a", "/b") == 201
    assert tree(root) == {"g": b"x", "b": None}


def test_many_moves_to_one_name_that_must_not_exist(root: Path, dav: Dav) -> None:
    for i in range(12):
        (root / f"f{i}").write_bytes(b"%d" % i)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: statuses.append(dav.move(f"/f{i}", "/one", Overwrite="F")))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(T)
    assert sorted(statuses) == [201] + [412] * 11
    assert len(tree(root)) == 12


# --- DELETE and MKCOL ---------------------------------------------------


def test_delete_takes_all_that_is_in_it_hidden_or_not(root: Path, dav: Dav) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / ".hvbridge-0123456789abcdef.part").write_bytes(b"x")
    (root / "d" / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "d" / "e" / "pipe")
    assert dav("DELETE", "/d").status == 204
    assert tree(root) == {}
    assert dav("DELETE", "/").status == 403
    assert root.is_dir()


def test_mkcol(root: Path, dav: Dav) -> None:
    assert dav("MKCOL", "/d").status == 201
    assert dav("MKCOL", "/d").status == 405
    assert dav("MKCOL", "/none/d").status == 409
    assert dav("MKCOL", "/e", b"<x/>").status == 415
    assert dav("MKCOL", "/e", b"no XML").status == 415
    assert tree(root) == {"d": None}


# --- GET ----------------------------------------------------------------


def test_get_and_ranges(root: Path, dav: Dav) -> None:
    body = os.urandom(3_000_000)
    (root / "f").write_bytes(body)
    assert dav.get("/f") == body
    got = dav("GET", "/f", Range="bytes=1000000-1999999")
    assert (got.status, got.body) == (206, body[1_000_000:2_000_000])
    assert got.headers["content-range"] == "bytes 1000000-1999999/3000000"
    assert dav.get("/f", Range="bytes=-7") == body[-7:]
    assert dav.get("/f", Range="bytes=2999999-") == body[-1:]
    got = dav("GET", "/f", Range="bytes=3000000-")
    assert (got.status, got.headers["content-range"]) == (416, "bytes */3000000")
    assert dav("GET", "/f", Range="bytes=0-0", If_Range='"other"').body == body
    head = dav("HEAD", "/f")
    assert (head.status, head.headers["content-length"], head.body) == (200, "3000000", b"")
    assert dav("GET", "/f", If_None_Match=head.headers["etag"]).status == 304


def test_an_empty_file(root: Path, dav: Dav) -> None:
    (root / "f").touch()
    got = dav("GET", "/f")
    assert (got.status, got.headers["content-length"], got.body) == (200, "0", b"")


def test_a_range_of_a_huge_file_costs_nothing(root: Path, dav: Dav) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - 5)
        file.write(b"tail!")
    assert dav.get("/huge", Range=f"bytes={(1 << 40) - 5}-") == b"tail!"


def test_the_etag_is_of_the_content_that_is_sent(root: Path, dav: Dav) -> None:
    """A file that is replaced while it is sent goes on as the old one."""
    old = os.urandom(24 << 20)
    (root / "f").write_bytes(old)
    tag = dav("HEAD", "/f").headers["etag"]
    stream = dav.session.open_stream()
    stream.write(request("GET", "/f"))
    assert stream.read(12, T) == b"HTTP/1.1 200"
    assert dav.put("/f", b"new") == 204
    rest = b""
    while len(rest) < len(old):
        rest += stream.read(1 << 20, T)
    head, _, body = rest.partition(b"\r\n\r\n")
    while len(body) < len(old):
        body += stream.read(1 << 20, T)
    assert tag.encode() in head
    assert body == old
    stream.close()


def test_a_file_that_shrinks_while_it_is_sent_cuts_the_connection(root: Path, dav: Dav) -> None:
    (root / "f").write_bytes(bytes(64 << 20))
    stream = dav.session.open_stream()
    stream.write(request("GET", "/f"))
    assert stream.read(12, T) == b"HTTP/1.1 200"
    os.truncate(root / "f", 1000)
    total = 0
    while data := stream.read(1 << 20, T):
        total += len(data)
    assert total < 64 << 20
    stream.close()


# --- requests as such ---------------------------------------------------


def test_many_requests_on_one_connection(root: Path, dav: Dav) -> None:
    stream = dav.session.open_stream()
    for i in range(50):
        assert dav("PUT", "/f", b"%d" % i, stream=stream).status in (201, 204)
        assert dav("GET", "/f", stream=stream).body == b"%d" % i
    assert dav("DELETE", "/f", stream=stream).status == 204
    assert dav("GET", "/f", stream=stream).status == 404
    stream.close()


def test_a_small_answer_is_one_frame(root: Path, dav: Dav) -> None:
    (root / "f").write_bytes(b"x" * 1000)
    before = dav.session.counters.frames_in
    dav.get("/f")
    assert dav.session.counters.frames_in - before == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<unclosed",
        b'<!DOCTYPE x [<!ENTITY e "x">]><propfind xmlns="DAV:"><allprop/>&e;</propfind>',
        b'<!DOCTYPE propfind SYSTEM "file:///etc/passwd"><propfind xmlns="DAV:"><allprop/></propfind>',
        b"<a>" * 5000 + b"</a>" * 5000,
    ],
)
def test_xml_that_is_refused(dav: Dav, body: bytes) -> None:
    assert dav("PROPFIND", "/", body, Depth="0").status == 400


def test_xml_is_bounded(dav: Dav) -> None:
    assert dav("PROPFIND", "/", b" " * (300 << 10), Depth="0").status == 413
    chunk = b"4B000\r\n" + b" " * 0x4B000 + b"\r\n0\r\n\r\n"
    assert dav("PROPFIND", "/", chunk, Depth="0", Transfer_Encoding="chunked").status == 413


def test_headers_are_bounded(dav: Dav) -> None:
    assert dav("GET", "/", X="y" * (70 << 10)).status == 413
    assert dav("GET", "/" + "x" * (70 << 10)).status == 414


def test_a_chunk_that_no_memory_holds(root: Path, dav: Dav) -> None:
    stream = dav.session.open_stream()
    stream.write(request("PUT", "/f", b"FFFFFFFFFFFF\r\nxx", Transfer_Encoding="chunked"))
    with pytest.raises(http.client.HTTPException):
        answer(stream)
    assert tree(root) == {}
    stream.close()


def test_garbage_ends_its_stream_alone(root: Path, dav: Dav) -> None:
    stream = dav.session.open_stream()
    stream.write(b"\x00\xff garbage\r\n\r\n")
    assert answer(stream).status == 400
    assert stream.read(1, T) == b""
    stream.close()
    assert dav("OPTIONS", "/").headers["dav"] == "1,2"


def test_locks_keep_others_out(root: Path, dav: Dav) -> None:
    (root / "f").write_bytes(b"x")
    got = dav("LOCK", "/f", LOCK)
    assert got.status == 200
    token = got.headers["lock-token"]
    assert dav.put("/f", b"y") == 423
    assert dav("DELETE", "/f").status == 423
    assert dav.move("/f", "/g") == 423
    assert dav.put("/f", b"y", If=f"({token})") == 204
    assert dav("UNLOCK", "/f", Lock_Token=token).status == 204
    assert dav.move("/f", "/g") == 201
    assert href("/g") == "/g"


def test_errors_do_not_tell_where_the_share_is(root: Path, dav: Dav) -> None:
    (root / "out").symlink_to("/etc")
    for got in (dav("GET", "/out/passwd"), dav("GET", "/none"), dav("PUT", "/none/x", b"")):
        assert str(root).encode() not in got.body
        assert b"passwd" not in got.body
