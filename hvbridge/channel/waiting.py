"""Waiting on file descriptors in a way that another thread can end."""

from __future__ import annotations

import os
import select

GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
"""What poll(2) reports, asked or not, when the other end is gone."""


class Wake:
    """Ends every :func:`wait` that was given it, now and later (an eventfd that is never read).

    Its descriptor lives as long as the object, so that none of the waiting
    threads can meet its number again as somebody else's file.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._fd

    def set(self) -> None:
        """Wake all; idempotent."""
        os.eventfd_write(self._fd, 1)


class Woken(Exception):
    """The wait was ended by :meth:`Wake.set`."""


def wait(fd: int | None, events: int, wake: Wake, timeout: float | None) -> int:
    """Wait for ``events`` on ``fd`` (or only for the wake, if ``None``); 0 after ``timeout`` seconds.

    Returns poll(2)'s events. Raises :class:`Woken` once ``wake`` is set.
    """
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    if fd is not None:
        poll.register(fd, events)
    ready = dict(poll.poll(None if timeout is None else max(0, int(timeout * 1000))))
    if wake.fileno() in ready:
        raise Woken
    return ready.get(fd, 0) if fd is not None else 0
