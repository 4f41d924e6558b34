"""A connected TCP socket, plain or TLS, that one thread reads while others write.

Every wait has a deadline and ends when :meth:`Wire.close` is called, from any
thread. OpenSSL's connections must not be entered by two threads at once, and a
read that blocks inside one would keep writers out: so the socket does not
block, the lock covers single calls only, and all waiting is done outside of it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hvbridge.errors import ChannelClosed, ChannelTimeout, ProtocolError

KEEPALIVE_IDLE = 15
"""Seconds of silence after which the kernel begins to probe the peer."""

KEEPALIVE_INTERVAL = 5
KEEPALIVE_PROBES = 4

T = TypeVar("T")


class Wire:
    """Owns ``sock``. One reader and one writer at a time; :meth:`close` from anywhere."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        self._sock = sock
        self._entered: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self._users = 0  # threads that wait on the descriptor: it is released after the last
        self._closing = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called."""
        return self._closed

    def peek(self, size: int, deadline: float) -> bytes:
        """The first bytes that will be read, at least one; ``b""`` when the peer has left."""
        try:
            return self._wait_for(lambda: self._sock.recv(size, socket.MSG_PEEK), select.POLLIN, deadline)
        except OSError:
            return b""

    def start_tls(self, context: ssl.SSLContext, deadline: float) -> None:
        """Become a TLS server. Raises :class:`ProtocolError` when the handshake fails."""
        try:
            with self._closing:
                if self._closed:
                    raise ChannelClosed("the connection is closed")
                tls = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
                self._sock = tls
                self._entered = threading.Lock()  # one thread inside OpenSSL at a time
            self._wait_for(tls.do_handshake, select.POLLIN, deadline)
        except ssl.SSLError as exc:
            raise ProtocolError(f"TLS handshake failed: {exc.reason or exc}") from exc
        except OSError as exc:
            raise ChannelClosed(f"left during the TLS handshake: {exc.strerror or exc}") from exc

    def recv_into(self, buffer: memoryview, deadline: float | None = None) -> int:
        """Bytes read, at least one; 0 when the peer or :meth:`close` ended the connection.

        ``deadline``: on the monotonic clock. Raises :class:`ChannelTimeout`.
        """
        try:
            return self._wait_for(lambda: self._sock.recv_into(buffer), select.POLLIN, deadline)
        except (OSError, ChannelClosed):
            return 0  # reset, timed out by the kernel, or a TLS connection cut short

    def send(self, data: bytes, stall: float) -> None:
        """Send all of ``data``.

        Raises :class:`ChannelTimeout` after ``stall`` seconds without progress,
        :class:`ChannelClosed` when the connection ended.
        """
        view = memoryview(data)
        while view:
            deadline = time.monotonic() + stall
            rest = view
            try:
                sent = self._wait_for(lambda: self._sock.send(rest), select.POLLOUT, deadline)  # noqa: B023
            except OSError as exc:
                raise ChannelClosed(f"the client is gone: {exc.strerror or exc}") from exc
            view = view[sent:]

    def close(self) -> None:
        """End the connection and wake who waits on it. Idempotent."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown(), which would tear OpenSSL's part from under a reader.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
            if not self._users:
                self._sock.close()

    def _wait_for(self, call: Callable[[], T], events: int, deadline: float | None) -> T:
        """Call until it has a result, waiting for ``events`` (or what TLS wants instead) in between."""
        with self._using():
            while not self._closed:
                wanted = events
                try:
                    with self._entered:
                        return call()
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                except BlockingIOError:
                    pass
                self._poll(wanted, deadline)
            raise ChannelClosed("the connection was closed")

    def _poll(self, events: int, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._sock, events)
        if (left is not None and left <= 0) or not poll.poll(None if left is None else left * 1000):
            raise ChannelTimeout("the client was silent for too long")

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        with self._closing:
            if self._closed:
                raise ChannelClosed("the connection is closed")
            self._users += 1
        try:
            yield
        finally:
            with self._closing:
                self._users -= 1
                if self._closed and not self._users:
                    self._sock.close()
