"""HTTP connections over the channel: what httpcore's pool talks through.

:class:`MuxBackend` makes every connection a mux stream of the session that is
open now; :class:`SocketBackend` makes plain TCP connections. Both hand out a
:class:`BridgeStream`, which adds what hvbridge needs of any connection:

* every wait ends at :mod:`hvbridge.deadline`, whatever httpcore was told;
* a request leaves in as few writes as can be. httpcore writes head and body
  apart; here they are gathered until httpcore reads (HTTP/1.1 without
  ``Expect`` always reads after it wrote) or :data:`GATHER` bytes are together.
  So a small request is one mux frame, which phodav takes whole or not at all;
* an upload stops once the server has answered (a refusal need not be fed);
* a connection that ended before the first byte of an answer says so
  (:class:`StaleConnection`), so that a safe request can be sent again.

A stream belongs to one request at a time; :meth:`BridgeStream.close` may be
called from any thread and wakes a read under way.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import httpcore

from hvbridge import deadline, pin
from hvbridge.channel.channel import Channel
from hvbridge.channel.session import Stream
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout
from hvbridge.spice.mux import MAX_DATA

GATHER = MAX_DATA
"""Bytes of a request that are held back for one write: what one mux frame carries."""

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class StaleConnection(httpcore.ReadError):
    """A connection that had served a request before ended without a byte of the next answer."""


class OtherSession(httpcore.ReadError):
    """The request is pinned to a client that is no longer there. Nothing was sent."""


class Wire(Protocol):
    """The raw connection below a :class:`BridgeStream`; raises httpcore's exceptions."""

    def read(self, max_bytes: int, timeout: float | None) -> bytes:
        """Up to ``max_bytes``; ``b""`` at the end."""
        ...

    def write(self, data: bytes, timeout: float | None) -> None:
        """Send all of ``data``."""
        ...

    def close(self) -> None:
        """Close, waking a read under way."""
        ...

    def linger(self) -> None:
        """Done with it; the peer is about to close it by itself."""
        ...

    def idle(self) -> None:
        """Nothing is expected until the next write."""
        ...

    @property
    def readable(self) -> bool:
        """True if a read would not wait."""
        ...


class BridgeStream(httpcore.NetworkStream):
    """One HTTP connection with the habits named in the module's docstring."""

    def __init__(self, wire: Wire, backend: BridgeBackend) -> None:
        self._wire = wire
        self._backend = backend
        self._generation = backend.generation
        self._pending = bytearray()
        self._write_timeout: float | None = None
        self._poisoned = self._aborted = False
        self._writing = False
        self._answers = 0
        self._awaiting_first_byte = True

    def poison(self) -> None:
        """Never reuse this connection: the pool will close it once it is idle."""
        self._poisoned = True

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Gather ``buffer``; send once :data:`GATHER` bytes are together."""
        if not self._writing:
            if self._answers and self.get_extra_info("is_readable"):
                # The pool looks for ended connections before it picks one, and a connection
                # may become idle in between. Nothing was sent: it will pick another.
                raise httpcore.ConnectionNotAvailable
            self._writing = self._awaiting_first_byte = True
        self._write_timeout = timeout
        if not self._pending and len(buffer) >= GATHER:
            self._send(buffer)
            return
        self._pending += buffer
        if len(self._pending) >= GATHER:
            self._flush()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what was gathered, then wait for bytes."""
        if self._pending:
            # Like httpcore does for its own writes: a server that closed early may have answered.
            with contextlib.suppress(httpcore.WriteError):
                self._flush()
        self._writing = False
        if deadline.expired():
            raise httpcore.ReadTimeout("the operation's time is over")
        try:
            data = self._wire.read(max_bytes, deadline.remaining(timeout))
        except httpcore.ReadError as exc:
            self._aborted = True
            if self._stale:
                raise StaleConnection(str(exc)) from exc
            raise
        except httpcore.ReadTimeout:
            self._aborted = True
            raise
        if data:
            if self._awaiting_first_byte:
                self._awaiting_first_byte = False
                self._answers += 1
        elif self._stale:
            raise StaleConnection("the server had closed the idle connection")
        return data

    def idle(self) -> None:
        """The answer is complete."""
        self._wire.idle()

    def abort(self) -> None:
        """The answer is not wanted any more: closing must tell the peer at once."""
        self._aborted = True

    def close(self) -> None:
        """Close without sending what was gathered. Idempotent."""
        self._pending.clear()
        if self._poisoned and not self._aborted:
            self._wire.linger()
        else:
            self._wire.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """TLS over a plain TCP connection (``https://``); the mux has none of its own."""
        if not isinstance(self._wire, SocketWire):
            raise httpcore.ConnectError("https needs a TCP connection")
        return BridgeStream(self._wire.start_tls(ssl_context, server_hostname, timeout), self._backend)

    def get_extra_info(self, info: str) -> Any:
        """``is_readable``: for an idle connection, that it must not be used again."""
        if info != "is_readable":
            return None
        outdated = self._generation != self._backend.generation
        return self._poisoned or outdated or self._wire.readable

    @property
    def _stale(self) -> bool:
        return self._awaiting_first_byte and self._answers > 0

    def _flush(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        self._send(data)

    def _send(self, data: bytes) -> None:
        if deadline.expired():
            raise httpcore.WriteTimeout("the operation's time is over")
        if self._wire.readable:
            # An answer (or the end) before the request is complete: go and read it.
            raise httpcore.WriteError("the server answered before it had the whole request")
        self._wire.write(data, deadline.remaining(self._write_timeout))


class BridgeBackend(httpcore.NetworkBackend):
    """Base of the two backends; counts the connections' generation."""

    def __init__(self) -> None:
        self.generation = 0
        """Idle connections of an earlier generation are not used again."""

    def retire(self) -> None:
        """Use no connection that exists now for another request."""
        self.generation += 1


class MuxBackend(BridgeBackend):
    """Connections are streams of whatever session ``channel`` has open; host and port do not matter."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        """Open a stream, waiting up to ``timeout`` seconds for a client.

        Raises httpcore's ``ConnectTimeout`` if none came, ``ConnectError`` if the
        channel is closed; both mean that nothing was sent.
        """
        try:
            return BridgeStream(MuxWire(self._open_stream(threading_wait(deadline.remaining(timeout)))), self)
        except ChannelTimeout as exc:
            raise httpcore.ConnectTimeout(str(exc)) from exc
        except ChannelError as exc:
            raise httpcore.ConnectError(str(exc)) from exc

    def _open_stream(self, seconds: float) -> Stream:
        """A stream of the client that is there now, or of the one that comes in time."""
        ends_at = time.monotonic() + seconds
        while True:
            session = self._channel.session(max(0.0, ends_at - time.monotonic()))
            if not pin.allows(session.number):
                raise OtherSession("another client is connected than the one it was meant for")
            try:
                return session.open_stream()
            except ChannelClosed:
                if not session.over:
                    raise
                # It left between these two lines: the next one is waited for.


class SocketBackend(BridgeBackend):
    """Connections are TCP connections (``http://`` channels), made by httpcore's own backend."""

    def __init__(self) -> None:
        super().__init__()
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to ``host``; raises httpcore's ``ConnectTimeout`` or ``ConnectError``."""
        if deadline.expired():
            raise httpcore.ConnectTimeout("the operation's time is over")
        stream = self._sockets.connect_tcp(
            host, port, deadline.remaining(timeout), local_address, socket_options
        )
        return BridgeStream(SocketWire(stream), self)


class MuxWire:
    """A mux stream as a :class:`Wire`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None) -> bytes:
        """Up to ``max_bytes``; ``b""`` when the peer closed the stream."""
        try:
            return self._stream.read(max_bytes, timeout)
        except ChannelTimeout as exc:
            raise httpcore.ReadTimeout(str(exc)) from exc
        except ChannelError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    def write(self, data: bytes, timeout: float | None) -> None:
        """Send ``data``; up to one frame's worth leaves as one frame."""
        with mapped_write_errors():
            self._stream.write(data, timeout)

    def close(self) -> None:
        """Close the stream; the peer is told."""
        self._stream.close()

    def linger(self) -> None:
        """Leave the close to the peer: ours could cross it (see :meth:`Stream.linger`)."""
        self._stream.linger()

    def idle(self) -> None:
        """What comes now was not asked for, and ends the stream."""
        self._stream.idle()

    @property
    def readable(self) -> bool:
        """True if data or the end is there, or the session says not to go on."""
        return self._stream.readable or not self._stream.reusable


class SocketWire:
    """One of httpcore's socket streams as a :class:`Wire`."""

    def __init__(self, stream: httpcore.NetworkStream, *, tls: bool = False) -> None:
        self._stream = stream
        self._unread_tls = tls

    def read(self, max_bytes: int, timeout: float | None) -> bytes:
        """Up to ``max_bytes``; ``b""`` at the end."""
        self._unread_tls = False
        return self._stream.read(max_bytes, timeout)

    def write(self, data: bytes, timeout: float | None) -> None:
        """Send all of ``data``."""
        self._stream.write(data, timeout)

    def close(self) -> None:
        """Shut down first: closing a socket alone does not wake a thread that reads it."""
        sock = self._stream.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def linger(self) -> None:
        """A socket's close cannot be mistaken for another connection's."""
        self.close()

    def idle(self) -> None:
        """The kernel's buffer bounds what comes unasked."""

    @property
    def readable(self) -> bool:
        """True if data or the end is there.

        Before the first read of a TLS connection that cannot be told: what waits
        may be the server's session tickets.
        """
        return not self._unread_tls and bool(self._stream.get_extra_info("is_readable"))

    def start_tls(
        self, context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> SocketWire:
        """The same connection, under TLS."""
        return SocketWire(self._stream.start_tls(context, server_hostname, timeout), tls=True)


@contextlib.contextmanager
def mapped_write_errors() -> Iterator[None]:
    """The channel's errors of a write as httpcore's."""
    try:
        yield
    except ChannelTimeout as exc:
        raise httpcore.WriteTimeout(str(exc)) from exc
    except ChannelError as exc:
        raise httpcore.WriteError(str(exc)) from exc


def threading_wait(seconds: float | None) -> float:
    """A wait that the channel's own API can take (it has no "forever")."""
    return 3600.0 if seconds is None else seconds
