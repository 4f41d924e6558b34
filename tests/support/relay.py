"""A TCP relay in front of a bridge: it counts what the host sends, slows it down, and cuts.

All connections of a client are cut at once, as when its network goes. What was passed
on before a cut arrives; nothing after it does, in either direction.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from types import TracebackType

from hvbridge.channel.session import spawn

PIECE = 64 << 10

ANSWER = 60
"""Bytes from the client that may be an answer of HTTP; SPICE's own messages are shorter."""


class Relay:
    """Listens on :attr:`port` and passes connections on to ``target`` (a port of the loopback)."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.rate: float | None = None
        """Bytes per second that pass from the host; ``None``: as they come."""
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._sent = 0
        self._cut_at: int | None = None
        self._late = self._deaf = False
        self._borders: list[int] = []
        self._answered: set[int] = set()
        self.cut_done = threading.Event()

    def __enter__(self) -> Relay:
        spawn("relay-accept", self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    # --- counting and cutting -------------------------------------------

    def begin(self, cut_at: int | None = None, *, late: bool = False) -> None:
        """Count from here on, and cut after ``cut_at`` more bytes from the host.

        ``late``: not at once, but when the client answers what it got; the answer is lost.
        """
        with self._lock:
            self._sent, self._cut_at, self._borders = 0, cut_at, []
            self._late, self._deaf, self._answered = late, False, set()
            self.cut_done.clear()

    @property
    def sent(self) -> int:
        """Bytes that the host sent since :meth:`begin`."""
        return self._sent

    @property
    def borders(self) -> list[int]:
        """Counts at which the host had sent something and the relay had passed it on."""
        with self._lock:
            return list(self._borders)

    @property
    def answered(self) -> list[int]:
        """Counts at which the client answered: where requests end."""
        with self._lock:
            return sorted(self._answered)

    def cut(self) -> None:
        """Cut all connections now."""
        with self._lock:
            self._cut()

    def _cut(self) -> None:
        self._cut_at, self._deaf = None, False
        for pair in self._pairs:
            pair.cut()
        self.cut_done.set()

    # --- passing on -----------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                host = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            host.settimeout(None)
            pair = _Pair(client, host)
            with self._lock:
                self._pairs.add(pair)
            spawn("relay-down", functools.partial(self._down, pair))
            spawn("relay-up", functools.partial(self._up, pair))

    def _down(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.host.recv(PIECE):
                if self.rate is not None:
                    time.sleep(len(data) / self.rate)
                self._pass_down(data, pair)
        pair.cut()
        self._over(pair)

    def _pass_down(self, data: bytes, pair: _Pair) -> None:
        with self._lock:
            if self._cut_at is not None and self._sent + len(data) >= self._cut_at:
                pair.client.sendall(data[: self._cut_at - self._sent])
                self._sent = self._cut_at
                if self._late:
                    self._cut_at, self._deaf = None, True
                else:
                    self._cut()
                return
            if self._deaf:
                return
            self._sent += len(data)
            self._borders.append(self._sent)
        pair.client.sendall(data)

    def _up(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.client.recv(PIECE):
                with self._lock:
                    if len(data) >= ANSWER:
                        self._answered.add(self._sent)
                        if self._deaf:
                            self._cut()
                            continue
                # After a cut the client is still read, to its end: closing over unread bytes
                # would take back what it has not read yet.
                with contextlib.suppress(OSError):
                    pair.host.sendall(data)
        pair.cut()
        self._over(pair)

    def _over(self, pair: _Pair) -> None:
        with self._lock:
            pair.users -= 1
            if not pair.users:
                self._pairs.discard(pair)
                pair.client.close()
                pair.host.close()


class _Pair:
    """The two ends of one relayed connection."""

    def __init__(self, client: socket.socket, host: socket.socket) -> None:
        self.client, self.host = client, host
        self.users = 2
        for sock in (client, host):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def cut(self) -> None:
        """End both directions; what the client was sent still reaches it."""
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.host.shutdown(socket.SHUT_RDWR)
