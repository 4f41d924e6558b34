"""Transports and openers for tests, in memory and over socketpairs."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable

from hvbridge.channel.base import Transport
from hvbridge.channel.session import Session, spawn
from hvbridge.channel.sockets import SocketTransport
from hvbridge.errors import ChannelClosed, ChannelError
from hvbridge.spice.mux import Role


def pair() -> tuple[SocketTransport, SocketTransport]:
    """Two connected transports."""
    left, right = socket.socketpair()
    return SocketTransport(left, "left"), SocketTransport(right, "right")


def sessions() -> tuple[Session, Session]:
    """A host's and a share's session on one port, both running."""
    left, right = pair()
    host, share = Session(left, Role.HOST), Session(right, Role.SHARE)
    spawn("test-host", host.run)
    spawn("test-share", share.run)
    return host, share


def eventually(true: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait until ``true``; fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


class QueueOpener:
    """An opener that hands out what the test puts: transports, or errors to raise."""

    def __init__(self, *, once: bool = False) -> None:
        self.once = once
        self.url = "test:"
        self.opened = 0
        self._queue: queue.SimpleQueue[Transport | ChannelError | None] = queue.SimpleQueue()
        self._closed = threading.Event()

    def put(self, item: Transport | ChannelError) -> None:
        """What the next :meth:`open` returns, or raises."""
        self._queue.put(item)

    def open(self) -> Transport:
        self.opened += 1
        item = self._queue.get()
        if item is None or self._closed.is_set():
            self._queue.put(None)
            raise ChannelClosed("test: is closed")
        if isinstance(item, ChannelError):
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._queue.put(None)
