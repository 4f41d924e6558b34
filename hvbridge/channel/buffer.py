"""A byte queue with bounded memory that never makes its writer wait for long.

The framing has no flow control per stream, and a channel that is not read stops
all of its streams (spice-gtk stops reading, too, while one stream is slow). So
what one consumer does not take in time goes to a temporary file, and past that
file's limit the stream is given up.
"""

from __future__ import annotations

import errno
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

MEMORY = 4 << 20
"""Bytes kept in memory: a few round trips of a fast line."""

PATIENCE = 0.25
"""Seconds the channel's reader waits for a consumer before it spills to disk.
Long enough for a consumer that is merely behind, short against any deadline."""

SPILL_FOLDER = "/var/tmp" if Path("/var/tmp").is_dir() else None
"""Not /tmp, which is memory on many hosts."""

DISK = 4 << 30
"""Bytes a stream may be behind on disk. The files are unlinked; a disk that is
full earlier ends the stream earlier."""

SEGMENT = 256 << 20
"""Bytes of one spill file. What was read is given back a file at a time, so a
consumer that stays a little behind for hours does not keep hours on disk."""


class Overflow(Exception):
    """The consumer is too far behind: the stream must be given up."""


class SpillBuffer:
    """FIFO of bytes between the channel's reader (:meth:`put`) and one consumer (:meth:`get`).

    Thread-safe. ``memory`` and ``disk`` are limits in bytes, ``segment`` the
    size of one spill file.
    """

    def __init__(
        self,
        memory: int = MEMORY,
        disk: int = DISK,
        patience: float = PATIENCE,
        segment: int = SEGMENT,
    ) -> None:
        self._memory, self._disk, self._patience, self._segment = memory, disk, patience, segment
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._spilled: deque[_Spill] = deque()
        self._behind = 0  # bytes in the spill files that are still to be read
        self._ended = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def put(self, data: bytes) -> None:
        """Append ``data``; raises :class:`Overflow` when neither memory nor disk has room."""
        with self._changed:
            if self._ended:
                return
            if self._held + len(data) > self._memory and not self._spilled:
                self._changed.wait_for(self._has_room, self._patience)
                if self._ended:
                    return  # discarded meanwhile
            if not self._spilled and self._has_room():
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
            while self._spilled:
                self._spilled.popleft().file.close()
            self._changed.notify_all()

    def get(self, max_bytes: int, timeout: float | None) -> bytes:
        """Up to ``max_bytes``, waiting for the first; ``b""`` at the end.

        Raises :class:`TimeoutError`, or the error given to :meth:`end` once the
        data before it were read.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._chunks and not self._spilled and not self._ended:
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
            return bool(self._chunks) or bool(self._spilled) or self._ended

    @property
    def disk_bytes(self) -> int:
        """Bytes that the spill files hold on disk."""
        with self._changed:
            return sum(spill.written for spill in self._spilled)

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
        if not self._spilled:
            return b""
        spill = self._spilled[0]
        data = spill.take(max_bytes)
        self._behind -= len(data)
        if spill.taken == spill.written:
            spill.file.close()
            self._spilled.popleft()
        return data

    def _spill(self, data: bytes) -> None:
        if self._behind + len(data) > self._disk:
            raise Overflow(f"a stream's consumer is more than {self._disk} bytes behind")
        try:
            if not self._spilled or self._spilled[-1].written >= self._segment:
                self._spilled.append(_Spill())
            self._spilled[-1].put(data)
        except OSError as exc:
            raise Overflow(f"cannot spill a stream's data: {exc.strerror}") from exc
        self._behind += len(data)


class _Spill:
    """One spill file: written at its end, read from its start."""

    def __init__(self) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile(  # noqa: SIM115
            prefix="hvbridge-stream-", dir=SPILL_FOLDER, buffering=0
        )
        self.written = self.taken = 0

    def put(self, data: bytes) -> None:
        self.file.seek(self.written)
        if self.file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "no room")
        self.written += len(data)

    def take(self, max_bytes: int) -> bytes:
        self.file.seek(self.taken)
        data = self.file.read(min(max_bytes, self.written - self.taken))
        self.taken += len(data)
        return data
