"""The content of files, one version at a time, cached under the ETag that it came with.

How content is fetched follows what the server's answers cost. phodav flattens
the whole file for a ranged GET (2 GB of memory for 4 KiB out of 1 GiB), yet
streams whole files at line speed: there one streaming GET fills a sparse file,
and reads are served as soon as the stream has passed them, never after the whole
download. Where ranges are cheap, a stream starts where the reader is, and jumps
are single bounded ranges.

Small files are one GET in the reader's own thread and stay in memory. Content is
never mixed: an answer with another ETag or size ends the version, and readers of
it get :class:`~hvbridge.errors.Changed`, not wrong bytes.

The disk is bounded: content that nobody has open is dropped, longest unused
first; of a file larger than the cache, what lies behind its readers.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from hvbridge import deadline
from hvbridge.config import KIB, MIB, Limits
from hvbridge.errors import Changed, ConnectionLost, FsError, IOFailed, NoSpace, TimedOut
from hvbridge.vfs import names
from hvbridge.vfs.extents import Extents
from hvbridge.vfs.flights import Flights
from hvbridge.vfs.remote import Download, Entry, Remote
from hvbridge.vfs.sparse import SparseFile

log = logging.getLogger(__name__)

REACH = 4 * MIB
"""Where ranges are cheap: how far ahead of a stream a reader still waits for it."""

RANGE = 256 * KIB
"""Bytes of one bounded range: a jump is often followed by a read or two close by."""

BEHIND = 16 * MIB
"""What is kept behind the readers of a file that is larger than the cache."""

KEEP_GOING = 4 * MIB
"""A stream with less than this to go is finished even if its file was closed."""

VERSIONS = 4096
"""Versions known at once; the larger ones hold a file descriptor each."""

RETRIES = 2
"""Attempts after a connection that went in the middle of a transfer."""


class Content:
    """One version of one file: ``size`` bytes under ``etag``."""

    def __init__(self, cache: ContentCache, path: str, etag: str | None, size: int) -> None:
        self.path, self.etag, self.size = path, etag, size
        self.holders = 0
        self._cache = cache
        self._data: bytes | None = b"" if size == 0 else None
        self._file: SparseFile | None = None
        self._have = Extents()
        self._streams: list[_Stream] = []
        self._error: FsError | None = None
        self._changed = threading.Condition()
        self._readers: dict[int, int] = {}
        self._floor = 0  # what lies before it was given back, and is not stored again

    # --- reading --------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes of ``[offset, offset + length)`` that the file has.

        Waits for the client as long as its stream advances. Raises
        :class:`Changed`, :class:`TimedOut`, :class:`IOFailed` and the like.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        for attempt in range(RETRIES + 1):
            self._readers[threading.get_ident()] = offset
            try:
                self._ensure(offset, end)
                with self._changed:
                    if (data := self._take(offset, end)) is not None:
                        return data
            except ConnectionLost:
                if attempt == RETRIES:
                    raise
            finally:
                self._readers.pop(threading.get_ident(), None)
        raise NoSpace("the host's cache is too small for this file", self.path)

    @property
    def complete(self) -> bool:
        """True if reading needs the client no more."""
        return self._data is not None or self._have.covers(0, self.size)

    @property
    def cached_bytes(self) -> int:
        """Bytes held on disk or in memory."""
        return len(self._data) if self._data is not None else self._have.total

    def _take(self, start: int, end: int) -> bytes | None:
        if self._data is not None:
            return self._data[start:end]
        if self._file is None or not self._have.covers(start, end):
            return None
        data = self._file.read(start, end - start)
        if len(data) != end - start:
            raise IOFailed("the host's cache lost data", self.path)
        return data

    # --- waiting --------------------------------------------------------

    def _ensure(self, start: int, end: int) -> None:
        """Return when ``[start, end)`` is here, as long as the client keeps sending."""
        limits = self._cache.limits
        began = progress_at = time.monotonic()
        front = -1
        while not self._here(start, end):
            if self.size <= limits.small_file:
                self._cache.one_fetch(self, self._fetch_small_now)
                continue
            with self._changed:
                if self._here(start, end):
                    return
                stream = self._stream_past(start)
                if stream.front != front:
                    front, progress_at = stream.front, time.monotonic()
                if not stream.over:
                    self._changed.wait(0.25)
            now = time.monotonic()
            if now - progress_at > limits.silence or now - began > limits.transfer(end):
                raise TimedOut("the client stopped sending", self.path)

    def _here(self, start: int, end: int) -> bool:
        if self._data is not None or self._have.covers(start, end):
            return True
        if self._error is not None:
            raise self._error
        return False

    def _stream_past(self, start: int) -> _Stream:
        """The stream that brings the first byte missing from ``start`` on; begun if there is none."""
        gap = self._have.run(start)
        self._floor = min(self._floor, gap)
        stream = self._stream_for(gap) or self._start(gap)
        if stream.error is not None:
            self._streams.remove(stream)
            raise stream.error
        return stream

    def _stream_for(self, gap: int) -> _Stream | None:
        self._streams = [s for s in self._streams if not s.over or s.error]
        for stream in self._streams:
            reach = REACH if self._cache.ranges_are_cheap else self.size
            if stream.front <= gap < stream.stop and gap - stream.front <= reach:
                return stream
        return None

    def _start(self, gap: int) -> _Stream:
        """A stream that will pass ``gap``: from there, or (no cheap ranges) the whole file."""
        stop = self.size
        if not self._cache.ranges_are_cheap:
            start = 0
        else:
            start = gap
            if gap and not self._have.covers(gap - 1, gap):
                start = gap - gap % (64 * KIB)  # a jump: one bounded range, aligned
                stop = min(start + RANGE, self.size)
        stream = _Stream(self, start, stop)
        self._streams.append(stream)
        stream.begin()
        return stream

    def _fetch_small_now(self) -> None:
        if self._data is not None:
            return
        with deadline.within(self._cache.limits.request):
            download = self._cache.remote.get(self.path)
            try:
                self._check(download)
                self.fill(download)
            finally:
                download.close()

    def fill(self, download: Download) -> None:
        """Take a small file's body into memory."""
        pieces, held = [], 0
        for piece in download:
            held += len(piece)
            if held > self.size:
                raise IOFailed("the client sent more than it announced", self.path)
            pieces.append(piece)
        if held != self.size:
            raise IOFailed("the client sent less than it announced", self.path)
        self._data = b"".join(pieces)
        self._cache.account(self)

    def adopt(self, download: Download) -> None:
        """Go on with an answer to GET that is under way, from its start."""
        with self._changed:
            stream = _Stream(self, download.start, self.size, download)
            self._streams.append(stream)
            stream.begin()

    def _check(self, download: Download) -> None:
        if download.size is not None and download.size != self.size:
            raise self._spoil(Changed("its size changed on the client", self.path))
        if self.etag is not None and download.etag is not None and download.etag != self.etag:
            raise self._spoil(Changed("it changed on the client", self.path))

    def _spoil(self, error: FsError) -> FsError:
        self._error = error
        self._cache.drop(self)
        return error

    # --- life -----------------------------------------------------------

    def hold(self) -> None:
        """One more handle reads this version."""
        with self._changed:
            if self.holders <= 0:  # how earlier readers' streams ended is not the new one's concern
                self._streams = [s for s in self._streams if not s.over]
            self.holders += 1

    def release(self) -> None:
        """One handle less; the last one cancels streams that still have far to go."""
        with self._changed:
            self.holders -= 1
            unused = self.holders <= 0
            if unused:
                for stream in self._streams:
                    if stream.stop - stream.front > KEEP_GOING:
                        stream.cancel()
        if unused:
            self._cache.released(self)

    def close(self) -> None:
        """Free the memory and the disk space."""
        with self._changed:
            for stream in self._streams:
                stream.cancel()
            if self._file is not None:
                self._file.close()
                self._file = None
            self._have = Extents()
            self._data = b"" if self.size == 0 else None

    def punch_behind(self) -> int:
        """Drop what lies behind all readers; bytes freed."""
        with self._changed:
            if self._file is None:
                return 0
            behind = min(BEHIND, self._cache.limit // 4)
            keep_from = max(0, min(self._readers.values(), default=0) - behind)
            before = self._have.total
            self._have.remove(0, keep_from)
            self._file.punch(0, keep_from)
            self._floor = keep_from
            return before - self._have.total

    def punch_beyond(self, front: int) -> int:
        """Drop what lies beyond ``front``, which a reader is nearer to; bytes freed."""
        with self._changed:
            if self._file is None or not any(at < front for at in self._readers.values()):
                return 0
            before = self._have.total
            self._have.remove(front, self.size)
            self._file.punch(front, self.size)
            return before - self._have.total

    def store(self, stream: _Stream, offset: int, data: bytes) -> None:
        """Called by a stream: ``data`` came for ``offset``."""
        with self._changed:
            if stream.cancelled:
                return
            if self._file is None:
                self._file = SparseFile(self._cache.folder)
            end = offset + len(data)
            if end > self._floor and not self._have.covers(offset, end):
                self._file.write(offset, data)
                self._have.add(offset, end)
            stream.front = end
            self._changed.notify_all()

    def wake(self) -> None:
        """Called by a stream: its state changed."""
        with self._changed:
            self._changed.notify_all()


class _Stream:
    """One GET under way, in a thread of its own, filling a :class:`Content`."""

    _numbers = itertools.count(1)

    def __init__(self, content: Content, start: int, stop: int, download: Download | None = None) -> None:
        self.content = content
        self.start, self.front, self.stop = start, start, stop
        self.over = self.cancelled = False
        self.error: FsError | None = None
        self._download = download

    def begin(self) -> None:
        """Start the thread."""
        name = f"hvbridge-get-{next(self._numbers)}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def cancel(self) -> None:
        """Stop soon: the client is told after the piece under way."""
        self.cancelled = True

    def _run(self) -> None:
        try:
            self._transfer()
        except FsError as exc:
            if not self.cancelled:
                self.error = exc
        except Exception as exc:  # a bug must wake the readers, too
            log.exception("downloading %r", self.content.path)
            self.error = IOFailed(f"internal error: {exc}", self.content.path)
        finally:
            if self.error is not None:
                log.info("download: %s", self.error)
            self.over = True
            self.content.wake()

    def _transfer(self) -> None:
        content = self.content
        cache = content._cache
        download = self._download or self._ask()
        try:
            if download.start > self.start:
                raise IOFailed("the client sent another range than asked for", content.path)
            content._check(download)
            at = self.front = download.start
            for piece in download:
                if self.cancelled:
                    return
                if at + len(piece) > content.size:
                    raise IOFailed("the client sent more than it announced", content.path)
                if not cache.reserve(content, at, len(piece)):
                    return  # readers go on with what there is, and start another when they need it
                content.store(self, at, piece)
                at += len(piece)
        finally:
            download.close()
        if at < self.stop:
            raise IOFailed("the client sent less than it announced", content.path)

    def _ask(self) -> Download:
        content = self.content
        if self.start == 0 and self.stop == content.size:
            return content._cache.remote.get(content.path)
        return content._cache.remote.get(content.path, self.start, self.stop)


class ContentCache:
    """All cached content of a mount. ``limit``: bytes on disk in ``folder``."""

    def __init__(self, remote: Remote, folder: Path, limits: Limits, limit: int) -> None:
        self.remote, self.folder, self.limits, self.limit = remote, folder, limits, limit
        self._known: OrderedDict[tuple[str, str, int], Content] = OrderedDict()
        self._lock = threading.RLock()
        self._flights = Flights()
        self._fetching: dict[int, threading.Lock] = {}
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
            known = self._known.get((path, entry.etag or "", entry.size or 0))
            if known is not None and (known.complete or known._streams):
                known.hold()
                return known
        content = self._flights.do((path, entry.etag, entry.size), lambda: self._ask(path, entry))
        content.hold()
        return content

    def ahead(self, path: str, entry: Entry) -> None:
        """Fetch a small file that somebody will soon open."""
        if (path, entry.etag or "", entry.size or 0) not in self._known:
            self._flights.do((path, entry.etag, entry.size), lambda: self._ask(path, entry))

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
                content.adopt(download)
                return content
            try:
                if content._data is None:
                    content.fill(download)
            finally:
                download.close()
            return content

    def _find(self, path: str, etag: str | None, size: int) -> Content:
        if etag is None:
            return Content(self, path, None, size)  # no validator, nothing to share
        key = (path, etag, size)
        content = self._known.get(key)
        if content is None or content._error is not None:
            content = self._known[key] = Content(self, path, etag, size)
            if len(self._known) > VERSIONS and (victim := self._unused(small=None)) is not None:
                self._forget(victim)
        self._known.move_to_end(key)
        return content

    def one_fetch(self, content: Content, work: Callable[[], None]) -> None:
        """One small fetch of a content at a time; the others wait for it."""
        with self._lock:
            lock = self._fetching.setdefault(id(content), threading.Lock())
        if not lock.acquire(timeout=deadline.remaining(self.limits.operation) or 0.001):
            raise TimedOut("the client did not answer in time", content.path)
        try:
            work()
        finally:
            lock.release()
            with self._lock:
                self._fetching.pop(id(content), None)

    # --- room -----------------------------------------------------------

    def reserve(self, content: Content, offset: int, size: int) -> bool:
        """Make room for ``size`` bytes at ``offset`` of ``content``; false if there is none to be made."""
        with self._lock:
            self._reserved += size
            if self._reserved <= self.limit:
                return True
            self._reserved = sum(c.cached_bytes for c in self._known.values()) + size
            while self._reserved > self.limit and (victim := self._unused(small=False)) is not None:
                self._reserved -= victim.cached_bytes
                self._forget(victim)
            if self._reserved > self.limit:
                self._reserved -= content.punch_behind()
            if self._reserved > self.limit:
                self._reserved -= content.punch_beyond(offset + size)
            return self._reserved <= self.limit

    def account(self, content: Content) -> None:
        """A small file came into memory: drop others if it is too much."""
        with self._lock:
            self._memory += content.size
            while self._memory > self.limits.memory_cache:
                if (victim := self._unused(small=True)) is None or victim is content:
                    break
                self._forget(victim)

    def _unused(self, *, small: bool | None) -> Content | None:
        """The content unused for longest: small, not small, or (``None``) either."""
        for content in self._known.values():
            if content.holders <= 0 and (small is None or (content._data is not None) is small):
                return content
        return None

    def _forget(self, content: Content) -> None:
        self.drop(content)
        if content._data is not None:
            self._memory -= content.size
        content.close()

    # --- changes --------------------------------------------------------

    def drop(self, content: Content) -> None:
        """This version shall not be found again; who holds it keeps it."""
        with self._lock:
            for key in [k for k, c in self._known.items() if c is content]:
                del self._known[key]

    def released(self, content: Content) -> None:
        """Nobody holds it: close it unless it can be found again."""
        with self._lock:
            known = self._known.get((content.path, content.etag or "", content.size)) is content
        if not known:
            content.close()

    def moved(self, src: str, dst: str) -> None:
        """``src`` was renamed to ``dst``."""
        with self._lock:
            for key in [k for k in self._known if k[0] == src or names.is_below(k[0], src)]:
                content = self._known.pop(key)
                content.path = names.moved(content.path, src, dst)
                self._known[(content.path, key[1], key[2])] = content

    def forget(self) -> None:
        """Another client is there: nothing cached is of use."""
        with self._lock:
            contents, self._known = list(self._known.values()), OrderedDict()
            self._memory = 0
        for content in contents:
            if content.holders <= 0:
                content.close()
            else:
                content._error = Changed("another client is connected", content.path)

    def usage(self) -> tuple[int, int]:
        """(bytes, files) held now."""
        with self._lock:
            return sum(c.cached_bytes for c in self._known.values()), len(self._known)
