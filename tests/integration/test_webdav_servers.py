"""One contract of the remote, on every server, by ``http://`` and through the mux."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvbridge.errors import (
    Changed,
    Exists,
    FsError,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
)
from tests.support import webdav_servers
from tests.support.webdav_servers import Served

PEER = {"apache": "apache2", "nginx": "nginx", "rclone": "rclone", "phodav": "spice-gtk"}

ODD = [
    "100% sure",
    "a%20b",
    "%",
    "%zz",
    "%2F",
    "hash#tag",
    "what?",
    "R&D",
    "amp&amp;x",
    "&lt;",
    "a<b>c",
    " lead",
    "trail ",
    'quo"te',
    "ap'os",
    "n\u00e4me",
    "na\u0308me",
    "\u65e5\u672c\u8a9e",
    "x" * 255,
    "\u00e9" * 127,
    "semi;colon=1",
    "plus+",
    "c:d",
    "[br]{ace}",
    "~t!$*(),@",
    ".dot",
    "..dots",
    "\U0001f600",
]
RAW = ["new\nline", "tab\there", "back\\slash", "cr\rx", "ctrl\x01x", "\ufffd", "\ufffe"]
"""Names that some servers cannot say; phodav and our own share must."""

CANNOT: dict[str, set[str]] = {
    "nginx": {".dot", "..dots"},  # not listed
    "rclone": {"new\nline", "tab\there", "cr\rx", "ctrl\x01x"},  # shown as control pictures
    "wsgidav": {"ctrl\x01x", "\ufffe"},  # 500 to the whole folder
}
"""Names that a server as it comes does not tell."""

EVERYWHERE = [("phodav", "mux")] + [
    (name, way) for name in webdav_servers.TCP_SERVERS for way in ("tcp", "mux")
]


def parameters(servers: list[tuple[str, str]]) -> list[object]:
    """Servers as test parameters, each with the peer that it needs."""
    return [
        pytest.param(
            (name, way),
            id=f"{name}-{way}",
            marks=[pytest.mark.peers(PEER[name])] if name in PEER else [],
        )
        for name, way in servers
    ]


@pytest.fixture(params=parameters(EVERYWHERE))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    name, way = request.param
    start = webdav_servers.over_tcp if way == "tcp" else webdav_servers.over_mux
    # Not in tmp_path, which other users, as Apache started by root becomes one, cannot enter.
    with tempfile.TemporaryDirectory(prefix="hvbridge-") as top:
        Path(top).chmod(0o755)
        folder, work = Path(top, "share"), Path(top, "work")
        folder.mkdir()
        work.mkdir()
        with start(name, folder, work) as served:
            yield served


def hand_over(folder: Path) -> None:
    """Let the server, which may be another user, write everywhere."""
    for root, folders, files in os.walk(folder):
        for name in folders:
            (Path(root) / name).chmod(0o777)
        for name in files:
            (Path(root) / name).chmod(0o666)
    folder.chmod(0o777)


def eventually(holds: Callable[[], bool]) -> None:
    """phodav answers a PUT just before the new content is in place."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def requests(served: Served) -> int:
    return sum(served.remote.client.requests.values())


def test_contract(served: Served) -> None:
    remote, folder = served.remote, served.folder
    (folder / "sub").mkdir()
    (folder / "sub" / "inner.txt").write_bytes(b"inner")
    (folder / "hello.txt").write_bytes(b"hello world")
    (folder / "empty").write_bytes(b"")
    os.utime(folder / "hello.txt", (1_700_000_000, 1_700_000_000))
    hand_over(folder)

    root = remote.list("/")
    assert requests(served) == 1
    assert root.folder.is_dir
    assert root.dropped == 0
    found = {entry.name: entry for entry in root.entries}
    assert set(found) == {"sub", "hello.txt", "empty"}
    assert found["sub"].is_dir
    assert found["sub"].size is None
    assert (found["hello.txt"].size, found["empty"].size) == (11, 0)
    assert found["hello.txt"].mtime_ns == 1_700_000_000 * 10**9
    assert remote.stat("/hello.txt") == found["hello.txt"]
    assert remote.stat("/sub").is_dir
    assert remote.stat("/").is_dir
    assert requests(served) == (5 if served.name == "apache" else 4)  # it redirects folders
    assert [entry.name for entry in remote.list("/sub").entries] == ["inner.txt"]

    check_reading(served)
    check_writing(served)
    check_names_in_use(served)
    assert bool(remote.traits.server) == (served.name != "rclone")  # which does not say its name


def check_reading(served: Served) -> None:
    remote = served.remote
    before = requests(served)
    download = remote.get("/hello.txt")
    assert b"".join(download) == b"hello world"
    assert (download.start, download.size) == (0, 11)
    part = remote.get("/hello.txt", 6, 9)
    data = b"".join(part)
    assert requests(served) == before + 2
    assert data[6 - part.start : 9 - part.start] == b"wor"
    assert part.size == 11
    rest = remote.get("/hello.txt", 6)
    assert b"".join(rest)[6 - rest.start :] == b"world"
    assert b"".join(remote.get("/empty")) == b""
    with pytest.raises(NotFound):
        remote.get("/nope")
    with pytest.raises(NotFound):
        remote.stat("/nope")
    with pytest.raises(NotFound):
        remote.list("/nope")
    with pytest.raises(NotDirectory):
        remote.list("/hello.txt")
    with pytest.raises(IsDirectory):
        remote.get("/sub")
    with pytest.raises(Changed):
        remote.get("/hello.txt", 500, 600)
    with pytest.raises(InvalidArgument):
        remote.get("/hello.txt", 5, 5)
    with pytest.raises(InvalidName):
        remote.stat("/../etc")


def check_writing(served: Served) -> None:
    remote, folder = served.remote, served.folder
    before = requests(served)
    remote.put("/small", b"x" * 100, 100)
    big = os.urandom(300_000)
    remote.put("/sub/big", [big[:1], big[1:200_000], big[200_000:]], len(big))
    remote.put("/none", b"", 0)
    assert requests(served) == before + 3
    assert (folder / "small").read_bytes() == b"x" * 100
    assert (folder / "sub" / "big").read_bytes() == big
    assert (folder / "none").read_bytes() == b""
    remote.put("/small", b"shorter", 7)
    eventually(lambda: (folder / "small").read_bytes() == b"shorter")
    with pytest.raises(ValueError, match="announced"):
        remote.put("/wrong", b"abc", 4)
    with pytest.raises(ValueError, match="announced"):
        remote.put("/wrong", [b"abc", b"def"], 4)
    with pytest.raises(FsError):
        remote.put("/sub", b"1", 1)
    assert (folder / "sub").is_dir()


def check_names_in_use(served: Served) -> None:
    remote, folder = served.remote, served.folder
    before = requests(served)
    remote.mkdir("/new")
    assert requests(served) == before + (2 if served.name == "rclone" else 1)
    assert (folder / "new").is_dir()
    with pytest.raises(Exists):
        remote.mkdir("/new")
    with pytest.raises(NotFound):
        remote.mkdir("/no/parent")
    remote.move("/small", "/new/moved", overwrite=False)
    assert (folder / "new" / "moved").read_bytes() == b"shorter"
    assert not (folder / "small").exists()
    remote.copy("/new/moved", "/copied", overwrite=False)
    assert (folder / "copied").read_bytes() == b"shorter"
    with pytest.raises(Exists):
        remote.move("/new/moved", "/copied", overwrite=False)
    with pytest.raises(Exists):
        remote.copy("/new/moved", "/copied", overwrite=False)
    remote.put("/other", b"other", 5)
    remote.move("/other", "/copied", overwrite=True)
    assert (folder / "copied").read_bytes() == b"other"
    remote.move("/new", "/renamed", overwrite=False)
    assert (folder / "renamed" / "moved").read_bytes() == b"shorter"
    with pytest.raises(NotFound):
        remote.move("/nope", "/nope2", overwrite=False)
    remote.delete("/copied")
    remote.delete("/renamed")
    assert not (folder / "copied").exists()
    assert not (folder / "renamed").exists()
    with pytest.raises(NotFound):
        remote.delete("/nope")
    assert {entry.name for entry in remote.list("/").entries} >= {"sub", "hello.txt", "none"}


def test_odd_names(served: Served) -> None:
    """Made on disk: listed, read, and as folders entered; made through the server: right on disk."""
    remote, folder = served.remote, served.folder
    here = set(ODD + RAW) - CANNOT.get(served.name, set())
    for name in here:
        (folder / name).write_bytes(name.encode())
        inside = folder / folder_for(name)
        (inside / "Q&A").mkdir(parents=True)
        (inside / name).write_bytes(b"1")
    hand_over(folder)
    root = remote.list("/")
    assert root.dropped == 0
    assert {entry.name for entry in root.entries} == here | {folder_for(name) for name in here}
    for name in sorted(here):
        assert b"".join(remote.get(f"/{name}")) == name.encode()
        assert remote.stat(f"/{name}").size == len(name.encode())
        at = f"/{folder_for(name)}"
        assert {entry.name for entry in remote.list(at).entries} == {"Q&A", name}
        remote.put(f"{at}/Q&A/{name}", b"new", 3)
        assert [path.name for path in (folder / at[1:] / "Q&A").iterdir()] == [name]
        if served.name != "wsgidav" or not set(name) & set(";?\n\r\t"):  # it cuts Destination there
            remote.move(f"{at}/Q&A/{name}", f"{at}/Q&A/m{name}"[:-1], overwrite=False)
            assert [path.name for path in (folder / at[1:] / "Q&A").iterdir()] == [f"m{name}"[:-1]]
        remote.delete(f"/{name}")
        assert not (folder / name).exists()


def folder_for(name: str) -> str:
    """A folder's name as odd as ``name``, and not longer than names may be."""
    return f"D{name}"[:120]


def test_names_that_are_not_utf8_hide_nothing(served: Served) -> None:
    if served.name == "wsgidav":
        pytest.skip("WsgiDAV as it comes answers 500 to the whole folder")
    for name in (b"bad\xffname", b"\xc3", b"good"):
        Path(os.fsdecode(bytes(served.folder) + b"/" + name)).write_bytes(b"1")
    Path(os.fsdecode(bytes(served.folder) + b"/dir\xfe")).mkdir()
    hand_over(served.folder)
    listing = served.remote.list("/")
    assert "good" in {entry.name for entry in listing.entries}
    for entry in listing.entries:
        entry.name.encode()
        if not entry.is_dir:
            served.remote.get(f"/{entry.name}").close()
    if served.name != "rclone":  # it renames them, reversibly, on its own
        assert [entry.name for entry in listing.entries] == ["good"]
        assert listing.dropped == 3


def test_a_folder_that_has_a_folder_of_its_own_name(served: Served) -> None:
    for name in ("twin", "R&D", "100%"):
        inner = served.folder / name / name
        inner.mkdir(parents=True)
        (inner / name).write_bytes(b"1")
        os.utime(inner, (1_600_000_000, 1_600_000_000))
        os.utime(served.folder / name, (1_500_000_000, 1_500_000_000))
    hand_over(served.folder)
    for name in ("twin", "R&D", "100%"):
        listing = served.remote.list(f"/{name}")
        assert [entry.name for entry in listing.entries] == [name]
        assert listing.entries[0].mtime_ns == 1_600_000_000 * 10**9
        assert listing.folder.mtime_ns == 1_500_000_000 * 10**9
        assert [entry.is_dir for entry in served.remote.list(f"/{name}/{name}").entries] == [False]


def test_exec_bit_and_mtime(served: Served) -> None:
    remote = served.remote
    remote.put("/script", b"#!/bin/sh\n", 10)
    path = served.folder / "script"
    on = remote.set_executable("/script", True)
    assert on == bool(path.stat().st_mode & stat.S_IXUSR)
    assert on or not remote.set_executable("/script", True)
    assert on == (served.name in ("apache", "share"))
    if on:
        assert remote.stat("/script").executable is True
        assert remote.set_executable("/script", False)
        assert not path.stat().st_mode & stat.S_IXUSR
    wanted = 1_234_567_890_123_456_789
    dated = remote.set_mtime("/script", wanted)
    assert dated == (path.stat().st_mtime_ns // 10**9 == wanted // 10**9)
    if remote.traits.server.startswith("hvbridge"):
        assert path.stat().st_mtime_ns == wanted
        assert remote.stat("/script").mtime_ns == wanted
    if served.name == "phodav":
        assert os.listxattr(path) == []


def test_quota(served: Served) -> None:
    quota = served.remote.quota()
    if served.name in ("phodav", "share"):
        space = os.statvfs(served.folder)
        assert quota.available is not None
        assert abs(quota.available - space.f_bavail * space.f_frsize) < 10 << 30
    else:
        assert quota.available is None or quota.available >= 0


def test_mode_of_an_existing_file(served: Served) -> None:
    served.remote.list("/")
    path = served.folder / "tool"
    path.write_bytes(b"old")
    hand_over(served.folder)
    path.chmod(0o757)
    served.remote.put("/tool", b"newer", 5)
    eventually(lambda: path.read_bytes() == b"newer")
    if served.remote.traits.keeps_mode:
        assert stat.S_IMODE(path.stat().st_mode) == 0o757


def test_closing_a_download_early_leaves_the_channel_usable(served: Served) -> None:
    size = 8 << 20
    (served.folder / "big").write_bytes(os.urandom(size))
    hand_over(served.folder)
    for _ in range(20):
        download = served.remote.get("/big")
        assert len(next(iter(download))) > 0
        download.close()
    assert sum(map(len, served.remote.get("/big"))) == size


@pytest.mark.peers("spice-gtk")
def test_phodav_hides_the_clipboard_and_our_own_names(tmp_path: Path) -> None:
    (tmp_path / ".hvbridge-0123456789abcdef.part").write_bytes(b"1")
    (tmp_path / "seen").write_bytes(b"1")
    with webdav_servers.phodav(tmp_path) as served:
        listing = served.remote.list("/")
        assert [entry.name for entry in listing.entries] == ["seen"]
        assert listing.dropped == 0
        traits = served.remote.traits
        assert traits.server.startswith("PhodavServer")
        assert traits.ranges is False
        assert 4096 < served.remote.atomic_put("/seen") < 8192
        assert served.remote.atomic_put("/" + "\u00e9" * 127) < served.remote.atomic_put("/seen")


@pytest.mark.peers("spice-gtk")
def test_phodav_tells_the_time_to_the_nanosecond_and_the_exec_bit(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"1")
    tool.chmod(0o755)
    os.utime(tool, ns=(0, 1_700_000_000_123_456_789))
    with webdav_servers.phodav(tmp_path) as served:
        entry = served.remote.stat("/tool")
        assert entry.mtime_ns == 1_700_000_000_123_456_789
        assert entry.executable is True


@pytest.mark.peers("spice-gtk")
def test_phodav_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with webdav_servers.phodav(tmp_path, read_only=True) as served:
        assert b"".join(served.remote.get("/file")) == b"1"
        attempts: list[Callable[[], object]] = [
            lambda: served.remote.put("/new", b"x" * (1 << 20), 1 << 20),
            lambda: served.remote.mkdir("/new"),
            lambda: served.remote.delete("/file"),
            lambda: served.remote.move("/file", "/new", overwrite=False),
        ]
        for attempt in attempts:
            with pytest.raises(FsError, match="refuses"):
                attempt()
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
