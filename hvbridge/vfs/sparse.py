"""An anonymous or named sparse file: read and write anywhere, give space back."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from pathlib import Path

from hvbridge.errors import NoSpace, TooLarge

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class SparseFile:
    """A file descriptor with positioned I/O; with ``path=None`` the file has no name."""

    def __init__(self, folder: Path, path: Path | None = None) -> None:
        try:
            if path is None:
                self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
            else:
                self.fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except OSError as exc:
            raise NoSpace(f"cannot make a file in {folder}: {exc.strerror}") from exc

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``; holes are zeros."""
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``. Raises :class:`NoSpace` when the host's disk is full."""
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done
        except OSError as exc:
            raise NoSpace(f"the host's spool: {exc.strerror}") from exc

    def truncate(self, size: int) -> None:
        """Set the length."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as exc:
            # The file is sparse: there is room for any size that the filesystem can express.
            raise TooLarge(f"the host's spool: {exc.strerror}") from exc

    def punch(self, start: int, end: int) -> None:
        """Give the space of ``[start, end)`` back; best effort, the file reads zeros there after."""
        _libc.fallocate(self.fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, start, end - start)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
