"""What is where: folder listings, kept fresh for a few seconds.

One PROPFIND Depth 1 answers every lookup in a folder, of what is there and of
what is not. Identical requests under way are one; the folders below one that is
being read are fetched before a walk asks for them.

Local changes. A listing that was asked for before a change took effect may
arrive after it, so each change is numbered and patched into listings that are
older than it. After an upload the server's new ETag and time are unknown (phodav
answers PUT with neither): the entry is *unconfirmed* until somebody looks, and
then costs one PROPFIND Depth 0. So a program that writes a thousand files pays
nothing, and one that saves and looks again (an editor) sees the time that stays.

Threads: any. The lock guards tables only and is never held over a request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from hvbridge import deadline
from hvbridge.config import Limits
from hvbridge.errors import FsError, NotDirectory, NotFound
from hvbridge.vfs import names
from hvbridge.vfs.flights import Flights
from hvbridge.vfs.remote import Entry, Listing, Remote

log = logging.getLogger(__name__)

LARGE = 2000
"""Entries from which a stale folder is not listed again for the sake of one lookup."""

KNOWN = 500_000
"""Entries kept in all; the folders used longest ago are forgotten first."""

RECENT = 0.5
"""Seconds that a listing is good enough to delete by."""

AHEAD = 24
"""Subfolders fetched ahead of one that is read."""

ROOT = Entry("", is_dir=True)


@dataclass(slots=True)
class _Folder:
    entries: dict[str, Entry]
    asked_at: float
    """When its listing was asked for (not when it came)."""
    self_entry: Entry = ROOT
    dropped: int = 0
    """Members that the client has and that cannot be shown."""
    singles: dict[str, tuple[Entry | None, float]] = field(default_factory=dict)
    """Entries looked at one by one since, with the time."""


class Tree:
    """Cached listings of a share. ``clock``: monotonic seconds; ``on_top`` sees each new
    listing of the share's top folder."""

    def __init__(
        self,
        remote: Remote,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_top: Callable[[Listing], None] = lambda listing: None,
    ) -> None:
        self._remote, self._limits, self._clock, self._on_top = remote, limits, clock, on_top
        self._lock = threading.Lock()
        self._folders: OrderedDict[str, _Folder] = OrderedDict()
        self._changes: dict[str, dict[str, tuple[int, Entry | None]]] = {}
        self._unconfirmed: set[str] = set()
        self._sequence = 0
        self._stored = 0  # entries stored since the last eviction: an upper bound of those held
        self._flights = Flights()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="hvbridge-ahead")

    # --- looking --------------------------------------------------------

    def lookup(self, path: str, *, confirmed: bool = True) -> Entry:
        """The entry of ``path``. Raises :class:`NotFound`, :class:`NotDirectory`.

        ``confirmed`` false: what an upload of our own left will do, without the
        server's ETag and time.
        """
        if confirmed and path in self._unconfirmed:
            return self.confirm(path)
        parent, name = names.split(path)
        if not name:
            return self._root_entry()
        entry = self._cached(parent, name)
        if entry is None:
            raise NotFound("no such file or folder", path)
        return entry

    def list(self, path: str, *, newest: bool = False) -> tuple[Entry, ...]:
        """All entries of a folder; ``newest`` asks the client even if the cache is fresh."""
        folder = None if newest else self._fresh(path)
        if folder is None:
            folder = self._fetch(path)
        with self._lock:
            entries = tuple(folder.entries.values())
        self._fetch_ahead(path, entries)
        return entries

    def known(self, path: str) -> tuple[float, tuple[Entry, ...]] | None:
        """A folder's entries if its listing is fresh, with the time it is of; asks nobody."""
        folder = self._fresh(path)
        if folder is None:
            return None
        with self._lock:
            return folder.asked_at, tuple(folder.entries.values())

    def newest(self, path: str) -> Entry:
        """The entry as the client tells it now, or told it within :data:`RECENT` seconds.

        For what is about to be destroyed: a folder may stand where a file was listed.
        """
        parent, name = names.split(path)
        with self._lock:
            folder = self._folders.get(parent)
            entry = folder.entries.get(name) if folder is not None else None
            recent = folder is not None and self._clock() - folder.asked_at < RECENT
        if entry is not None and recent:
            return entry
        return self.confirm(path)

    def is_empty(self, path: str) -> bool:
        """Whether a folder has no members, as the client tells it now; those that cannot be shown count."""
        folder = self._fetch(path)
        with self._lock:
            return not folder.entries and not folder.dropped

    def confirm(self, path: str) -> Entry:
        """Ask the client for one entry now. Raises :class:`NotFound`."""

        def ask() -> Entry | None:
            seq = self._sequence
            try:
                entry: Entry | None = self._remote.stat(path)
            except NotFound:
                entry = None
            self._learn(path, entry, seq)
            return entry

        entry = self._flights.do(("stat", path), ask)
        if entry is None:
            raise NotFound("no such file or folder", path)
        return entry

    def _root_entry(self) -> Entry:
        folder = self._fresh("/")
        return folder.self_entry if folder is not None else self._fetch("/").self_entry

    def _cached(self, parent: str, name: str) -> Entry | None:
        folder = self._fresh(parent)
        if folder is not None:
            with self._lock:
                return folder.entries.get(name)
        with self._lock:
            stale = self._folders.get(parent)
            single = stale.singles.get(name) if stale else None
            large = stale is not None and len(stale.entries) > LARGE
        if single is not None and self._clock() - single[1] < self._limits.fresh:
            return single[0]
        if large:
            try:
                return self.confirm(names.join(parent, name))
            except NotFound:
                return None
        return self._fetch(parent).entries.get(name)

    def _fresh(self, path: str) -> _Folder | None:
        with self._lock:
            folder = self._folders.get(path)
            if folder is None or self._clock() - folder.asked_at >= self._limits.fresh:
                return None
            self._folders.move_to_end(path)
            return folder

    # --- fetching -------------------------------------------------------

    def _fetch(self, path: str) -> _Folder:
        return self._flights.do(("list", path), lambda: self._ask(path))

    def _ask(self, path: str) -> _Folder:
        asked_at = self._clock()
        with self._lock:
            seq = self._sequence
        try:
            listing = self._remote.list(path)
        except (NotFound, NotDirectory):
            with self._lock:
                self._folders.pop(path, None)
            raise
        if path == "/":
            self._on_top(listing)
        return self._store(path, listing, asked_at, seq)

    def _store(self, path: str, listing: Listing, asked_at: float, seq: int) -> _Folder:
        folder = _Folder({e.name: e for e in listing.entries}, asked_at, listing.folder, listing.dropped)
        with self._lock:
            changes = self._changes.get(path, {})
            for name, (changed_seq, entry) in list(changes.items()):
                if changed_seq > seq:
                    _put(folder.entries, name, entry)
                else:
                    del changes[name]
                    self._unconfirmed.discard(names.join(path, name))
            if not changes:
                self._changes.pop(path, None)
            self._folders[path] = folder
            self._folders.move_to_end(path)
            self._stored += len(folder.entries) + 1
            if self._stored > KNOWN:
                self._evict()
        return folder

    def _evict(self) -> None:
        total = sum(len(f.entries) + 1 for f in self._folders.values())
        while total > KNOWN // 2 and len(self._folders) > 1:
            _, gone = self._folders.popitem(last=False)
            total -= len(gone.entries) + 1
        self._stored = total

    def _fetch_ahead(self, path: str, entries: tuple[Entry, ...]) -> None:
        wanted = 0
        for entry in entries:
            below = names.join(path, entry.name)
            if entry.is_dir and ("list", below) not in self._flights and self._fresh(below) is None:
                self._pool.submit(self._ahead, below)
                wanted += 1
                if wanted == AHEAD:
                    break

    def _ahead(self, path: str) -> None:
        if self._fresh(path) is not None:
            return
        try:
            with deadline.within(self._limits.request):
                self._fetch(path)
        except FsError as exc:
            log.debug("fetching ahead: %s", exc)

    # --- changes made here ----------------------------------------------

    def note(self, path: str, entry: Entry | None, *, confirmed: bool = True) -> None:
        """``path`` is now ``entry`` (``None``: gone), by our own doing."""
        parent, name = names.split(path)
        with self._lock:
            self._sequence += 1
            self._changes.setdefault(parent, {})[name] = (self._sequence, entry)
            if (folder := self._folders.get(parent)) is not None:
                _put(folder.entries, name, entry)
                folder.singles.pop(name, None)
            if entry is None or not entry.is_dir:
                self._folders.pop(path, None)
            if confirmed:
                self._unconfirmed.discard(path)
            else:
                self._unconfirmed.add(path)

    def note_new_folder(self, path: str, entry: Entry) -> None:
        """A folder that we just made: its listing is known, it is empty."""
        self.note(path, entry)
        with self._lock:
            self._folders[path] = _Folder({}, self._clock(), entry)

    def note_moved(self, src: str, dst: str, entry: Entry) -> None:
        """``src`` was renamed to ``dst``; what was at ``dst`` is gone."""
        unconfirmed = src in self._unconfirmed
        with self._lock:
            moving = [p for p in self._folders if p == src or names.is_below(p, src)]
            below = {path: self._folders.pop(path) for path in moving}
        self.note(dst, None)
        self.note(src, None)
        self.note(dst, replace(entry, name=names.split(dst)[1]), confirmed=not unconfirmed)
        with self._lock:
            for path, folder in below.items():
                self._folders[names.moved(path, src, dst)] = folder

    def forget(self, path: str | None = None) -> None:
        """Drop a folder's listing, or (``None``) everything: another client is there."""
        with self._lock:
            if path is not None:
                self._folders.pop(path, None)
                return
            self._folders.clear()
            self._changes.clear()
            self._unconfirmed.clear()
            self._sequence += 1

    def close(self) -> None:
        """Stop fetching ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _learn(self, path: str, entry: Entry | None, seq: int) -> None:
        """What a request for one entry told; ``seq``: the last change before it was sent."""
        parent, name = names.split(path)
        with self._lock:
            changed_seq, _ = self._changes.get(parent, {}).get(name, (0, None))
            if changed_seq > seq:
                return
            self._unconfirmed.discard(path)
            if (folder := self._folders.get(parent)) is not None and name:
                _put(folder.entries, name, entry)
                folder.singles[name] = (entry, self._clock())


def _put(entries: dict[str, Entry], name: str, entry: Entry | None) -> None:
    if entry is None:
        entries.pop(name, None)
    else:
        entries[name] = entry
