"""What the contract suite cannot bring about: no client, refusals, races, large files set aside."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hvbridge.config import MIB, Limits
from hvbridge.errors import (
    AccessDenied,
    BadHandle,
    ConnectionLost,
    NotFound,
    Offline,
    ReadOnly,
    TimedOut,
    TooManyFiles,
)
from hvbridge.vfs import names
from hvbridge.vfs.files import OpenMode
from hvbridge.vfs.filesystem import UNKNOWN_SPACE, Filesystem, Settings
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.remote import Quota
from tests.contract.expecting import fails
from tests.support.fsops import FilesystemOps

HUGE = random.Random(6).randbytes(1 << 20) * 10
LIMITS = Limits(fresh=0.0)


class Sessions:
    def __init__(self, sessions: int) -> None:
        self.sessions = sessions


@pytest.fixture
def remote() -> MemoryRemote:
    return MemoryRemote(ranges=True)


@pytest.fixture
def ops(remote: MemoryRemote, tmp_path: Path) -> FilesystemOps:
    return FilesystemOps(Filesystem(remote, tmp_path, limits=LIMITS))


def refuse(*methods: str, error: type[Exception] = AccessDenied) -> Callable[[str, str], None]:
    def before(method: str, path: str) -> None:
        if method in methods:
            raise error("by the test")

    return before


def shown(remote: MemoryRemote) -> list[str]:
    return sorted(path for path in remote.tree() if not names.is_hidden(names.split(path)[1]))


# --- no client, not writable -----------------------------------------------------


def test_before_a_client_comes_there_is_an_empty_folder(remote: MemoryRemote, tmp_path: Path) -> None:
    connection = Sessions(0)
    fs = Filesystem(remote, tmp_path, limits=LIMITS, connection=connection)
    assert fs.getattr("/").is_dir
    assert fs.readdir("/") == []
    assert (fs.statfs().total, fs.statfs().free) == (0, 0)
    with pytest.raises(NotFound):
        fs.getattr("/f")
    with pytest.raises(NotFound):
        fs.open("/f", OpenMode())
    for change in (
        lambda: fs.create("/f", 0o644),
        lambda: fs.mkdir("/d", 0o755),
        lambda: fs.rename("/a", "/b"),
        lambda: fs.truncate("/f", 0),
    ):
        with pytest.raises(Offline):
            change()
    assert remote.requests == {}
    remote.write("/f", b"content")
    connection.sessions = 1
    assert [name for name, _ in fs.readdir("/")] == ["f"]


def test_a_read_only_mount_changes_nothing(remote: MemoryRemote, tmp_path: Path) -> None:
    remote.write("/f", b"content")
    fs = Filesystem(remote, tmp_path, limits=LIMITS, settings=Settings(read_only=True))
    before = remote.tree()
    for change in (
        lambda: fs.open("/f", OpenMode(write=True)),
        lambda: fs.open("/f", OpenMode(truncate=True)),
        lambda: fs.create("/new", 0o644),
        lambda: fs.mkdir("/d", 0o755),
        lambda: fs.rmdir("/d"),
        lambda: fs.unlink("/f"),
        lambda: fs.rename("/f", "/g"),
        lambda: fs.truncate("/f", 0),
        lambda: fs.chmod("/f", 0o755),
        lambda: fs.utimens("/f", None),
    ):
        with pytest.raises(ReadOnly):
            change()
    fh = fs.open("/f", OpenMode())
    assert fs.read(fh, 0, 100) == b"content"
    with pytest.raises(BadHandle):
        fs.write(fh, 0, b"x")
    assert remote.tree() == before


def test_umask(remote: MemoryRemote, tmp_path: Path) -> None:
    remote.write("/f", b"")
    remote.mkdir("/d")
    fs = Filesystem(remote, tmp_path, limits=LIMITS, settings=Settings(umask=0o077))
    assert (fs.getattr("/f").mode, fs.getattr("/d").mode) == (0o600, 0o700)


def test_statfs_asks_seldom_and_never_fails(remote: MemoryRemote, tmp_path: Path) -> None:
    fs = Filesystem(remote, tmp_path)
    remote.before = refuse("quota", error=TimedOut)
    assert fs.statfs().free == UNKNOWN_SPACE
    fs.statfs()
    assert remote.requests["quota"] == 1


def test_statfs_of_a_server_that_tells_half(
    remote: MemoryRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "quota", lambda: Quota(available=500))
    space = Filesystem(remote, tmp_path).statfs()
    assert (space.total, space.free) == (500, 500)


def test_handles_are_bounded(remote: MemoryRemote, tmp_path: Path) -> None:
    remote.write("/f", b"x")
    fs = Filesystem(remote, tmp_path, limits=replace(LIMITS, open_files=3))
    handles = [fs.open("/f", OpenMode()) for _ in range(3)]
    with pytest.raises(TooManyFiles):
        fs.open("/f", OpenMode())
    with pytest.raises(TooManyFiles):
        fs.create("/new", 0o644)
    fs.release(handles[0])
    fs.release(fs.open("/f", OpenMode()))
    assert shown(remote) == ["/f"]


def test_a_released_handle_is_no_handle(ops: FilesystemOps, remote: MemoryRemote) -> None:
    remote.write("/f", b"x")
    fh = ops.fs.open("/f", OpenMode())
    ops.fs.release(fh)
    with pytest.raises(BadHandle):
        ops.fs.read(fh, 0, 1)
    with pytest.raises(BadHandle):
        ops.fs.release(fh)


# --- races -----------------------------------------------------------------------


def test_an_open_that_crosses_the_last_release(
    ops: FilesystemOps, remote: MemoryRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel does not wait for a release: the next open may be under way."""
    remote.write("/f", b"0123")
    first = ops.open("f", os.O_RDWR)
    ops.pwrite(first, b"4567", 4)
    ops.fsync(first)
    original = ops.fs.files._existing
    crossed: list[OpenFile] = []

    def existing(path: str, mode: OpenMode) -> OpenFile:
        found = original(path, mode)
        if not crossed:
            crossed.append(found)
            ops.close(first)
        return found

    monkeypatch.setattr(ops.fs.files, "_existing", existing)
    second = ops.open("f", os.O_RDWR)
    assert crossed[0].closed
    assert ops.read_all(second) == b"01234567"
    ops.pwrite(second, b"89", 8)
    ops.close(second)
    assert remote.tree() == {"/f": b"0123456789"}


def test_a_closed_file_is_closed_though_it_is_deleted_at_the_same_time(
    ops: FilesystemOps, remote: MemoryRemote
) -> None:
    remote.write("/f", b"x" * MIB)
    fd = ops.open("f")
    ops.pread(fd, 10, 0)
    with ops.fs.files.kept_open("/f") as file:
        assert file is not None
        ops.close(fd)
        assert not file.closed
        assert file.read(0, 3) == b"xxx"
    assert file.closed
    assert ops.fs.files.at("/f") is None
    assert len(ops.fs.files) == 0


# --- names, refused ----------------------------------------------------------------


def test_an_unlink_that_is_refused_leaves_the_file_as_it_was(
    ops: FilesystemOps, remote: MemoryRemote
) -> None:
    remote.write("/f", b"old")
    fd = ops.open("f", os.O_RDWR)
    remote.before = refuse("delete")
    with fails(errno.EACCES):
        ops.unlink("f")
    ops.pwrite(fd, b"new", 0)
    ops.close(fd)
    assert remote.tree() == {"/f": b"new"}


def test_an_open_file_that_changed_on_the_client_can_be_deleted(
    ops: FilesystemOps, remote: MemoryRemote
) -> None:
    remote.write("/f", b"x" * MIB)
    fd = ops.open("f", os.O_RDWR)
    remote.write("/f", b"y" * 10)
    ops.unlink("f")
    assert remote.tree() == {}
    with fails(errno.EIO, errno.ENOENT):
        ops.pread(fd, 10, 0)
    ops.close(fd)


def test_an_open_file_that_the_client_deleted_can_be_deleted(
    ops: FilesystemOps, remote: MemoryRemote
) -> None:
    remote.write("/f", b"x" * MIB)
    fd = ops.open("f", os.O_RDWR)
    remote.delete("/f")
    ops.unlink("f")
    ops.close(fd)
    assert remote.tree() == {}


@pytest.mark.parametrize("error", [AccessDenied, ConnectionLost])
def test_a_rename_that_fails_leaves_the_target_where_it_was(
    ops: FilesystemOps, remote: MemoryRemote, error: type[Exception]
) -> None:
    """A large file that is open has been set aside by then: it is put back."""
    remote.write("/target", HUGE)
    remote.write("/new", b"new")
    fd = ops.open("target", os.O_RDWR)
    remote.before = lambda method, path: refuse("move", error=error)(method, path) if path == "/new" else None
    with fails(errno.EACCES, errno.EIO):
        ops.rename("new", "target")
    assert remote.tree() == {"/target": HUGE, "/new": b"new"}
    ops.pwrite(fd, b"###", 0)
    ops.close(fd)
    assert remote.tree() == {"/target": b"###" + HUGE[3:], "/new": b"new"}


def test_what_cannot_be_put_back_is_kept_under_its_hidden_name(
    ops: FilesystemOps, remote: MemoryRemote
) -> None:
    remote.write("/target", HUGE)
    remote.write("/new", b"new")
    fd = ops.open("target")
    moves: list[str] = []

    def before(method: str, path: str) -> None:
        if method == "move":
            moves.append(path)
            if len(moves) > 1:
                raise ConnectionLost("cut")

    remote.before = before
    with fails(errno.EIO):
        ops.rename("new", "target")
    assert ops.read_all(fd) == HUGE
    ops.close(fd)
    assert HUGE in remote.tree().values(), "nothing is lost"


def test_a_large_open_file_that_is_deleted_is_kept_by_the_client_until_it_is_closed(
    ops: FilesystemOps, remote: MemoryRemote
) -> None:
    remote.mkdir("/d")
    remote.write("/d/f", HUGE)
    fd = ops.open("d/f")
    ops.unlink("d/f")
    assert shown(remote) == ["/d"]
    assert HUGE in remote.tree().values()
    ops.rename("d", "e")
    ops.rmdir("e")
    assert ops.pread(fd, 100, len(HUGE) - 100) == HUGE[-100:]
    assert ops.listdir() == []
    ops.close(fd)
    assert remote.tree() == {}


def test_hidden_names_are_refused(ops: FilesystemOps, remote: MemoryRemote) -> None:
    hidden = names.temporary("/", "part")
    remote.write(hidden, b"an upload of ours")
    remote.write("/f", b"x")
    assert ops.listdir() == ["f"]
    with fails(errno.EILSEQ):
        ops.unlink(hidden[1:])
    with fails(errno.EILSEQ):
        ops.rename("f", names.temporary("/", "gone")[1:])


def test_something_that_came_to_stand_in_the_way_meanwhile(ops: FilesystemOps, remote: MemoryRemote) -> None:
    remote.mkdir("/a")
    ops.listdir()

    def before(method: str, path: str) -> None:
        if method == "move" and "/b" not in remote.tree():
            remote.before = lambda method, path: None
            remote.mkdir("/b")
            remote.write("/b/precious", b"keep")

    remote.before = before
    with fails(errno.ENOTEMPTY):
        ops.rename("a", "b")
    assert remote.tree()["/b/precious"] == b"keep"


# --- requests --------------------------------------------------------------------


def test_reading_a_tree_costs_one_listing_a_folder_and_one_get_a_file(tmp_path: Path) -> None:
    remote = MemoryRemote(ranges=False)
    for folder in range(3):
        remote.mkdir(f"/{folder}")
        for number in range(5):
            remote.write(f"/{folder}/{number}", b"x" * number)
    remote.requests.clear()
    ops = FilesystemOps(Filesystem(remote, tmp_path))
    for path in ops.listdir():
        for name in ops.listdir(path):
            ops.stat(f"{path}/{name}")
            assert ops.read_file(f"{path}/{name}") == b"x" * int(name)
    assert remote.requests["list"] <= 1 + 1 + 3  # the share is recognised by a listing of its own
    assert remote.requests["get"] == 3 * 5
    assert set(remote.requests) == {"list", "get"}


def test_writing_many_files_costs_one_put_each(tmp_path: Path) -> None:
    remote = MemoryRemote()
    ops = FilesystemOps(Filesystem(remote, tmp_path))
    ops.mkdir("d")
    remote.requests.clear()
    for number in range(20):
        ops.write_file(f"d/{number}", b"content")
    assert remote.requests == {"put": 20}
