from __future__ import annotations

import pytest

from hvbridge.errors import Changed
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.presence import Presence, alike


class Sessions:
    sessions = 0


class Case:
    """A client that comes with what is in ``remote``."""

    def __init__(self, *files: str) -> None:
        self.remote, self.connection, self.others = MemoryRemote(), Sessions(), 0
        for file in files:
            self.remote.write(f"/{file}", file.encode())
        self.presence = Presence(self.remote, self.connection, self._other)
        self.connection.sessions = 1
        self.share = self.presence.current()

    def _other(self) -> None:
        self.others += 1

    def comes_back(self) -> bool:
        """A new session; whether it counts as the same share."""
        self.connection.sessions += 1
        assert not self.presence.known
        return self.presence.current() is self.share


def test_nobody_has_come() -> None:
    presence = Presence(MemoryRemote(), Sessions(), lambda: None)
    assert not presence.came


def test_a_share_is_looked_at_once_a_session() -> None:
    case = Case("a")
    assert case.presence.came
    assert case.presence.known
    for _ in range(3):
        assert case.presence.current() is case.share
    assert case.remote.requests["list"] == 1


def test_the_same_share_comes_back() -> None:
    case = Case("a", "b")
    assert case.comes_back()
    with case.presence.pinned(case.share):
        assert case.others == 0


def test_a_client_that_changed_some_files_meanwhile_is_the_same() -> None:
    case = Case("a", "b", "c", "d")
    case.remote.write("/a", b"changed")
    case.remote.delete("/b")
    case.remote.write("/e", b"new")
    assert case.comes_back()


def test_another_share() -> None:
    case = Case("a", "b")
    for name in ("a", "b"):
        case.remote.write(f"/{name}", b"same names, other files")
    assert not case.comes_back()
    assert case.others == 1
    with pytest.raises(Changed), case.presence.pinned(case.share):
        pass


def test_an_empty_share_is_not_a_full_one() -> None:
    case = Case()
    case.remote.write("/a", b"of another share")
    assert not case.comes_back()


def test_what_was_written_from_here_does_not_make_it_another_share() -> None:
    case = Case()
    case.presence.touch("/first")
    case.remote.write("/first", b"uploaded by us, the answer got lost")
    assert case.comes_back()
    case = Case("only")
    case.presence.touch("/only")
    case.remote.write("/only", b"a new version by us")
    assert case.comes_back()
    case = Case("only")
    case.presence.touch("/only")
    case.remote.delete("/only")
    assert case.comes_back()


def test_touching_does_not_hide_another_share() -> None:
    case = Case("a", "b")
    case.presence.touch("/a")
    case.presence.touch("/folder/b")  # not at the top: tells nothing of it
    case.remote.write("/b", b"other")
    assert not case.comes_back()


def test_alike() -> None:
    a, b, c, d = (("a", False, "1"), ("b", False, "1"), ("c", True, None), ("d", True, None))
    assert alike(frozenset(), frozenset())
    assert not alike(frozenset({a}), frozenset())
    assert alike(frozenset({a, b}), frozenset({a, c}))
    assert not alike(frozenset({a, b, c}), frozenset({c, d, ("a", False, "2")}))
    assert alike(frozenset({a}), frozenset({("a", False, "2")}), {"a"})
