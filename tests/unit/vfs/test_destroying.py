"""What is deleted or replaced is what the client has now, not what was listed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hvbridge.config import Limits
from hvbridge.errors import AccessDenied, IsDirectory, NotEmpty, NotFound, TooManyFiles
from hvbridge.vfs.files import OpenMode
from hvbridge.vfs.filesystem import Filesystem
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.remote import Listing
from hvbridge.vfs.tree import RECENT


class Case:
    def __init__(self, tmp_path: Path, limits: Limits | None = None) -> None:
        self.remote = MemoryRemote()
        self.now = 0.0
        self.fs = Filesystem(self.remote, tmp_path, limits=limits or Limits(fresh=1e9))
        self.fs.tree._clock = lambda: self.now

    def grown_old(self) -> None:
        self.now += RECENT

    def becomes_a_folder(self, path: str) -> None:
        self.remote.delete(path)
        self.remote.mkdir(path)
        self.remote.write(f"{path}/precious", b"precious")


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.fs.close()


def test_a_folder_that_took_the_files_place_is_not_deleted(case: Case) -> None:
    case.remote.write("/a", b"file")
    case.fs.getattr("/a")
    case.becomes_a_folder("/a")
    case.grown_old()
    with pytest.raises(IsDirectory):
        case.fs.unlink("/a")
    assert case.remote.tree()["/a/precious"] == b"precious"


def test_a_folder_that_took_the_files_place_is_not_replaced(case: Case) -> None:
    case.remote.write("/a", b"file")
    case.remote.write("/b", b"file")
    case.fs.getattr("/a")
    case.becomes_a_folder("/b")
    case.grown_old()
    with pytest.raises(IsDirectory):
        case.fs.rename("/a", "/b")
    assert case.remote.tree()["/b/precious"] == b"precious"


def test_a_folder_with_members_that_cannot_be_shown_is_not_empty(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.remote.mkdir("/d")
    list_honestly = case.remote.list

    def list_with_dropped(path: str) -> Listing:
        return replace(list_honestly(path), dropped=1 if path == "/d" else 0)

    monkeypatch.setattr(case.remote, "list", list_with_dropped)
    with pytest.raises(NotEmpty):
        case.fs.rmdir("/d")
    assert "/d" in case.remote.tree()


def test_an_empty_file_that_the_share_refuses_is_an_error_at_close(case: Case) -> None:
    def refuse(method: str, path: str) -> None:
        if method == "put":
            raise AccessDenied("refused", path)

    case.remote.before = refuse
    fh = case.fs.create("/empty", 0o644)
    with pytest.raises(AccessDenied):
        case.fs.flush(fh)
    case.fs.release(fh)
    assert [item["path"] for item in case.fs.failed()] == ["/empty"]
    case.remote.before = lambda method, path: None
    fh = case.fs.create("/empty", 0o644)
    case.fs.flush(fh)
    case.fs.release(fh)
    assert case.fs.failed() == []
    assert case.fs.drain(0)


def test_a_file_that_the_client_deleted_is_not_found_and_then_known_to_be_gone(case: Case) -> None:
    case.remote.write("/a", b"file")
    case.fs.getattr("/a")
    case.remote.delete("/a")
    with pytest.raises(NotFound):
        case.fs.open("/a", OpenMode())
    before = case.remote.requests.copy()
    with pytest.raises(NotFound):
        case.fs.getattr("/a")
    assert case.remote.requests == before


def test_more_open_files_than_allowed(tmp_path: Path) -> None:
    case = Case(tmp_path, Limits(open_files=2))
    for name in ("/a", "/b"):
        case.fs.create(name, 0o644)
    with pytest.raises(TooManyFiles):
        case.fs.create("/c", 0o644)
    case.fs.close()


def test_a_full_disk_of_the_host_stops_no_upload_that_is_complete(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    fh = case.fs.create("/a", 0o644)
    case.fs.write(fh, 0, b"content")

    def full(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    case.fs.flush(fh)
    case.fs.release(fh)
    assert case.remote.tree() == {"/a": b"content"}
    assert case.fs.failed() == []


def test_many_large_files_that_are_open_leave_connections_for_others(tmp_path: Path) -> None:
    limits = Limits(streams=6, small_file=10)
    case = Case(tmp_path, limits)
    for number in range(5):
        case.remote.write(f"/f{number}", bytes(1000))
    handles = [case.fs.open(f"/f{number}", OpenMode()) for number in range(5)]
    for fh in handles:
        assert case.fs.read(fh, 0, 2000) == bytes(1000)
        case.fs.release(fh)
    assert case.fs.cache.enter(5)
    assert case.fs.cache.enter(5), "every connection was given back"
    case.fs.close()
