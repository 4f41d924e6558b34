"""The link stage of a SPICE connection: headers, capabilities, ticket (pure codecs).

Every SPICE channel is a connection of its own and begins with this dialogue,
named here as in spice-protocol's ``spice/protocol.h``; integers are
little-endian::

    client  SpiceLinkHeader, SpiceLinkMess      who I am, what I can do
    server  SpiceLinkHeader, SpiceLinkReply     an RSA key, what I can do
    client  uint32 mechanism                    if both have AUTH_SELECTION
    client  SpiceLinkEncryptedTicket            the password, RSA-OAEP-SHA1
    server  uint32 SpiceLinkErr                 0: messages may follow

Capabilities travel as arrays of ``uint32``; here a set of them is one ``int``
whose bit *n* is capability *n*.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from hvbridge.errors import ProtocolError

MAGIC = b"REDQ"
VERSION_MAJOR = 2
VERSION_MINOR = 2

HEADER = struct.Struct("<4sIII")
_MESS = struct.Struct("<IBBIII")
_REPLY = struct.Struct("<I162sIII")
UINT32 = struct.Struct("<I")

PUBKEY_BYTES = 162
"""SPICE_TICKET_PUBKEY_BYTES: a SubjectPublicKeyInfo (DER) of an RSA key of 1024 bits."""

TICKET_BYTES = 128
"""SPICE_TICKET_KEY_PAIR_LENGTH / 8: what RSA-1024 encrypts to."""

MAX_PASSWORD = 60
"""SPICE_MAX_PASSWORD_LENGTH, in bytes; clients cut what is longer."""

MAX_LINK_SIZE = 4096
"""Bytes of one link message (spice-server's limit, too); real ones have some 30."""


class LinkErr(enum.IntEnum):
    """SpiceLinkErr: why a link is refused."""

    OK = 0
    ERROR = 1
    INVALID_MAGIC = 2
    INVALID_DATA = 3
    VERSION_MISMATCH = 4
    NEED_SECURED = 5
    NEED_UNSECURED = 6
    PERMISSION_DENIED = 7
    BAD_CONNECTION_ID = 8
    CHANNEL_NOT_AVAILABLE = 9


class ChannelType(enum.IntEnum):
    """SPICE_CHANNEL_*: the types that hvbridge has to do with."""

    MAIN = 1
    PORT = 10
    WEBDAV = 11


class CommonCap(enum.IntEnum):
    """SPICE_COMMON_CAP_*: bits of the common capabilities."""

    AUTH_SELECTION = 0
    AUTH_SPICE = 1
    AUTH_SASL = 2
    MINI_HEADER = 3


AUTH_SPICE = CommonCap.AUTH_SPICE
"""The mechanism that stands for the ticket in the client's selection."""


class LinkRefused(ProtocolError):
    """A link message that cannot be answered but with an error, ``code``."""

    def __init__(self, code: LinkErr, message: str) -> None:
        super().__init__(message)
        self.code = code


def caps(*bits: int) -> int:
    """The set of these capabilities."""
    return sum(1 << bit for bit in set(bits))


def has_cap(held: int, bit: int) -> bool:
    """True if capability ``bit`` is in the set ``held``."""
    return bool(held >> bit & 1)


@dataclass(frozen=True, slots=True)
class LinkHeader:
    """SpiceLinkHeader, which stands before either side's link message of ``size`` bytes."""

    size: int
    major: int = VERSION_MAJOR
    minor: int = VERSION_MINOR

    def pack(self) -> bytes:
        """16 bytes."""
        return HEADER.pack(MAGIC, self.major, self.minor, self.size)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> LinkHeader:
        """From 16 bytes; raises :class:`LinkRefused` for another protocol or a senseless size."""
        magic, major, minor, size = HEADER.unpack(data)
        if magic != MAGIC:
            raise LinkRefused(LinkErr.INVALID_MAGIC, f"not a SPICE client: it began with {magic!r}")
        if major != VERSION_MAJOR:
            raise LinkRefused(LinkErr.VERSION_MISMATCH, f"SPICE version {major}.{minor} is not spoken here")
        if size > MAX_LINK_SIZE:
            raise LinkRefused(LinkErr.INVALID_DATA, f"a link message of {size} bytes")
        return cls(size, major, minor)


@dataclass(frozen=True, slots=True)
class LinkMess:
    """SpiceLinkMess: the client asks for one channel.

    ``connection_id`` is 0 for a new session's main channel, else the session id
    of the main channel that this one belongs to.
    """

    connection_id: int
    channel_type: int
    channel_id: int = 0
    common_caps: int = 0
    channel_caps: int = 0

    def pack(self) -> bytes:
        """Without the header before it."""
        common, channel = _pack_caps(self.common_caps), _pack_caps(self.channel_caps)
        fixed = _MESS.pack(
            self.connection_id,
            self.channel_type,
            self.channel_id,
            len(common) // 4,
            len(channel) // 4,
            _MESS.size,
        )
        return fixed + common + channel

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> LinkMess:
        """From a whole message; raises :class:`LinkRefused` where counts and sizes disagree."""
        if len(body) < _MESS.size:
            raise LinkRefused(LinkErr.INVALID_DATA, f"a SpiceLinkMess of {len(body)} bytes")
        connection_id, channel_type, channel_id, n_common, n_channel, offset = _MESS.unpack_from(body)
        common, channel = _unpack_caps(body, n_common, n_channel, offset, _MESS.size)
        return cls(connection_id, channel_type, channel_id, common, channel)


@dataclass(frozen=True, slots=True)
class LinkReply:
    """SpiceLinkReply: the server's key and capabilities, or ``error`` and nothing."""

    error: int
    public_key: bytes = bytes(PUBKEY_BYTES)
    common_caps: int = 0
    channel_caps: int = 0

    def pack(self) -> bytes:
        """Without the header before it."""
        if len(self.public_key) != PUBKEY_BYTES:
            raise ValueError(f"a ticket key has {PUBKEY_BYTES} bytes, not {len(self.public_key)}")
        common, channel = _pack_caps(self.common_caps), _pack_caps(self.channel_caps)
        fixed = _REPLY.pack(self.error, self.public_key, len(common) // 4, len(channel) // 4, _REPLY.size)
        return fixed + common + channel

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> LinkReply:
        """From a whole message; raises :class:`LinkRefused` where counts and sizes disagree."""
        if len(body) < _REPLY.size:
            raise LinkRefused(LinkErr.INVALID_DATA, f"a SpiceLinkReply of {len(body)} bytes")
        error, key, n_common, n_channel, offset = _REPLY.unpack_from(body)
        common, channel = _unpack_caps(body, n_common, n_channel, offset, _REPLY.size)
        return cls(error, key, common, channel)


def with_header(message: LinkMess | LinkReply) -> bytes:
    """The link message as it goes on the wire."""
    body = message.pack()
    return LinkHeader(len(body)).pack() + body


def password_of(ticket: bytes) -> bytes:
    """The password in a decrypted ticket, which is a C string."""
    return ticket.partition(b"\0")[0]


def _pack_caps(held: int) -> bytes:
    return held.to_bytes(-(-held.bit_length() // 32) * 4, "little")


def _unpack_caps(
    body: bytes | memoryview, n_common: int, n_channel: int, offset: int, least: int
) -> tuple[int, int]:
    # Python's integers do not overflow: the sum is checked before anything is taken.
    if offset < least or offset + 4 * (n_common + n_channel) > len(body):
        raise LinkRefused(
            LinkErr.INVALID_DATA, f"{n_common} + {n_channel} capability words in {len(body)} bytes"
        )
    border = offset + 4 * n_common
    common = int.from_bytes(body[offset:border], "little")
    channel = int.from_bytes(body[border : border + 4 * n_channel], "little")
    return common, channel
