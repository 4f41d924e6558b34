"""``spice-listen://``: a SPICE endpoint of our own that offers just the folder.

A stock client (remote-viewer, virt-viewer, GNOME Boxes) connects to it as to a
virtual machine's console, finds a main and a webdav channel, and shares its
folder; no virtual machine is needed.

One client at a time. A second one is refused with CHANNEL_NOT_AVAILABLE (clients
show a failed connection; the log has the reason), unless the first does not
answer any more: then it is dropped for the new one.

Threads: one accepts; each connection has one until its link stage is over, and
the main channel's stays with its client, answers it, and pings both channels.
The webdav channel is read by whoever reads the transport.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import socket
import ssl
import threading
import time
from pathlib import Path

from hvbridge.channel.session import STALL, spawn
from hvbridge.channel.spice_link import Client, Connection, SpiceTransport, TicketKey, Timeouts
from hvbridge.channel.wire import Wire
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout, ProtocolError, UsageError
from hvbridge.spice.endpoint import (
    Authenticated,
    AuthenticationFailed,
    Ended,
    Endpoint,
    Event,
    LinkRequested,
)
from hvbridge.spice.link import MAGIC, MAX_PASSWORD, ChannelType, LinkErr, LinkMess

log = logging.getLogger(__name__)

MAX_UNAUTHENTICATED = 16
"""Connections in the link stage at once: a client opens two. Each holds a thread."""

LINK_READ = 8 << 10
"""Bytes read at once where no file content is expected."""


class SpiceListenOpener:
    """Listens at construction; :meth:`open` returns each client's webdav port in turn.

    ``password`` (at most 60 bytes of UTF-8) is demanded on both channels.
    With ``tls_cert`` and ``tls_key`` (PEM) nothing but TLS is spoken: a client
    that knows the port only as a plain one is sent to its TLS port. Raises
    :class:`UsageError` for what cannot be used as given, :class:`ChannelError`
    where the address is taken.
    """

    once = False

    def __init__(
        self,
        host: str,
        port: int,
        *,
        password: str | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        timeouts: Timeouts | None = None,
        max_unauthenticated: int = MAX_UNAUTHENTICATED,
    ) -> None:
        self._host = host
        self._password = _check_password(password)
        self._tls = _tls_context(tls_cert, tls_key)
        self._timeouts = timeouts or Timeouts()
        self._open_key = TicketKey() if password is None else None  # nothing to protect: one will do
        self._linking = threading.BoundedSemaphore(max_unauthenticated)
        self._changed = threading.Condition()  # guards the four below
        self._wires: set[Wire] = set()
        self._client: Client | None = None
        self._ready: SpiceTransport | None = None
        self._stopped = False
        self._stop = threading.Event()
        self._listener = _listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        """The port listened on, also where 0 was asked for."""
        if password is None and not _is_loopback(self._listener):
            log.warning("%s: anybody who reaches it can offer a folder; set a password", self.url)
        self._accepting = spawn("hvbridge-spice-accept", self._accept)

    @property
    def url(self) -> str:
        """``spice-listen://HOST:PORT``, with the real port."""
        return f"spice-listen://{_host_port(self._host, self.port)}"

    def open(self) -> SpiceTransport:
        """Wait for the next client whose webdav port is open."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None or self._stopped)
            if self._stopped or self._ready is None:
                raise ChannelClosed(f"{self.url} is closed")
            transport, self._ready = self._ready, None
        transport.take()
        return transport

    def close(self) -> None:
        """See :class:`~hvbridge.channel.base.Opener`."""
        self._stop.set()
        with self._changed:
            self._stopped = True
            wires, client = list(self._wires), self._client
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for wire in wires:
            wire.close()
        if client is not None:
            client.close()
        if self._accepting is not threading.current_thread():
            self._accepting.join(STALL)

    # --- the accepting thread -------------------------------------------

    def _accept(self) -> None:
        with self._listener:
            while not self._stop.is_set():
                try:
                    sock, address = self._listener.accept()
                    wire = Wire(sock)
                except OSError as exc:
                    if not self._stop.wait(0.1):  # out of descriptors, or reset in the queue
                        log.warning("%s: cannot accept: %s", self.url, exc.strerror)
                    continue
                peer = _host_port(address[0], address[1])
                if self._linking.acquire(blocking=False):
                    spawn(f"hvbridge-spice-{peer}", functools.partial(self._serve, wire, peer))
                else:
                    log.warning("%s: too many connections at once; %s was closed", self.url, peer)
                    wire.close()

    # --- a connection's thread ------------------------------------------

    def _serve(self, wire: Wire, peer: str) -> None:
        """The link stage and, on a main channel, all that follows."""
        main: tuple[Client, list[Event]] | None = None
        try:
            self._track(wire)
            main = self._link(Connection(wire, Endpoint(self._password), peer))
        except ChannelError as exc:
            # Refusals and broken protocol are worth a look; leaving is not.
            log.log(logging.WARNING if isinstance(exc, ProtocolError) else logging.INFO, "%s: %s", peer, exc)
            wire.close()
        finally:
            self._linking.release()
            with self._changed:
                self._wires.discard(wire)
        if main is not None:
            self._attend(*main)

    def _track(self, wire: Wire) -> None:
        with self._changed:
            if self._stopped:
                raise ChannelClosed("no clients are taken any more")
            self._wires.add(wire)

    def _link(self, connection: Connection) -> tuple[Client, list[Event]] | None:
        """Returns the client whose main channel this is, and what came early; ``None`` if it is another's.

        Raises :class:`ChannelError` where the link came to nothing.
        """
        deadline = time.monotonic() + self._timeouts.link
        secure = self._secure(connection.wire, deadline)
        buffer = memoryview(bytearray(LINK_READ))
        try:
            while (events := connection.receive(buffer, deadline)) is not None:
                for event in events:  # which grows by what an answer lets through
                    if isinstance(event, LinkRequested):
                        events += self._answer(connection, event.mess, secure)
                    elif isinstance(event, AuthenticationFailed):
                        self._reject(event)
                    elif isinstance(event, Authenticated):
                        return self._admit(connection)
                connection.flush(_left(deadline))
        finally:
            with contextlib.suppress(ChannelError):
                connection.flush(max(0.1, _left(deadline)))  # a refusal's code, before its reason is logged
        raise ChannelClosed("left during the link stage")

    def _secure(self, wire: Wire, deadline: float) -> bool:
        """Start TLS where it is asked for; false for a client that begins without."""
        if self._tls is None or wire.peek(1, deadline) == MAGIC[:1]:
            return False
        wire.start_tls(self._tls, deadline)
        return True

    def _answer(self, connection: Connection, mess: LinkMess, secure: bool) -> list[Event]:
        code, reason = self._refusal(mess, secure)
        if code is not LinkErr.OK:
            connection.endpoint.refuse(code)
            raise ProtocolError(f"refused: {reason}")
        key = self._open_key or TicketKey()
        return connection.endpoint.offer(key.public, key.decrypt)

    def _refusal(self, mess: LinkMess, secure: bool) -> tuple[LinkErr, str]:
        """The code (OK if there is none) and the reason for the log."""
        if self._tls is not None and not secure:
            return LinkErr.NEED_SECURED, "it did not use TLS"
        kind = (mess.channel_type, mess.channel_id)
        if kind == (ChannelType.MAIN, 0):
            if mess.connection_id:
                return LinkErr.BAD_CONNECTION_ID, "it wants to migrate a session"
            return self._place_taken()
        if kind == (ChannelType.WEBDAV, 0):
            return self._webdav_refusal(mess)
        return LinkErr.CHANNEL_NOT_AVAILABLE, f"there is no channel of type {kind[0]} and id {kind[1]}"

    def _place_taken(self) -> tuple[LinkErr, str]:
        client = self._client
        if client is not None and not client.over and client.probe(self._timeouts.probe):
            return LinkErr.CHANNEL_NOT_AVAILABLE, f"one client at a time, and {client.main.peer} is connected"
        return LinkErr.OK, ""

    def _webdav_refusal(self, mess: LinkMess) -> tuple[LinkErr, str]:
        client = self._client
        if client is None or client.over or client.session_id != mess.connection_id:
            return LinkErr.BAD_CONNECTION_ID, "its webdav channel belongs to no session"
        if client.transport is not None:
            return LinkErr.CHANNEL_NOT_AVAILABLE, "its session has a webdav channel already"
        return LinkErr.OK, ""

    def _reject(self, failure: AuthenticationFailed) -> None:
        if failure.guess:
            self._stop.wait(self._timeouts.guess)  # with the limit on links: a dozen guesses a second
        raise ProtocolError("wrong password" if failure.guess else "it gave no password")

    def _admit(self, connection: Connection) -> tuple[Client, list[Event]] | None:
        """Let an authenticated client in, unless things have changed since its request."""
        mess = connection.endpoint.mess
        assert mess is not None
        if mess.channel_type == ChannelType.WEBDAV:
            self._admit_webdav(connection, mess)
            return None
        client = Client(connection)
        with self._changed:
            before = self._client
            if before is not None and before.lost:
                log.warning("%s: does not answer, and %s takes its place", before.main.peer, connection.peer)
                before.close()
            if self._stopped or (before is not None and not before.over):
                connection.endpoint.refuse(LinkErr.CHANNEL_NOT_AVAILABLE)
                raise ProtocolError("refused: another client was faster")
            early = connection.endpoint.accept(client.session_id)
            self._client = client
        return client, early

    def _admit_webdav(self, connection: Connection, mess: LinkMess) -> None:
        with self._changed:
            code, reason = self._webdav_refusal(mess)
            client = self._client
            if client is None or code is not LinkErr.OK:
                connection.endpoint.refuse(code)
                raise ProtocolError(f"refused: {reason}")
            early = connection.endpoint.accept(client.session_id)
            transport = client.transport = SpiceTransport(connection, early, client.close)
        try:
            connection.flush(self._timeouts.link)
        except ChannelError:
            client.close()
            raise
        with self._changed:
            if client.over:  # it left meanwhile, without having seen this channel
                connection.close()
                return
            self._ready = transport
            self._changed.notify_all()

    # --- the main channel -----------------------------------------------

    def _attend(self, client: Client, early: list[Event]) -> None:
        peer = client.main.peer
        log.info("%s: a client connected", peer)
        try:
            reason = self._run_main(client, early)
        except ChannelError as exc:
            reason = str(exc)
        finally:
            client.close()
            with self._changed:
                if self._client is client:
                    self._client = None
                if self._ready is client.transport:
                    self._ready = None
        log.info("%s: the client's session is over: %s", peer, reason)

    def _run_main(self, client: Client, events: list[Event]) -> str:
        """Answer and ping until the session is over; returns why."""
        buffer = memoryview(bytearray(LINK_READ))
        tick = min(1.0, self._timeouts.ping / 2)
        while True:
            for event in events:
                if isinstance(event, Ended):
                    return event.reason
            client.main.flush(STALL)
            client.check(self._timeouts)
            try:
                received = client.main.receive(buffer, time.monotonic() + tick)
            except ChannelTimeout:
                received = []
            if received is None:
                return "the connection ended"
            events = received


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_password(password: str | None) -> bytes | None:
    if password is None:
        return None
    encoded = password.encode()
    if not 0 < len(encoded) <= MAX_PASSWORD or b"\0" in encoded:
        raise UsageError(f"a SPICE password has 1 to {MAX_PASSWORD} bytes; shorten it, or give none")
    return encoded


def _tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError("TLS needs both tls-cert and tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # never ask on a terminal
    except OSError as exc:  # ssl.SSLError is one
        raise UsageError(
            f"cannot use the certificate {cert} with the key {key}: {exc.strerror or exc}"
        ) from exc
    return context


def _listen(host: str, port: int) -> socket.socket:
    where = _host_port(host, port)
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise UsageError(f"cannot resolve {where}: {exc.strerror}; name an address of this host") from exc
    family, _, _, _, address = found[0]
    try:
        return socket.create_server((address[0], port), family=family, backlog=MAX_UNAUTHENTICATED)
    except OSError as exc:
        raise ChannelError(
            f"cannot listen on {where}: {exc.strerror}; free the port, or name another"
        ) from exc


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
