"""Listings: what is asked, what is remembered, and what changes made here do to both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hvbridge.config import Limits
from hvbridge.errors import ConnectionLost, NotDirectory, NotFound
from hvbridge.vfs import tree as module
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.remote import Entry
from hvbridge.vfs.tree import Tree
from tests.support.pipes import eventually

FRESH = 5.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remote() -> MemoryRemote:
    remote = MemoryRemote()
    for folder in ("/d", "/d/sub"):
        remote.mkdir(folder)
    for path in ("/d/a", "/d/b", "/top"):
        remote.write(path, b"12345")
    remote.requests.clear()
    return remote


@pytest.fixture
def tree(remote: MemoryRemote, clock: Clock) -> Iterator[Tree]:
    tree = Tree(remote, Limits(fresh=FRESH), clock=clock)
    yield tree
    tree.close()


def listed(tree: Tree, path: str) -> list[str]:
    return sorted(entry.name for entry in tree.list(path))


# --- requests --------------------------------------------------------------


def test_one_listing_answers_all_lookups_in_a_folder(tree: Tree, remote: MemoryRemote) -> None:
    assert tree.lookup("/d/a").size == 5
    for _ in range(3):
        assert tree.lookup("/d/b").size == 5
        assert tree.lookup("/d/sub").is_dir
        with pytest.raises(NotFound):
            tree.lookup("/d/none")
    assert remote.requests == {"list": 1}


def test_a_stale_listing_is_asked_for_again(tree: Tree, remote: MemoryRemote, clock: Clock) -> None:
    tree.lookup("/d/a")
    remote.write("/d/new", b"")
    clock.now += FRESH - 0.1
    with pytest.raises(NotFound):
        tree.lookup("/d/new")
    clock.now += 0.2
    assert tree.lookup("/d/new").size == 0
    assert remote.requests == {"list": 2}


def test_newest_asks_at_once(tree: Tree, remote: MemoryRemote) -> None:
    tree.list("/d/sub")
    remote.write("/d/sub/new", b"")
    assert [entry.name for entry in tree.list("/d/sub", newest=True)] == ["new"]


def test_a_folder_that_is_not_there_or_is_none(tree: Tree) -> None:
    with pytest.raises(NotFound):
        tree.list("/none")
    with pytest.raises(NotDirectory):
        tree.list("/top")


def test_the_share_itself(tree: Tree, remote: MemoryRemote) -> None:
    assert tree.lookup("/").is_dir
    assert tree.lookup("/").is_dir
    assert remote.requests == {"list": 1}


def test_identical_requests_under_way_are_one(tree: Tree, remote: MemoryRemote) -> None:
    arrived, go = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        arrived.set()
        assert go.wait(10)

    remote.before = hold
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(tree.lookup, "/d/a")
        assert arrived.wait(10)
        others = [pool.submit(tree.lookup, "/d/b") for _ in range(7)]
        go.set()
        assert first.result(10).name == "a"
        assert {other.result(10).name for other in others} == {"b"}
    assert remote.requests["list"] == 1


def test_folders_below_a_listed_one_are_fetched_ahead(tree: Tree, remote: MemoryRemote) -> None:
    for number in range(30):
        remote.mkdir(f"/d/{number}")
    remote.requests.clear()
    tree.list("/d")
    eventually(lambda: remote.requests["list"] == 1 + module.AHEAD)
    before = remote.requests["list"]
    listed(tree, "/d/0")
    assert remote.requests["list"] == before


def test_an_error_is_not_remembered(tree: Tree, remote: MemoryRemote) -> None:
    def lost(method: str, path: str) -> None:
        raise ConnectionLost("cut")

    remote.before = lost
    with pytest.raises(ConnectionLost):
        tree.lookup("/d/a")
    remote.before = lambda method, path: None
    assert tree.lookup("/d/a").size == 5


def test_one_entry_of_a_large_stale_folder_is_asked_for_alone(
    tree: Tree, remote: MemoryRemote, clock: Clock
) -> None:
    for number in range(module.LARGE + 1):
        remote.write(f"/d/sub/{number}", b"")
    remote.requests.clear()
    tree.lookup("/d/sub/7")
    clock.now += FRESH
    remote.write("/d/sub/7", b"longer")
    assert tree.lookup("/d/sub/7").size == 6
    assert tree.lookup("/d/sub/7").size == 6
    with pytest.raises(NotFound):
        tree.lookup("/d/sub/none")
    with pytest.raises(NotFound):
        tree.lookup("/d/sub/none")
    assert remote.requests == {"list": 1, "stat": 2}


def test_memory_is_bounded(
    tree: Tree, remote: MemoryRemote, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(module, "KNOWN", 40)
    for folder in range(10):
        remote.mkdir(f"/{folder}")
        for number in range(9):
            remote.write(f"/{folder}/{number}", b"")
        tree.lookup(f"/{folder}/0")
    remote.requests.clear()
    tree.lookup("/9/8")
    assert remote.requests == {}
    tree.lookup("/0/8")
    assert remote.requests == {"list": 1}


# --- changes made here -------------------------------------------------------


def test_a_change_shows_without_a_request(tree: Tree, remote: MemoryRemote) -> None:
    tree.lookup("/d/a")
    tree.note("/d/new", Entry("new", False, 3))
    tree.note("/d/a", None)
    assert tree.lookup("/d/new").size == 3
    with pytest.raises(NotFound):
        tree.lookup("/d/a")
    assert remote.requests == {"list": 1}


def test_a_change_is_patched_into_a_listing_that_was_asked_for_earlier(
    tree: Tree, remote: MemoryRemote
) -> None:
    """The server answered before the change took effect, the answer came after it."""
    original = remote.list

    def late(path: str) -> object:
        answer = original(path)
        if path == "/d":
            tree.note("/d/new", Entry("new", False, 3))
            tree.note("/d/a", None)
        return answer

    remote.list = late  # type: ignore[method-assign, assignment]
    assert listed(tree, "/d") == ["b", "new", "sub"]
    remote.list = original  # type: ignore[method-assign]
    # A listing that was asked for after the change is right as it is.
    assert sorted(entry.name for entry in tree.list("/d", newest=True)) == ["a", "b", "sub"]


def test_an_upload_is_unconfirmed_until_somebody_looks(tree: Tree, remote: MemoryRemote) -> None:
    tree.lookup("/d/a")
    remote.write("/d/a", b"uploaded")
    tree.note("/d/a", Entry("a", False, 8), confirmed=False)
    assert tree.lookup("/d/a", confirmed=False).etag is None
    assert remote.requests == {"list": 1}
    entry = tree.lookup("/d/a")
    assert (entry.size, entry.etag) == (8, remote.stat("/d/a").etag)
    remote.requests.clear()
    assert tree.lookup("/d/a") == entry
    assert remote.requests == {}


def test_confirming_what_has_gone(tree: Tree, remote: MemoryRemote) -> None:
    tree.lookup("/d/a")
    tree.note("/d/a", Entry("a", False, 8), confirmed=False)
    remote.delete("/d/a")
    with pytest.raises(NotFound):
        tree.lookup("/d/a")
    assert listed(tree, "/d") == ["b", "sub"]


def test_a_look_that_crossed_a_change_does_not_undo_it(tree: Tree, remote: MemoryRemote) -> None:
    tree.lookup("/d/a")
    original = remote.stat

    def late(path: str) -> Entry:
        answer = original(path)
        tree.note("/d/a", Entry("a", False, 99))
        return answer

    remote.stat = late  # type: ignore[method-assign]
    tree.confirm("/d/a")
    assert tree.lookup("/d/a").size == 99


def test_a_new_folder_is_known_to_be_empty(tree: Tree, remote: MemoryRemote) -> None:
    remote.mkdir("/d/new")
    tree.note_new_folder("/d/new", Entry("new", is_dir=True))
    remote.requests.clear()
    with pytest.raises(NotFound):
        tree.lookup("/d/new/x")
    assert listed(tree, "/d/new") == []
    assert remote.requests == {}


def test_a_moved_folder_keeps_its_listings(tree: Tree, remote: MemoryRemote) -> None:
    entry = tree.lookup("/d")
    tree.lookup("/d/a")
    tree.list("/d/sub")
    eventually(lambda: remote.requests["list"] >= 3)
    remote.move("/d", "/e", overwrite=False)
    tree.note_moved("/d", "/e", entry)
    remote.requests.clear()
    assert tree.lookup("/e").name == "e"
    assert tree.lookup("/e/a").size == 5
    with pytest.raises(NotFound):
        tree.lookup("/d")
    assert remote.requests == {}


def test_a_folder_that_was_moved_over_another_shows_its_own_members(tree: Tree, remote: MemoryRemote) -> None:
    remote.mkdir("/e")
    remote.mkdir("/e/old")
    tree.lookup("/e/old")
    entry = tree.lookup("/d")
    tree.lookup("/d/a")
    remote.move("/d", "/e", overwrite=True)
    tree.note_moved("/d", "/e", entry)
    assert listed(tree, "/e") == ["a", "b", "sub"]


def test_forgetting(tree: Tree, remote: MemoryRemote) -> None:
    tree.lookup("/d/a")
    remote.write("/d/new", b"")
    tree.forget("/d")
    assert tree.lookup("/d/new").size == 0
    tree.note("/d/ghost", Entry("ghost", False, 1))
    tree.forget()
    with pytest.raises(NotFound):
        tree.lookup("/d/ghost")
