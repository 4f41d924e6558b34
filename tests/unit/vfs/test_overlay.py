from __future__ import annotations

import pytest

from hvbridge.vfs import overlay as module
from hvbridge.vfs.overlay import Overlay
from hvbridge.vfs.remote import Entry


def entry(etag: str | None = '"1"', mtime_ns: int = 5) -> Entry:
    return Entry("f", is_dir=False, size=1, mtime_ns=mtime_ns, etag=etag)


def test_a_time_holds_until_the_server_tells_of_a_change() -> None:
    overlay = Overlay()
    overlay.set_mtime("/f", 42)
    assert overlay.mtime("/f", entry(etag=None)) == 42  # uploaded and not looked at
    assert overlay.mtime("/f", entry('"1"')) == 42
    assert overlay.mtime("/f", entry('"1"')) == 42
    assert overlay.mtime("/f", entry('"2"')) is None
    assert overlay.mtime("/f", entry('"1"')) is None


def test_a_folders_time_holds_although_members_come() -> None:
    overlay = Overlay()
    overlay.set_mtime("/d", 42)
    for time in (1, 2):
        assert overlay.mtime("/d", Entry("d", is_dir=True, mtime_ns=time, etag=f'"{time}"')) == 42


def test_writing_drops_the_time_and_not_the_mode() -> None:
    overlay = Overlay()
    overlay.set_mtime("/f", 42)
    overlay.set_mode("/f", 0o600)
    overlay.drop_mtime("/f")
    assert overlay.mtime("/f", entry()) is None
    assert overlay.mode("/f") == 0o600
    overlay.set_mode("/f", None)
    assert overlay.mode("/f") is None


def test_notes_move_and_go_with_their_files() -> None:
    overlay = Overlay()
    for path in ("/d", "/d/f", "/d/sub/g", "/dx", "/other"):
        overlay.set_mode(path, 0o700)
    overlay.set_mode("/e", 0o111)
    overlay.moved("/d", "/e")
    assert [overlay.mode(p) for p in ("/e", "/e/f", "/e/sub/g", "/dx", "/d/f")] == [0o700] * 4 + [None]
    overlay.removed("/e/f")
    assert overlay.mode("/e/f") is None
    overlay.removed("/e", folder=True)
    assert [overlay.mode(p) for p in ("/e", "/e/sub/g", "/dx")] == [None, None, 0o700]
    overlay.forget()
    assert overlay.mode("/dx") is None


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 10)
    overlay = Overlay()
    for number in range(15):
        overlay.set_mode(f"/{number}", 0o600)
    assert [overlay.mode(f"/{number}") for number in (0, 4, 5, 14)] == [None, None, 0o600, 0o600]
