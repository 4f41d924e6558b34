"""A byte queue with bounded memory that never makes its writer wait for long.

The framing has no flow control per stream, and a channel that is not read stops
all of its streams (spice-gtk stops reading, too, while one stream is slow). So
what one consumer does not take in time goes to a temporary file, and past that
file's limit the stream is given up.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from typing import IO

MEMORY = 4 << 20
"""Bytes kept in memory: a few round trips of a fast line."""

PATIENCE = 0.25
"""Seconds the channel's reader waits for a consumer before it spills to disk.
Long enough for a consumer that is merely behind, short against any deadline."""

DISK = 64 << 30
"""Bytes a stream may spill. The file is sparse and unlinked; a disk that is
full earlier ends the stream earlier."""


class Overflow(Exception):
    """The consumer is too far behind: the stream must be given up."""


class SpillBuffer:
    """FIFO of bytes between the channel's reader (:meth:`put`) and one consumer (:meth:`get`).

    Thread-safe. ``memory`` and ``disk`` are limits in bytes.
    """

    def __init__(self, memory: int = MEMORY, disk: int = DISK, patience: float = PATIENCE) -> None:
        self._memory, self._disk, self._patience = memory, disk, patience
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._file: IO[bytes] | None = None
        self._read_at = self._write_at = 0
        self._ended = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def put(self, data: bytes) -> None:
        """Append ``data``; raises :class:`Overflow` when neither memory nor disk has room."""
        with self._changed:
            if self._ended:
                return
            if self._held + len(data) > self._memory and self._file is None:
                self._changed.wait_for(self._has_room, self._patience)
            if self._file is None and self._has_room():
                self._chunks.append(data)
                self._held += len(data)
            else:
                self._spill(data)
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """No more data will come; readers see the rest, then ``b""`` or ``error``."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def discard(self) -> None:
        """Drop everything, now and later: nobody will read any more."""
        with self._changed:
            self._ended = True
            self._chunks.clear()
            self._held = 0
            self._drop_file()
            self._changed.notify_all()

    def get(self, max_bytes: int, timeout: float | None) -> bytes:
        """Up to ``max_bytes``, waiting for the first; ``b""`` at the end.

        Raises :class:`TimeoutError`, or the error given to :meth:`end` once the
        data before it were read.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._chunks and self._file is None and not self._ended:
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._changed.wait(left):
                    raise TimeoutError
            data = self._take(max_bytes)
            if not data and self._error is not None:
                raise self._error
            self._changed.notify_all()
            return data

    @property
    def ready(self) -> bool:
        """True if :meth:`get` would return (or raise) at once."""
        with self._changed:
            return bool(self._chunks) or self._file is not None or self._ended

    def _has_room(self) -> bool:
        return self._held < self._memory or self._ended

    def _take(self, max_bytes: int) -> bytes:
        if self._chunks:
            data = self._chunks.popleft()
            if len(data) > max_bytes:
                self._chunks.appendleft(data[max_bytes:])
                data = data[:max_bytes]
            self._held -= len(data)
            return data
        if self._file is None:
            return b""
        self._file.seek(self._read_at)
        data = self._file.read(min(max_bytes, self._write_at - self._read_at))
        self._read_at += len(data)
        if self._read_at == self._write_at:
            self._drop_file()
        return data

    def _spill(self, data: bytes) -> None:
        if self._write_at - self._read_at + len(data) > self._disk:
            raise Overflow(f"a stream's consumer is more than {self._disk} bytes behind")
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="hvbridge-stream-", buffering=0)  # noqa: SIM115
                self._read_at = self._write_at = 0
            self._file.seek(self._write_at)
            if self._file.write(data) != len(data):
                raise Overflow("no room to spill a stream's data")
        except OSError as exc:
            raise Overflow(f"cannot spill a stream's data: {exc.strerror}") from exc
        self._write_at += len(data)

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._read_at = self._write_at = 0
