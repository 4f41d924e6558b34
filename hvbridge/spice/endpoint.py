"""The server's end of one SPICE connection, without I/O: bytes in, events out, bytes to send.

It offers two channels, *main* and *webdav*, which is what a client needs to
share a folder. A connection goes through these states::

    HEADER ── MESS ── REQUESTED ─┬─ MECHANISM ─┬─ TICKET ── AUTHENTICATED ─┬─ MAIN
                                 └─────────────┘                           └─ WEBDAV
    and from each of them to CLOSED

In REQUESTED and AUTHENTICATED the owner decides, with :meth:`Endpoint.offer`,
:meth:`Endpoint.accept` or :meth:`Endpoint.refuse`, since only it knows the other
connections. Nothing that arrives in between is lost.

Capabilities offered: AUTH_SELECTION, AUTH_SPICE, MINI_HEADER. The webdav
channel's LZ4 capability is withheld: a folder's content is mostly compressed
already, the channel is limited by the client's one thread rather than by the
line, and a decompressor is one more parser of a stranger's bytes. Compressed
data without it are a protocol error.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hvbridge.errors import LocalProtocolError, ProtocolError
from hvbridge.spice import link, messages
from hvbridge.spice.link import ChannelType, CommonCap, LinkErr, LinkHeader, LinkMess, LinkRefused, LinkReply
from hvbridge.spice.messages import MsgC, PortEvent
from hvbridge.spice.mux import HEADER as FRAME_HEADER
from hvbridge.spice.mux import MAX_DATA

COMMON_CAPS = link.caps(CommonCap.AUTH_SELECTION, CommonCap.AUTH_SPICE, CommonCap.MINI_HEADER)

MAX_PAYLOAD = FRAME_HEADER.size + MAX_DATA
"""Bytes of one DATA message that we send: a whole frame of the mux. spice-gtk
hands over whole messages, so a frame should not be cut by their border."""

ACK_WINDOW = 64
"""Messages after which the client acknowledges. Twice as many may be under way
(8 MiB of full ones), which is as spice-server does it."""

MAX_EARLY = 16 << 10
"""Bytes that may wait for the owner's decision; a client has nothing to send then."""


class State(enum.Enum):
    """Where a connection is in its life."""

    HEADER = "link header"
    MESS = "link message"
    REQUESTED = "channel requested"
    MECHANISM = "authentication mechanism"
    TICKET = "ticket"
    AUTHENTICATED = "authenticated"
    MAIN = "main channel"
    WEBDAV = "webdav channel"
    CLOSED = "closed"


NEXT: Mapping[State, frozenset[State]] = {
    State.HEADER: frozenset({State.MESS, State.CLOSED}),
    State.MESS: frozenset({State.REQUESTED, State.CLOSED}),
    State.REQUESTED: frozenset({State.MECHANISM, State.TICKET, State.CLOSED}),
    State.MECHANISM: frozenset({State.TICKET, State.CLOSED}),
    State.TICKET: frozenset({State.AUTHENTICATED, State.CLOSED}),
    State.AUTHENTICATED: frozenset({State.MAIN, State.WEBDAV, State.CLOSED}),
    State.MAIN: frozenset({State.CLOSED}),
    State.WEBDAV: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
"""All transitions there are."""

_STREAMED = {State.MAIN: frozenset[int](), State.WEBDAV: frozenset({MsgC.DATA, MsgC.COMPRESSED_DATA})}
_WHOLE = {
    State.MAIN: frozenset({MsgC.PONG, MsgC.DISCONNECTING, MsgC.MAIN_ATTACH_CHANNELS}),
    State.WEBDAV: frozenset({MsgC.ACK_SYNC, MsgC.ACK, MsgC.PONG, MsgC.DISCONNECTING, MsgC.PORT_EVENT}),
}

Decrypt = Callable[[bytes], bytes | None]
"""RSA-OAEP-SHA1 with the private key to the public one that was offered: the
ticket's plain text, or ``None`` if it is not one."""


@dataclass(frozen=True, slots=True)
class LinkRequested:
    """A client asks for a channel: answer with ``offer()`` or ``refuse()``."""

    mess: LinkMess


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The ticket is right: answer with ``accept()`` or ``refuse()``."""


@dataclass(frozen=True, slots=True)
class AuthenticationFailed:
    """The ticket is wrong. ``guess``: it was not just empty, as a client's first try is.

    The refusal waits in :meth:`Endpoint.data_to_send`; the connection is over.
    """

    guess: bool


@dataclass(frozen=True, slots=True)
class PortData:
    """A piece of the port's byte stream, valid until the next call of ``receive()``."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The client took messages: :attr:`Endpoint.room` has grown."""


@dataclass(frozen=True, slots=True)
class Ponged:
    """The client answered a ping; ``time`` is what :meth:`Endpoint.ping` was given."""

    time: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The client closes the port or the connection; ``reason`` is for people."""

    reason: str


Event = LinkRequested | Authenticated | AuthenticationFailed | PortData | Acknowledged | Ponged | Ended


class Endpoint:
    """One connection; not thread-safe, does no I/O, knows no clock.

    ``password``: what the ticket must hold, as bytes; ``None`` lets everybody in.
    """

    def __init__(self, password: bytes | None = None) -> None:
        self.state = State.HEADER
        self.mess: LinkMess | None = None
        """What the client asked for, once it did."""
        self._password = password
        self._decrypt: Decrypt | None = None
        self._mini = False
        self._mess_size = 0
        self._buffer = bytearray()
        self._reader: messages.MessageReader | None = None
        self._out: list[bytes] = []
        self._serial = 0
        self._pings = 0
        self._unacked = 0

    @property
    def closed(self) -> bool:
        """True once the connection is over; what :meth:`data_to_send` still has is the reason."""
        return self.state is State.CLOSED

    # --- sending --------------------------------------------------------

    def data_to_send(self) -> list[bytes]:
        """What must go to the client now, handed out once; each item is a whole unit.

        Over TLS each must be written by itself. spice-gtk (0.42) waits for its
        socket after every message, though OpenSSL may hold the next one already:
        two in one TLS record, and the second is seen when a third comes.
        """
        data, self._out = self._out, []
        return data

    @property
    def room(self) -> int:
        """How many more messages the client's acknowledgements allow."""
        return max(0, 2 * ACK_WINDOW - self._unacked)

    def send_data(self, data: bytes | memoryview) -> None:
        """One DATA message of at most :data:`MAX_PAYLOAD` bytes.

        Raises :class:`LocalProtocolError` where the port is not open, the data
        are too long, or there is no :attr:`room`.
        """
        if self.state is not State.WEBDAV:
            raise LocalProtocolError(f"no data can be sent in state {self.state.value!r}")
        if len(data) > MAX_PAYLOAD:
            raise LocalProtocolError(f"{len(data)} bytes in one message")
        if not self.room:
            raise LocalProtocolError("the client has not acknowledged earlier messages")
        self._send(messages.Msg.DATA, data)

    def ping(self, time: int) -> None:
        """Ask for a sign of life; ``time`` (64 bits, any unit) comes back in :class:`Ponged`."""
        self._pings = (self._pings + 1) & 0xFFFFFFFF
        self._send(messages.Msg.PING, messages.Ping(self._pings, time).pack())

    def _send(self, kind: int, body: bytes | memoryview) -> None:
        if self.state not in (State.MAIN, State.WEBDAV):
            raise LocalProtocolError(f"no message can be sent in state {self.state.value!r}")
        if self._mini:
            header = messages.MINI_HEADER.pack(kind, len(body))
        else:
            self._serial += 1
            header = messages.FULL_HEADER.pack(self._serial, kind, len(body), 0)
        self._out.append(b"".join((header, body)))
        if self.state is State.WEBDAV:
            self._unacked += 1

    # --- the owner's decisions ------------------------------------------

    def offer(self, public_key: bytes, decrypt: Decrypt) -> list[Event]:
        """Go on with the link: the client may send its ticket for this key.

        ``public_key``: 162 bytes of DER. Returns the events of what had arrived
        already.
        """
        self._must_be(State.REQUESTED)
        assert self.mess is not None
        self._decrypt = decrypt
        self._out.append(link.with_header(LinkReply(LinkErr.OK, public_key, COMMON_CAPS)))
        self._mini = link.has_cap(self.mess.common_caps, CommonCap.MINI_HEADER)
        selects = link.has_cap(self.mess.common_caps, CommonCap.AUTH_SELECTION)
        self._become(State.MECHANISM if selects else State.TICKET)
        return self.receive(b"")

    def accept(self, session_id: int) -> list[Event]:
        """Let the client in: the main channel learns its session id, the webdav channel its open port.

        Returns the events of what had arrived already.
        """
        self._must_be(State.AUTHENTICATED)
        assert self.mess is not None
        state = State.MAIN if self.mess.channel_type == ChannelType.MAIN else State.WEBDAV
        self._out.append(link.UINT32.pack(LinkErr.OK))
        self._become(state)
        self._reader = messages.MessageReader(mini=self._mini, streamed=_STREAMED[state], whole=_WHOLE[state])
        if state is State.MAIN:
            self._send(messages.Msg.MAIN_INIT, messages.MainInit(session_id).pack())
        else:
            self._send(messages.Msg.SET_ACK, messages.SetAck(1, ACK_WINDOW).pack())
            self._unacked = 0  # the client counts from here
            self._send(messages.Msg.PORT_INIT, messages.PortInit(messages.WEBDAV_PORT, True).pack())
        early, self._buffer = self._buffer, bytearray()
        return self.receive(early)

    def refuse(self, code: LinkErr) -> None:
        """End the link with an error, in the form that its stage has."""
        self._must_be(State.REQUESTED, State.AUTHENTICATED)
        self._refuse(code)

    def _refuse(self, code: LinkErr) -> None:
        if self.state in (State.HEADER, State.MESS, State.REQUESTED):
            self._out.append(link.with_header(LinkReply(code)))
        else:
            self._out.append(link.UINT32.pack(code))
        self._become(State.CLOSED)

    def _must_be(self, *allowed: State) -> None:
        if self.state not in allowed:
            raise LocalProtocolError(f"out of turn in state {self.state.value!r}")

    def _become(self, state: State) -> None:
        if state not in NEXT[self.state]:
            raise LocalProtocolError(f"no way from {self.state.value!r} to {state.value!r}")
        self.state = state

    # --- receiving ------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Events of all that ``data`` completes; what is incomplete is kept.

        Raises :class:`ProtocolError` when the client broke the protocol: send
        what :meth:`data_to_send` has (the error, during the link stage), and
        close. A closed endpoint takes no notice of anything.
        """
        if self.closed:
            return []
        if self._reader is None:
            return self._receive_link(data)
        events: list[Event] = []
        try:
            for kind, body in self._reader.receive(data):
                self._message(kind, body, events)
                if self.closed:
                    break
        except ProtocolError:
            self._become(State.CLOSED)
            raise
        return events

    def _receive_link(self, data: bytes | bytearray | memoryview) -> list[Event]:
        self._buffer += data
        events: list[Event] = []
        try:
            while (size := self._link_size()) is not None and len(self._buffer) >= size:
                unit = bytes(self._buffer[:size])
                del self._buffer[:size]
                self._link_unit(unit, events)
        except LinkRefused as exc:
            self._refuse(exc.code)
            raise
        if not self.closed and len(self._buffer) > MAX_EARLY:
            self._become(State.CLOSED)
            raise ProtocolError("the client sends without waiting for an answer")
        return events

    def _link_size(self) -> int | None:
        """Bytes of the unit that is due; ``None`` where none is."""
        return {
            State.HEADER: link.HEADER.size,
            State.MESS: self._mess_size,
            State.MECHANISM: link.UINT32.size,
            State.TICKET: link.TICKET_BYTES,
        }.get(self.state)

    def _link_unit(self, unit: bytes, events: list[Event]) -> None:
        if self.state is State.HEADER:
            self._mess_size = LinkHeader.unpack(unit).size
            self._become(State.MESS)
        elif self.state is State.MESS:
            self.mess = LinkMess.unpack(unit)
            self._become(State.REQUESTED)
            events.append(LinkRequested(self.mess))
        elif self.state is State.MECHANISM:
            (mechanism,) = link.UINT32.unpack(unit)
            if mechanism != link.AUTH_SPICE:
                raise LinkRefused(LinkErr.INVALID_DATA, f"authentication mechanism {mechanism}")
            self._become(State.TICKET)
        else:
            events.append(self._check_ticket(unit))

    def _check_ticket(self, ticket: bytes) -> Event:
        if self._password is None:
            self._become(State.AUTHENTICATED)
            return Authenticated()
        assert self._decrypt is not None
        plain = self._decrypt(ticket)
        given = link.password_of(plain) if plain is not None else None
        # An undecipherable ticket takes the same way as a wrong password.
        if hmac.compare_digest(given or b"", self._password) and given:
            self._become(State.AUTHENTICATED)
            return Authenticated()
        self._refuse(LinkErr.PERMISSION_DENIED)
        return AuthenticationFailed(guess=given != b"")

    # --- messages -------------------------------------------------------

    def _message(self, kind: int, body: memoryview, events: list[Event]) -> None:
        if kind == MsgC.DATA:
            events.append(PortData(body))
        elif kind == MsgC.ACK:
            self._unacked = max(0, self._unacked - ACK_WINDOW)
            events.append(Acknowledged())
        elif kind == MsgC.PONG:
            events.append(Ponged(messages.Ping.unpack(body).time))
        elif kind == MsgC.MAIN_ATTACH_CHANNELS:
            offered = messages.ChannelsList(((ChannelType.WEBDAV, 0),))
            self._send(messages.Msg.MAIN_CHANNELS_LIST, offered.pack())
        elif kind == MsgC.DISCONNECTING:
            self._end(f"the client disconnects (reason {messages.Disconnecting.unpack(body).reason})", events)
        elif kind == MsgC.PORT_EVENT:
            self._port_event(messages.unpack_port_event(body), events)
        elif kind == MsgC.COMPRESSED_DATA:
            raise ProtocolError("compressed data, which were not agreed upon")

    def _port_event(self, event: PortEvent, events: list[Event]) -> None:
        if event is PortEvent.CLOSED:
            self._end("the client closed the port", events)

    def _end(self, reason: str, events: list[Event]) -> None:
        self._become(State.CLOSED)
        events.append(Ended(reason))
