"""A file that somebody has open: one object a file, whatever the number of handles.

Reads come from the version that was opened (:mod:`content`), or from the spool
once the file was written to. The spool begins empty: only what is written goes
there, the rest is still the base version's and is fetched when it is read, or
when the whole is uploaded. So the first write to a large file does not wait.

Threads: any. ``lock`` guards the fields and is held over local disk I/O only,
never over a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from hvbridge.config import MIB
from hvbridge.errors import Changed, FsError, IOFailed
from hvbridge.vfs.content import Content
from hvbridge.vfs.remote import Entry
from hvbridge.vfs.spool import SpoolFile

FILL = MIB
"""Bytes of the base copied into the spool at once."""


class OpenFile:
    """Local state of one open file at ``path``.

    ``entry``: what the client has (``None``: nothing yet). ``open_base``: gives
    the content of that version, called at the first read of it.
    """

    def __init__(
        self,
        path: str,
        entry: Entry | None,
        open_base: Callable[[OpenFile], Content],
        make_spool: Callable[[OpenFile], SpoolFile],
    ) -> None:
        self.path = path
        self.entry = entry
        self.lock = threading.RLock()
        self.handles = 0
        self.closed = False
        """True once the last handle is gone: not to be given out any more."""
        self.size = (entry.size or 0) if entry is not None else 0
        self.mtime_ns: int | None = None
        """Set by a local write or by utimens; ``None``: the entry's."""
        self.mode: int | None = None
        self.version = 0
        """Number of changes; an upload is good for the version that it began with."""
        self.clean_version = 0 if entry is not None else -1
        """The version that the client has."""
        self.unlinked = False
        self.resized = False
        """Its size was another than the listing's when it was opened."""
        self.gone_path: str | None = None
        """Where the client keeps it for us after it was deleted here."""
        self.error: FsError | None = None
        """Why the last upload failed."""
        self.share: object = None
        """Whose file it is: see :mod:`hvbridge.vfs.presence`."""
        self.uploading = threading.Lock()
        self.spool: SpoolFile | None = None
        self._base: Content | None = None
        self._base_size = self._base_end = self.size
        self._open_base, self._make_spool = open_base, make_spool

    @property
    def dirty(self) -> bool:
        """True if the client has not got the newest version."""
        return self.version != self.clean_version and not self.unlinked

    @property
    def untouched(self) -> bool:
        """True while it was only emptied, and nothing was written yet."""
        return self.entry is not None and self.size == 0 and self.version <= 1

    @property
    def is_local(self) -> bool:
        """True if reading it needs the client no more."""
        if self.spool is not None and self._gap() is None:
            return True
        return self.base().complete

    @property
    def missing(self) -> int:
        """Bytes that would have to be fetched, at most."""
        return self.size - self.base().cached_bytes

    def set_aside(self, path: str) -> None:
        """The client keeps it under this hidden name until it is closed."""
        self.gone_path = path
        self.base().path = path

    def put_back(self) -> None:
        """The client has it under its own name again."""
        self.gone_path = None
        self.base().path = self.path

    # --- reading --------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of ``[offset, offset + length)`` that the file has."""
        with self.lock:
            spool = self.spool
            if spool is None:
                base = self.base()
        if spool is None:
            return base.read(offset, length)
        return b"".join(self._pieces(spool, offset, length))

    def _pieces(self, spool: SpoolFile, offset: int, length: int) -> Iterator[bytes]:
        with self.lock:
            end = min(offset + length, self.size)
            base_end = min(self._base_end, end)
        at = offset
        while at < end:
            with self.lock:
                run = min(spool.have.run(at), end)
                if run > at or at >= base_end:
                    # Beyond the base, what nobody wrote is zeros: a hole of the spool.
                    data = self._from_spool(spool, at, run if run > at else end)
                else:
                    gap_end = next(spool.have.gaps(at, base_end))[1]
                    data = b""
            if not data:
                data = self.base().read(at, gap_end - at)
                if len(data) != gap_end - at:
                    raise IOFailed("the client sent less than it announced", self.path)
            yield data
            at += len(data)

    @staticmethod
    def _from_spool(spool: SpoolFile, start: int, end: int) -> bytes:
        data = spool.file.read(start, end - start)
        return data + bytes(end - start - len(data))

    def base(self) -> Content:
        """The version that was opened, held until this file is closed."""
        with self.lock:
            if self._base is not None:
                return self._base
        content = self._open_base(self)
        with self.lock:
            if self._base is not None:
                content.release()
                return self._base
            if content.size != self._base_size:
                content.release()
                raise Changed("it changed on the client", self.path)
            self._base = content
            return content

    def use_base(self, content: Content, entry: Entry) -> None:
        """Read from this version (held by the caller for us), which ``entry`` describes."""
        with self.lock:
            self.resized = content.size != self.size
            self.entry = entry
            self._base = content
            self.size = self._base_size = self._base_end = content.size

    # --- writing --------------------------------------------------------

    def write(self, offset: int, data: bytes) -> int:
        """Write into the spool."""
        with self.lock:
            spool = self.ensure_spool()
            if offset > self.size:
                self._zero(spool, self.size, offset)
            spool.file.write(offset, data)
            spool.have.add(offset, offset + len(data))
            self.size = max(self.size, offset + len(data))
            self._changed()
        return len(data)

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros."""
        with self.lock:
            if size == self.size:
                return
            spool = self.ensure_spool()
            spool.have.remove(size, max(self.size, size))
            if size > self.size:
                self._zero(spool, self.size, size)
            spool.file.truncate(size)
            self._base_end = min(self._base_end, size)
            self.size = size
            self._changed()

    def _zero(self, spool: SpoolFile, start: int, end: int) -> None:
        """``[start, end)`` reads as zeros: a hole, and no longer the base's."""
        self._base_end = min(self._base_end, start)
        spool.file.truncate(end)

    def ensure_spool(self) -> SpoolFile:
        """The spool file, made at the first write."""
        if self.spool is None:
            self.spool = self._make_spool(self)
        return self.spool

    def _changed(self) -> None:
        self.version += 1
        self.mtime_ns = time.time_ns()

    # --- for the upload -------------------------------------------------

    def fill(self) -> None:
        """Fetch what the spool still lacks of the base version.

        Raises :class:`Changed` if that version is no longer to be had.
        """
        with self.lock:
            spool = self.ensure_spool()
        while (gap := self._gap()) is not None:
            start, end = gap[0], min(gap[1], gap[0] + FILL)
            data = self.base().read(start, end - start)
            if not data:
                raise IOFailed("the client sent less than it announced", self.path)
            with self.lock:
                end = min(start + len(data), self._base_end)
                for s, e in list(spool.have.gaps(start, end)):
                    spool.file.write(s, memoryview(data)[s - start : e - start])
                    spool.have.add(s, e)

    def _gap(self) -> tuple[int, int] | None:
        """The first part that only the base version has."""
        with self.lock:
            return next(self.ensure_spool().have.gaps(0, min(self._base_end, self.size)), None)

    def body(self, size: int) -> Iterator[bytes]:
        """The spool's first ``size`` bytes; shorter if it was truncated meanwhile."""
        assert self.spool is not None
        at = 0
        while at < size:
            with self.lock:
                end = min(at + 256 * 1024, size, self.size)
                if end <= at:
                    return
                data = self._from_spool(self.spool, at, end)
            yield data
            at += len(data)

    def discard(self) -> None:
        """It never got a handle: nothing of it is kept."""
        self.unlinked = True
        self.close()

    def close(self) -> None:
        """The last handle is gone; what the client has not got stays in the spool folder."""
        with self.lock:
            base, self._base = self._base, None
            spool, self.spool = self.spool, None
        if base is not None:
            base.release()
        if spool is not None:
            if self.dirty:
                spool.close()
            else:
                spool.remove()
