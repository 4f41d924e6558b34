"""One SPICE connection on a socket, and the transport that its webdav port is.

:class:`Connection` joins the sans-IO :class:`~hvbridge.spice.endpoint.Endpoint`
with a :class:`~hvbridge.channel.wire.Wire` and serialises what threads do with
them. Its reader never writes, and no lock is held over I/O but the one that
keeps messages whole.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hvbridge.channel.session import STALL
from hvbridge.channel.wire import Wire
from hvbridge.errors import ChannelClosed, ChannelTimeout
from hvbridge.spice.endpoint import (
    MAX_PAYLOAD,
    Ended,
    Endpoint,
    Event,
    PortData,
)

log = logging.getLogger(__name__)

READ_SIZE = 256 << 10
"""Bytes taken from the socket at once: some four full messages."""


class TicketKey:
    """The RSA key of one link's ticket.

    SPICE fixes 1024 bits and OAEP with SHA-1. The key protects the password for
    the length of one dialogue: a key used twice would let a recorded ticket be
    sent again.
    """

    def __init__(self) -> None:
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        self.public = self._private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        """SubjectPublicKeyInfo in DER, 162 bytes."""

    def decrypt(self, ticket: bytes) -> bytes | None:
        """The plain text of 128 bytes of RSA-OAEP-SHA1; ``None`` if they are something else."""
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        try:
            return self._private.decrypt(ticket, oaep)
        except ValueError:
            return None


class Connection:
    """An endpoint on a wire. One thread receives; any thread may write, ping and close."""

    def __init__(self, wire: Wire, endpoint: Endpoint, peer: str) -> None:
        self.wire = wire
        self.endpoint = endpoint
        self.peer = peer
        """Who it is, for people."""
        self.heard = time.monotonic()
        """When bytes last came, on the monotonic clock."""
        self._state = threading.Condition()  # guards the endpoint; never held over I/O
        self._writing = threading.Lock()  # keeps messages whole and in order

    def receive(self, buffer: memoryview, deadline: float | None = None) -> list[Event] | None:
        """Events of what comes next, perhaps none; ``None`` at the end of the connection.

        They may hold views of ``buffer``. Raises
        :class:`~hvbridge.errors.ProtocolError`, and :class:`ChannelTimeout` at
        ``deadline``.
        """
        count = self.wire.recv_into(buffer, deadline)
        if not count:
            return None
        with self._state:
            self.heard = time.monotonic()
            self._state.notify_all()
            return self.endpoint.receive(buffer[:count])

    def flush(self, stall: float) -> None:
        """Send what the endpoint has to send."""
        with self._writing:
            self._flush(stall)

    def write(self, data: bytes, stall: float) -> None:
        """Send port data, in one message if they are at most 10 + 65535 bytes.

        Raises :class:`ChannelTimeout` after ``stall`` seconds in which the client
        took, or acknowledged, nothing; :class:`ChannelClosed` when it is gone.
        """
        view = memoryview(data)
        for at in range(0, len(view), MAX_PAYLOAD):
            with self._writing:
                with self._state:
                    self._wait_room(stall)
                    self.endpoint.send_data(view[at : at + MAX_PAYLOAD])
                self._flush(stall)

    def ping(self, stall: float) -> None:
        """Ask for a sign of life, unless something is being sent anyway."""
        if not self._writing.acquire(blocking=False):
            return
        try:
            with self._state:
                if self.endpoint.closed or not self.endpoint.room:
                    return
                self.endpoint.ping(time.monotonic_ns() // 1000)
            self._flush(stall)
        finally:
            self._writing.release()

    def answers(self, timeout: float) -> bool:
        """True if the client sends anything within ``timeout`` seconds after a ping.

        Another thread must be receiving meanwhile.
        """
        before = self.heard
        try:
            self.ping(timeout)
        except (ChannelClosed, ChannelTimeout):
            return False
        with self._state:
            return self._state.wait_for(lambda: self.heard != before or self.wire.closed, timeout) and (
                not self.wire.closed
            )

    def close(self) -> None:
        """End it; wakes everyone who waits on it. Idempotent."""
        self.wire.close()
        with self._state:
            self._state.notify_all()

    def _flush(self, stall: float) -> None:
        with self._state:
            units = self.endpoint.data_to_send()
        for unit in units:
            self.wire.send(unit, stall)

    def _wait_room(self, stall: float) -> None:
        def ready() -> bool:
            return self.endpoint.room > 0 or self._over

        if not self._state.wait_for(ready, stall):
            raise ChannelTimeout(f"the client acknowledged nothing for {stall:g} s")
        if self._over:
            raise ChannelClosed("the client's port is closed")

    @property
    def _over(self) -> bool:
        return self.wire.closed or self.endpoint.closed


class SpiceTransport:
    """The open webdav port of one client (a :class:`~hvbridge.channel.base.Transport`).

    ``early``: events that came with the link. ``end``: ends the client's whole
    session, since a port cannot be opened a second time without one.
    """

    def __init__(self, connection: Connection, early: Sequence[Event], end: Callable[[], None]) -> None:
        self.connection = connection
        self.taken = False
        """True once somebody reads: only then can silence mean anything."""
        self._early = list(early)
        self._end = end
        self._buffer = memoryview(bytearray(READ_SIZE))

    @property
    def description(self) -> str:
        """``SPICE client 10.1.2.3:4567``."""
        return f"SPICE client {self.connection.peer}"

    def take(self) -> None:
        """The owner begins to read: count its client's silence from now."""
        self.connection.heard = time.monotonic()
        self.taken = True

    def read(self, max_bytes: int) -> bytes:
        """See :class:`~hvbridge.channel.base.Transport`."""
        events: list[Event] | None = self._early
        self._early = []
        while events is not None:
            data = b"".join([event.data for event in events if isinstance(event, PortData)])
            if data:
                return data
            if self.connection.endpoint.closed:
                self._log_end(events)
                break
            events = self.connection.receive(self._buffer[:max_bytes])
        return b""

    def write(self, data: bytes, timeout: float) -> None:
        """See :class:`~hvbridge.channel.base.Transport`."""
        self.connection.write(data, timeout)

    def close(self) -> None:
        """See :class:`~hvbridge.channel.base.Transport`."""
        self._end()

    def _log_end(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Ended):
                log.info("%s: %s", self.description, event.reason)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a SPICE client has for what."""

    link: float = 10.0
    """TLS handshake and link stage together, from the accepted connection on."""

    webdav: float = 30.0
    """Opening the webdav channel after the main channel."""

    ping: float = 10.0
    """Silence after which a channel is pinged."""

    silence: float = 60.0
    """Silence after which a client counts as gone. Its one thread may be busy for seconds."""

    probe: float = 5.0
    """Answering a ping when a second client wants its place."""

    guess: float = 1.0
    """Waiting for the answer to a wrong password."""


class Client:
    """One client's session: its main channel, and its webdav channel once that is open."""

    def __init__(self, main: Connection) -> None:
        self.main = main
        self.session_id = secrets.randbelow(0xFFFFFFFF) + 1  # 0 would mean: none
        self.transport: SpiceTransport | None = None
        self.since = time.monotonic()
        self._missed: float | None = None  # when it was last heard before a probe in vain

    @property
    def lost(self) -> bool:
        """True if it left a probe unanswered and was not heard since."""
        return self._missed == self.main.heard

    def probe(self, timeout: float) -> bool:
        """True if it answers a ping within ``timeout`` seconds."""
        before = self.main.heard
        answers = self.main.answers(timeout)
        if not answers:
            # Not dropped yet: who asked may be a stranger without the password.
            self._missed = before
        return answers

    @property
    def over(self) -> bool:
        """True once it left, or was dropped."""
        return self.main.wire.closed

    def close(self) -> None:
        """End both channels. Idempotent."""
        self.main.close()
        if self.transport is not None:
            self.transport.connection.close()

    def check(self, timeouts: Timeouts) -> None:
        """Ping what is silent; raises :class:`ChannelTimeout` when that has gone on for too long."""
        now = time.monotonic()
        watched = [self.main]
        if self.transport is None:
            if now - self.since > timeouts.webdav:
                raise ChannelTimeout("it opened no webdav channel: it cannot share a folder")
        elif self.transport.taken:
            watched.append(self.transport.connection)
        for connection in watched:
            silent = now - connection.heard
            if silent > timeouts.silence:
                raise ChannelTimeout(f"no sign of life for {silent:.0f} s")
            if silent > timeouts.ping:
                connection.ping(STALL)
