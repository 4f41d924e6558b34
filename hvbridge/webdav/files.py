"""File objects of the fsspec filesystem: readers that seek, writers that commit whole or not at all."""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from webdav4.fsspec import UploadFile

from hvbridge.config import MIB
from hvbridge.errors import Changed, IOFailed
from hvbridge.webdav.download import WebdavDownload
from hvbridge.webdav.remote import WebdavRemote

if TYPE_CHECKING:
    from hvbridge.webdav.fs import HvbridgeFileSystem

log = logging.getLogger(__name__)

SKIP = MIB
"""Bytes that a forward seek reads and drops, rather than asking anew."""

SMALL = 8 * MIB
"""Size of a file up to which a range is cheap on any server (phodav: in proportion to the file, 25 ms)."""

IN_MEMORY = 8 * MIB
"""Bytes of a spooled file that are kept in memory; the rest goes to an unlinked temporary file."""


class RemoteReader(io.RawIOBase):
    """One file, read as one streaming GET as long as it is read in order.

    A seek elsewhere asks for the rest by a range where that is cheap. Where a range
    costs the server the whole file, time and memory, the whole file is streamed
    once more, into a temporary file that all later reads are served from. Everything
    comes from one version of the file: :class:`Changed` if its ETag becomes another.
    """

    def __init__(self, remote: WebdavRemote, path: str) -> None:
        super().__init__()
        self._remote, self._path = remote, path
        self._at = 0
        self._spool: IO[bytes] | None = None
        self._spooled = 0
        self._download = remote.get(path)
        self._etag = self._download.etag
        told = self._download.size
        self.size: int = told if told is not None else remote.stat(path).size or 0
        self._attach(self._download)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; nothing is asked for before the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("seek before the start of the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As :meth:`io.RawIOBase.readinto`. Raises :class:`~hvbridge.errors.FsError`."""
        view = memoryview(buffer).cast("B")
        data = self._read_at(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Cancel what is still coming."""
        if not self.closed:
            self._download.close()
            if self._spool is not None:
                self._spool.close()
        super().close()

    def _read_at(self, at: int, most: int) -> bytes:
        if at >= self.size or most == 0:
            return b""
        if self._spool is None and at != self._stream_at:
            self._jump(at)
        if self._spool is not None:
            return self._spool_read(self._spool, at, most)
        return self._next(most)

    def _jump(self, at: int) -> None:
        if 0 < at - self._stream_at <= SKIP:
            while self._stream_at < at and self._next(at - self._stream_at):
                pass
        elif self._remote.traits.ranges or self.size <= SMALL:
            self._attach(self._same(self._remote.get(self._path, at, self.size)))
        else:
            self._attach(self._same(self._remote.get(self._path)))
        if self._stream_at != at:  # the server has no ranges, or they are dear
            self._spool = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115

    def _same(self, download: WebdavDownload) -> WebdavDownload:
        self._download.close()
        self._download = download
        if download.etag != self._etag:
            download.close()
            raise Changed("it has changed on the client while it was read", self._path)
        return download

    def _attach(self, download: WebdavDownload) -> None:
        self._pieces: Iterator[bytes] = iter(download)
        self._left = b""
        self._stream_at = download.start

    def _next(self, most: int) -> bytes:
        """The next bytes of the stream; empty at its end."""
        data = self._left or next(self._pieces, b"")
        data, self._left = data[:most], data[most:]
        self._stream_at += len(data)
        if not data and self._stream_at < self.size:
            raise IOFailed("the file is shorter than the client said", self._path)
        return data

    def _spool_read(self, spool: IO[bytes], at: int, most: int) -> bytes:
        end = min(at + most, self.size)
        spool.seek(self._spooled)
        while self._spooled < end:
            piece = self._next(SKIP)
            spool.write(piece)
            self._spooled += len(piece)
        spool.seek(at)
        return spool.read(end - at)


class WholeUpload(UploadFile):  # type: ignore[misc]  # webdav4 has no type marker
    """A file written here and committed at :meth:`close`: the client has all of it, or what it had.

    Nothing is committed if it is closed because of an exception, be it by a
    ``with`` block of its own, of :func:`fsspec.open` or of a text wrapper. The
    latter two do not pass the exception on; but it is the one being handled by
    then, and was not yet when the file was opened.
    """

    def __init__(
        self,
        fs: HvbridgeFileSystem,
        path: str,
        mode: str = "wb",
        block_size: int | None = None,
        autocommit: bool = True,
    ) -> None:
        super().__init__(fs, path, mode=mode, block_size=block_size)
        self._exclusive = "x" in mode
        self._autocommit = autocommit
        self._opened_during = sys.exception()
        self._ended = False

    def __exit__(self, *exc: object) -> None:
        """Commit, or after an exception discard."""
        if exc and exc[0] is not None:
            self.discard()
        else:
            self.close()

    def close(self) -> None:
        """Commit (unless a transaction will), and release the spool. Idempotent."""
        if self._ended:
            return
        handled = sys.exception()
        if handled is not None and handled is not self._opened_during:
            log.warning("%s: not written, because of %s", self.path, type(handled).__name__)
            self.discard()
        elif self._autocommit:
            self.commit()

    def commit(self) -> None:
        """Send it. Raises :class:`OSError`; there is no second try, as nothing is left."""
        if self._ended:
            return
        self._ended = True
        try:
            size = self.seek(0, io.SEEK_END)
            self.seek(0)
            self.fs.commit(self, self.path, size, exclusive=self._exclusive)
        finally:
            tempfile.SpooledTemporaryFile.close(self)

    def discard(self) -> None:
        """Forget what was written. Idempotent."""
        self._ended = True
        tempfile.SpooledTemporaryFile.close(self)
