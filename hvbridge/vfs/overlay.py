"""Times and modes that a share cannot keep, remembered for as long as the mount lives.

``cp -a``, ``rsync -a`` and ``tar`` set them on everything they write; a refusal
makes these tools fail though every byte arrived. So what the server does not
store is shown from here (davfs2 does the same), until the file changes on the
client. Bounded: the oldest notes go first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from hvbridge.vfs import names
from hvbridge.vfs.remote import Entry

KEPT = 100_000
"""Files whose attributes are remembered."""


@dataclass(slots=True)
class _Note:
    mode: int | None = None
    mtime_ns: int | None = None
    version: tuple[str | None, int | None] | None = None
    """(ETag, server's mtime) that ``mtime_ns`` belongs to; ``None`` until first seen."""


class Overlay:
    """Local attributes by path. Thread-safe."""

    def __init__(self) -> None:
        self._notes: OrderedDict[str, _Note] = OrderedDict()
        self._lock = threading.Lock()

    def set_mode(self, path: str, mode: int | None) -> None:
        """Show these permission bits (``None``: the server's)."""
        with self._lock:
            if mode is not None or path in self._notes:
                self._note(path).mode = mode

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        """Show this time until the server tells of a change after the next look."""
        with self._lock:
            note = self._note(path)
            note.mtime_ns, note.version = mtime_ns, None

    def drop_mtime(self, path: str) -> None:
        """The content changed here, and its time with it."""
        with self._lock:
            if (note := self._notes.get(path)) is not None:
                note.mtime_ns = None

    def mode(self, path: str) -> int | None:
        """The permission bits to show, if set here."""
        note = self._notes.get(path)
        return note.mode if note is not None else None

    def mtime(self, path: str, entry: Entry) -> int | None:
        """The time to show for ``entry``, if it was set here and still holds."""
        note = self._notes.get(path)
        if note is None or note.mtime_ns is None:
            return None
        if entry.etag is None and not entry.is_dir:
            return note.mtime_ns  # not looked at since the upload
        # A folder's own time moves with every member: what was set holds for it.
        version = (None, None) if entry.is_dir else (entry.etag, entry.mtime_ns)
        with self._lock:
            if note.version is None:
                note.version = version
            if note.version != version:
                note.mtime_ns = None
            return note.mtime_ns

    def removed(self, path: str, *, folder: bool = False) -> None:
        """The file or (``folder``) the folder is gone, with what was in it."""
        with self._lock:
            self._notes.pop(path, None)
            for known in [p for p in self._notes if names.is_below(p, path)] if folder else []:
                del self._notes[known]

    def moved(self, src: str, dst: str) -> None:
        """``src`` was renamed to ``dst``."""
        with self._lock:
            self._notes.pop(dst, None)
            for known in [p for p in self._notes if p == src or names.is_below(p, src)]:
                self._notes[names.moved(known, src, dst)] = self._notes.pop(known)

    def forget(self) -> None:
        """Another share is there."""
        with self._lock:
            self._notes.clear()

    def _note(self, path: str) -> _Note:
        note = self._notes.get(path)
        if note is None:
            note = self._notes[path] = _Note()
            while len(self._notes) > KEPT:
                self._notes.popitem(last=False)
        return note
