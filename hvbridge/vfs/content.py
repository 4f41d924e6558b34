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

All versions of a mount are in a :class:`~hvbridge.vfs.contentcache.ContentCache`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

from hvbridge import deadline
from hvbridge.config import KIB, MIB
from hvbridge.errors import Changed, ConnectionLost, FsError, IOFailed, NoSpace, TimedOut
from hvbridge.vfs.extents import Extents
from hvbridge.vfs.remote import Download
from hvbridge.vfs.sparse import SparseFile

if TYPE_CHECKING:
    from hvbridge.vfs.contentcache import ContentCache

log = logging.getLogger(__name__)

REACH = 4 * MIB
"""Where ranges are cheap: how far ahead of a stream a reader still waits for it."""

RANGE = 256 * KIB
"""Bytes of one bounded range: a jump is often followed by a read or two close by."""

BEHIND = 16 * MIB
"""What is kept behind the readers of a file that is larger than the cache."""

KEEP_GOING = 4 * MIB
"""A stream with less than this to go is finished even if its file was closed."""

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
        self._changed = threading.Condition(threading.RLock())
        self._readers: dict[int, int] = {}
        self._floor = 0  # what lies before it was given back, and is not stored again

    @property
    def in_memory(self) -> bool:
        """True if it is small, and here."""
        return self._data is not None

    @property
    def streaming(self) -> bool:
        """True while a stream brings it."""
        return bool(self._streams)

    @property
    def spoilt(self) -> bool:
        """True if this version is no longer to be had."""
        return self._error is not None

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
        stuck = 0
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
                stuck = stuck + 1 if stream.full and self._have.run(start) < end else 0
                if stuck > RETRIES:
                    raise NoSpace("the host's cache is full of what others are reading", self.path)
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
            raise self.spoil(Changed("its size changed on the client", self.path))
        if self.etag is not None and download.etag is not None and download.etag != self.etag:
            raise self.spoil(Changed("it changed on the client", self.path))

    def spoil(self, error: FsError) -> FsError:
        """What is missing of this version will never come: readers get ``error``, which is returned."""
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

    def lacks(self, start: int, end: int) -> bool:
        """True if ``[start, end)`` would be stored: it is not here, nor given back as read already."""
        with self._changed:
            return end > self._floor and not self._have.covers(start, end)

    def give_back(self) -> int:
        """Others need the room: drop all if nobody is reading just now, else what is behind; bytes freed."""
        with self._changed:
            if self._file is None:
                return 0
            if self._readers:
                return self.punch_behind()
            freed = self._have.total
            self._have = Extents()
            self._file.punch(0, self.size)
            self._floor = 0
            return freed

    def cancel_idle(self) -> None:
        """Others need the line: end streams that nobody is waiting for."""
        with self._changed:
            if not self._readers:
                for stream in self._streams:
                    stream.cancel()

    def store(self, stream: _Stream, offset: int, data: bytes) -> None:
        """Called by a stream: ``data`` came for ``offset``."""
        with self._changed:
            if stream.cancelled:
                return
            if self._file is None:
                self._file = SparseFile(self._cache.folder)
            end = offset + len(data)
            if self.lacks(offset, end):
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
        self.full = False
        """It ended since the cache had no room."""
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
        if self._download is None and not cache.enter(cache.limits.silence):
            raise TimedOut("too many files are being read at once", content.path)
        try:
            self._receive(content, cache)
        finally:
            cache.leave()

    def _receive(self, content: Content, cache: ContentCache) -> None:
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
                # What is here already needs no room, and must not end a stream on its way to what is not.
                if content.lacks(at, at + len(piece)) and not cache.reserve(content, at, len(piece)):
                    self.full = True
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
