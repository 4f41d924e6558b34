"""All cached content of a mount, and the room that it may take.

Small files are kept in memory, larger ones in sparse files that have no name. Both
are bounded: content that nobody has open is dropped, longest unused first; of a file
larger than the cache, what lies behind its readers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from hvbridge import deadline
from hvbridge.config import Limits
from hvbridge.errors import Changed, IOFailed
from hvbridge.vfs import names
from hvbridge.vfs.content import Content
from hvbridge.vfs.flights import Flights
from hvbridge.vfs.remote import Entry, Remote

OTHERS = 4
"""Connections that content leaves to listings, changes and small files."""

VERSIONS = 4096
"""Versions known at once; the larger ones hold a file descriptor each."""


class ContentCache:
    """All cached content of a mount. ``limit``: bytes on disk in ``folder``."""

    def __init__(self, remote: Remote, folder: Path, limits: Limits, limit: int) -> None:
        self.remote, self.folder, self.limits, self.limit = remote, folder, limits, limit
        self._known: OrderedDict[tuple[str, str, int], Content] = OrderedDict()
        self._loose: set[Content] = set()
        """Held content that cannot be found again: without an ETag, or of a version that is gone."""
        self._places = threading.BoundedSemaphore(max(1, limits.streams - OTHERS))
        self._lock = threading.RLock()
        self._flights = Flights()
        self._reserved = 0  # bytes on disk, at most
        self._memory = 0  # bytes of small content

    @property
    def ranges_are_cheap(self) -> bool:
        """Whether a ranged GET does not cost the server the whole file."""
        return self.remote.traits.ranges is True

    def open(self, path: str, entry: Entry) -> Content:
        """The content of this version of ``path``, held; nothing is fetched yet."""
        with self._lock:
            content = self._find(path, entry.etag, entry.size or 0)
            content.hold()
            return content

    def begin(self, path: str, entry: Entry) -> Content:
        """As :meth:`open`, but ask the client now, and take the version that it has.

        One round trip, which the first read then need not make: small files are
        there in whole, of others the stream has begun.
        """
        with self._lock:
            known = self._known.get(_key(path, entry))
            if known is not None and (known.complete or known.streaming):
                known.hold()
                return known
        content = self._flights.do(_key(path, entry), lambda: self._ask(path, entry))
        content.hold()
        return content

    def ahead(self, path: str, entry: Entry) -> None:
        """Fetch a small file that somebody will soon open."""
        if _key(path, entry) not in self._known:
            self._flights.do(_key(path, entry), lambda: self._ask(path, entry))

    def _ask(self, path: str, entry: Entry) -> Content:
        with deadline.within(self.limits.request):
            download = self.remote.get(path)
            size = download.size if download.size is not None else entry.size
            if size is None:
                download.close()
                raise IOFailed("the client does not tell the file's size", path)
            with self._lock:
                content = self._find(path, download.etag or entry.etag, size)
            if content.size > self.limits.small_file and not content.complete:
                if self.enter(0):
                    content.adopt(download)
                else:
                    download.close()  # many are under way: it is asked for again when it is read
                return content
            try:
                if not content.in_memory:
                    content.fill(download)
            finally:
                download.close()
            return content

    def _find(self, path: str, etag: str | None, size: int) -> Content:
        if etag is None:
            loose = Content(self, path, None, size)  # no validator, nothing to share
            self._loose.add(loose)
            return loose
        key = (path, etag, size)
        content = self._known.get(key)
        if content is None or content.spoilt:
            content = self._known[key] = Content(self, path, etag, size)
            if len(self._known) > VERSIONS and (victim := self._unused(small=None)) is not None:
                self._forget(victim)
        self._known.move_to_end(key)
        return content

    def one_fetch(self, content: Content, work: Callable[[], None]) -> None:
        """One small fetch of a content at a time; the others wait for it."""
        self._flights.do(id(content), work)

    # --- room -----------------------------------------------------------

    def reserve(self, content: Content, offset: int, size: int) -> bool:
        """Make room for ``size`` bytes at ``offset`` of ``content``; false if there is none to be made."""
        with self._lock:
            self._reserved += size
            if self._reserved <= self.limit:
                return True
            self._reserved = sum(c.cached_bytes for c in self._live()) + size
            while self._reserved > self.limit and (victim := self._unused(small=False)) is not None:
                self._reserved -= victim.cached_bytes
                self._forget(victim)
            if self._reserved > self.limit:
                self._reserved -= content.punch_behind()
            if self._reserved > self.limit:
                self._reserved -= content.punch_beyond(offset + size)
            for other in self._live() if self._reserved > self.limit else ():
                if other is not content:
                    self._reserved -= other.give_back()
            return self._reserved <= self.limit

    def _live(self) -> list[Content]:
        return [*self._known.values(), *self._loose]

    def enter(self, seconds: float) -> bool:
        """Take one of the connections that content may use at once; false if none is free in time.

        The others are for everything else: a dozen large files that are open must not
        keep anybody from listing a folder.
        """
        if self._places.acquire(blocking=False):
            return True
        with self._lock:
            live = self._live()
        for content in live:
            content.cancel_idle()
        return self._places.acquire(timeout=seconds) if seconds > 0 else False

    def leave(self) -> None:
        """Give it back."""
        self._places.release()

    def account(self, content: Content) -> None:
        """A small file came into memory: drop others if it is too much."""
        with self._lock:
            if not self._is_known(content):
                return  # goes with its handle
            self._memory += content.size
            while self._memory > self.limits.memory_cache:
                if (victim := self._unused(small=True)) is None or victim is content:
                    break
                self._forget(victim)

    def _unused(self, *, small: bool | None) -> Content | None:
        """The content unused for longest: small, not small, or (``None``) either."""
        for content in self._known.values():
            if content.holders <= 0 and (small is None or content.in_memory is small):
                return content
        return None

    def _forget(self, content: Content) -> None:
        self.drop(content)
        if content.in_memory:
            self._memory -= content.size
        content.close()

    # --- changes --------------------------------------------------------

    def drop(self, content: Content) -> None:
        """This version shall not be found again; who holds it keeps it."""
        with self._lock:
            for key in [k for k, c in self._known.items() if c is content]:
                del self._known[key]
            if content.holders > 0:
                self._loose.add(content)

    def released(self, content: Content) -> None:
        """Nobody holds it: close it unless it can be found again."""
        with self._lock:
            known = self._is_known(content)
            self._loose.discard(content)
        if not known:
            content.close()

    def _is_known(self, content: Content) -> bool:
        return self._known.get((content.path, content.etag or "", content.size)) is content

    def moved(self, src: str, dst: str) -> None:
        """``src`` was renamed to ``dst``."""
        with self._lock:
            for key in [k for k in self._known if k[0] == src or names.is_below(k[0], src)]:
                content = self._known.pop(key)
                content.path = names.moved(content.path, src, dst)
                self._known[(content.path, key[1], key[2])] = content
            for content in self._loose:
                content.path = names.moved(content.path, src, dst)

    def forget(self) -> None:
        """Another client is there: nothing cached is of use."""
        with self._lock:
            contents, self._known = self._live(), OrderedDict()
            self._loose = {content for content in contents if content.holders > 0}
            self._memory = 0
        for content in contents:
            if content.holders <= 0:
                content.close()
            else:
                content.spoil(Changed("another client is connected", content.path))

    def usage(self) -> tuple[int, int]:
        """(bytes, files) held now."""
        with self._lock:
            live = self._live()
            return sum(c.cached_bytes for c in live), len(live)


def _key(path: str, entry: Entry) -> tuple[str, str, int]:
    """What a version is found by."""
    return path, entry.etag or "", entry.size or 0
