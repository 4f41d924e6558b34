"""SPICE messages after the link stage: types, bodies, and the splitter (pure codecs).

Names are those of spice-protocol's ``spice/enums.h`` and of ``spice.proto``;
integers are little-endian. A message is a header and a body::

    SpiceMiniDataHeader   uint16 type, uint32 size                if both have MINI_HEADER
    SpiceDataHeader       uint64 serial, uint16 type, uint32 size, uint32 sub_list

Bodies may be longer than their definition says (SPICE grows structures at the
end); what is shorter is a protocol error.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from hvbridge.errors import ProtocolError

MINI_HEADER = struct.Struct("<HI")
FULL_HEADER = struct.Struct("<QHII")

MAX_CONTROL = 4096
"""Bytes of a message that is taken as a whole; the longest real one is a PORT_INIT of some 40."""

MAX_MESSAGE = 16 << 20
"""Bytes of a message that is passed on, or skipped, as it comes, so that its size costs no memory.
Real ones reach 64 KiB; a longer claim than this means that header and body were mixed up."""

WEBDAV_PORT = b"org.spice-space.webdav.0"
"""The port's name, by which clients recognise it."""


class Msg(enum.IntEnum):
    """Server to client: SPICE_MSG_*, SPICE_MSG_MAIN_*, SPICE_MSG_SPICEVMC_*, SPICE_MSG_PORT_*."""

    SET_ACK = 3
    PING = 4
    DISCONNECTING = 6
    NOTIFY = 7
    DATA = 101
    COMPRESSED_DATA = 102
    MAIN_INIT = 103
    MAIN_CHANNELS_LIST = 104
    PORT_INIT = 201
    PORT_EVENT = 202


class MsgC(enum.IntEnum):
    """Client to server: SPICE_MSGC_*, SPICE_MSGC_MAIN_*, SPICE_MSGC_SPICEVMC_*, SPICE_MSGC_PORT_*."""

    ACK_SYNC = 1
    ACK = 2
    PONG = 3
    DISCONNECTING = 6
    DATA = 101
    COMPRESSED_DATA = 102
    MAIN_ATTACH_CHANNELS = 104
    PORT_EVENT = 201


class PortEvent(enum.IntEnum):
    """SPICE_PORT_EVENT_*."""

    OPENED = 0
    CLOSED = 1
    BREAK = 2


@dataclass(frozen=True, slots=True)
class SetAck:
    """SpiceMsgSetAck: acknowledge every ``window`` messages from here on."""

    generation: int
    window: int
    _layout: ClassVar = struct.Struct("<II")

    def pack(self) -> bytes:
        """8 bytes."""
        return self._layout.pack(self.generation, self.window)

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> SetAck:
        """Raises :class:`ProtocolError` if ``body`` is too short."""
        return cls(*_take(cls._layout, body, "SET_ACK"))


@dataclass(frozen=True, slots=True)
class AckSync:
    """SpiceMsgcAckSync: the client counts by SET_ACK ``generation`` now."""

    generation: int
    _layout: ClassVar = struct.Struct("<I")

    def pack(self) -> bytes:
        """4 bytes."""
        return self._layout.pack(self.generation)

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> AckSync:
        """Raises :class:`ProtocolError` if ``body`` is too short."""
        return cls(*_take(cls._layout, body, "ACK_SYNC"))


@dataclass(frozen=True, slots=True)
class Ping:
    """SpiceMsgPing, and SpiceMsgcPong, which returns the same: ``time`` is the server's own."""

    id: int
    time: int
    _layout: ClassVar = struct.Struct("<IQ")

    def pack(self) -> bytes:
        """12 bytes."""
        return self._layout.pack(self.id, self.time)

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> Ping:
        """Raises :class:`ProtocolError` if ``body`` is too short."""
        return cls(*_take(cls._layout, body, "PING or PONG"))


@dataclass(frozen=True, slots=True)
class Disconnecting:
    """SpiceMsgDisconnect, from either side: the connection is about to end."""

    time: int
    reason: int
    _layout: ClassVar = struct.Struct("<QI")

    def pack(self) -> bytes:
        """12 bytes."""
        return self._layout.pack(self.time, self.reason)

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> Disconnecting:
        """Raises :class:`ProtocolError` if ``body`` is too short."""
        return cls(*_take(cls._layout, body, "DISCONNECTING"))


@dataclass(frozen=True, slots=True)
class MainInit:
    """SpiceMsgMainInit; the defaults say that there is no display, no agent and no sound."""

    session_id: int
    display_channels_hint: int = 0
    supported_mouse_modes: int = 1
    current_mouse_mode: int = 1
    agent_connected: int = 0
    agent_tokens: int = 0
    multi_media_time: int = 0
    ram_hint: int = 0
    _layout: ClassVar = struct.Struct("<8I")

    def pack(self) -> bytes:
        """32 bytes."""
        return self._layout.pack(
            self.session_id,
            self.display_channels_hint,
            self.supported_mouse_modes,
            self.current_mouse_mode,
            self.agent_connected,
            self.agent_tokens,
            self.multi_media_time,
            self.ram_hint,
        )

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> MainInit:
        """Raises :class:`ProtocolError` if ``body`` is too short."""
        return cls(*_take(cls._layout, body, "MAIN_INIT"))


@dataclass(frozen=True, slots=True)
class ChannelsList:
    """SpiceMsgChannels: the (type, id) pairs that a client may open."""

    channels: tuple[tuple[int, int], ...]

    def pack(self) -> bytes:
        """4 bytes, and 2 for each channel."""
        pairs = b"".join(bytes(pair) for pair in self.channels)
        return struct.pack("<I", len(self.channels)) + pairs

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> ChannelsList:
        """Raises :class:`ProtocolError` if there are fewer than it says."""
        (count,) = _take(struct.Struct("<I"), body, "CHANNELS_LIST")
        if 4 + 2 * count > len(body):
            raise ProtocolError(f"CHANNELS_LIST of {count} channels in {len(body)} bytes")
        return cls(tuple((body[at], body[at + 1]) for at in range(4, 4 + 2 * count, 2)))


@dataclass(frozen=True, slots=True)
class PortInit:
    """SpiceMsgPortInit; ``name`` without its NUL."""

    name: bytes
    opened: bool
    _layout: ClassVar = struct.Struct("<IIB")

    def pack(self) -> bytes:
        """9 bytes, the name, and its NUL; the offset is where the name begins."""
        return self._layout.pack(len(self.name) + 1, self._layout.size, self.opened) + self.name + b"\0"

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> PortInit:
        """Raises :class:`ProtocolError` if the name is not within ``body``."""
        size, offset, opened = _take(cls._layout, body, "PORT_INIT")
        if offset < cls._layout.size or offset + size > len(body):
            raise ProtocolError(f"PORT_INIT with a name of {size} bytes at {offset} in {len(body)} bytes")
        return cls(bytes(body[offset : offset + size]).partition(b"\0")[0], bool(opened))


def pack_port_event(event: PortEvent) -> bytes:
    """SpiceMsgPortEvent: one byte."""
    return bytes([event])


def unpack_port_event(body: bytes | memoryview) -> PortEvent:
    """Raises :class:`ProtocolError` for an empty body or an event that there is not."""
    (code,) = _take(struct.Struct("<B"), body, "PORT_EVENT")
    try:
        return PortEvent(code)
    except ValueError:
        raise ProtocolError(f"PORT_EVENT {code}") from None


def _take(layout: struct.Struct, body: bytes | memoryview, name: str) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise ProtocolError(f"{name} of {len(body)} bytes")
    return layout.unpack_from(body)


class MessageReader:
    """Splits a connection's bytes into messages.

    ``streamed`` types are passed on piece by piece as they come, ``whole`` ones
    in one piece of at most :data:`MAX_CONTROL` bytes, all others are skipped.
    So it never holds more than one header and one small body.
    """

    def __init__(self, *, mini: bool, streamed: Collection[int], whole: Collection[int]) -> None:
        self._header = MINI_HEADER if mini else FULL_HEADER
        self._mini = mini
        self._streamed = frozenset(streamed)
        self._whole = frozenset(whole)
        self._kept = bytearray()
        self._type = 0
        self._left = 0  # bytes of a streamed or skipped body still to come

    @property
    def held(self) -> int:
        """Bytes that wait for the rest of their message."""
        return len(self._kept)

    def receive(self, data: bytes | bytearray | memoryview) -> list[tuple[int, memoryview]]:
        """``(type, body or a piece of it)`` for all that ``data`` completes.

        The views are of ``data`` itself: use them before its buffer is used
        again. Raises :class:`ProtocolError` for sizes over the limits.
        """
        if self._kept:
            self._kept += data
            view = memoryview(self._kept)
        else:
            view = memoryview(data)
        pieces: list[tuple[int, memoryview]] = []
        at, end = 0, len(view)
        while True:
            if self._left:
                piece = view[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if piece and self._type in self._streamed:
                    pieces.append((self._type, piece))
            if self._left or end - at < self._header.size:
                break
            kind, size = self._unpack_header(view, at)
            if kind in self._whole:
                if end - at - self._header.size < size:
                    break
                at += self._header.size
                pieces.append((kind, view[at : at + size]))
                at += size
            else:
                at += self._header.size
                self._type, self._left = kind, size
        self._kept = bytearray(view[at:])
        return pieces

    def _unpack_header(self, view: memoryview, at: int) -> tuple[int, int]:
        if self._mini:
            kind, size = MINI_HEADER.unpack_from(view, at)
        else:
            _serial, kind, size, sub_list = FULL_HEADER.unpack_from(view, at)
            if sub_list:
                raise ProtocolError("a client's message with sub-messages")
        limit = MAX_CONTROL if kind in self._whole else MAX_MESSAGE
        if size > limit:
            raise ProtocolError(f"a message of type {kind} and {size} bytes; {limit} are allowed")
        return kind, size
