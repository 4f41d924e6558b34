"""The multiplexing of SPICE's webdav port, without I/O (h11's manner: bytes in, events out).

Wire format, from the commit that added the channel to spice.proto (2014), all
integers little-endian::

    int64   client_id
    uint16  size
    char    data[size]

A new ``client_id`` opens a stream, ``size`` 0 closes it. Frames do not align
with the messages that carry them. They flow only while the port is open; a
closed port ends every stream at once.

The *host* opens streams (it plays the HTTP clients), the *share* accepts them
(it plays the WebDAV server). Three peculiarities of spice-gtk decide details:
it opens a stream for a size-0 frame with an unknown id, so a close is sent
once, and never for a stream that already ended; ids are never reused, not even
after the port was reopened; a frame for an id that is not open is dropped and
counted, since frames may be under way while a close travels.

Memory: :meth:`Mux.receive` keeps at most one unfinished frame (10 + 65535
bytes); whatever else it is given leaves as events.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hvbridge.errors import LocalProtocolError, ProtocolError

HEADER = struct.Struct("<qH")
MAX_DATA = 0xFFFF
"""Bytes of payload in one frame: what ``uint16 size`` can say."""

MAX_STREAMS = 256
"""Streams the sharing side accepts at once. A host uses a dozen; spice-gtk has
no limit, but an unbounded table is an invitation."""


class Role(enum.Enum):
    """Which end of the channel this is."""

    HOST = "host"
    SHARE = "share"


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The host opened a stream (seen by the sharing side only)."""

    id: int


@dataclass(frozen=True, slots=True)
class StreamData:
    """Payload of one frame, at least one byte."""

    id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """The peer closed the stream (``by_port`` false) or the port closed over it."""

    id: int
    by_port: bool = False


Event = StreamOpened | StreamData | StreamClosed


@dataclass(slots=True)
class Counters:
    """What passed, for ``hvbridge status``."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0
    """Frames for ids that are not open."""


class Mux:
    """One end of the multiplexed port; not thread-safe, does no I/O.

    ``ids``: where the host's new stream ids come from; hand the same iterator to
    the next :class:`Mux` of a reconnecting channel so that none is used twice.
    """

    def __init__(
        self, role: Role, *, ids: Iterator[int] | None = None, max_streams: int = MAX_STREAMS
    ) -> None:
        self.role = role
        self.port_open = False
        self.counters = Counters()
        self._ids = ids if ids is not None else itertools.count(1)
        self._max_streams = max_streams
        self._open: set[int] = set()
        self._buffer = bytearray()

    @property
    def streams(self) -> frozenset[int]:
        """Ids of the streams that are open now."""
        return frozenset(self._open)

    def is_open(self, sid: int) -> bool:
        """True while frames may be sent on this stream."""
        return sid in self._open

    # --- the port -------------------------------------------------------

    def open_port(self) -> None:
        """The port opened (again): frames may flow, from a frame border on."""
        self._buffer.clear()
        self.port_open = True

    def close_port(self) -> list[Event]:
        """The port closed: every stream has ended. Returns their ends."""
        self.port_open = False
        self._buffer.clear()
        ended: list[Event] = [StreamClosed(sid, by_port=True) for sid in sorted(self._open)]
        self._open.clear()
        return ended

    # --- sending --------------------------------------------------------

    def open(self) -> int:
        """A new stream's id. Nothing is sent: its first data opens it at the peer."""
        if self.role is not Role.HOST:
            raise LocalProtocolError("only the host opens streams")
        if not self.port_open:
            raise LocalProtocolError("the port is closed")
        sid = next(self._ids)
        self._open.add(sid)
        return sid

    def send(self, sid: int, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Frames that carry ``data``, each whole; data up to 65535 bytes is one frame."""
        self._check_sendable(sid)
        view = memoryview(data).cast("B")
        frames = []
        for at in range(0, len(view), MAX_DATA):
            piece = view[at : at + MAX_DATA]
            frames.append(HEADER.pack(sid, len(piece)) + piece)
        self.counters.frames_out += len(frames)
        self.counters.bytes_out += len(view)
        return frames

    def close(self, sid: int) -> bytes:
        """The frame that closes the stream; empty if it has ended already."""
        if sid not in self._open:
            return b""
        self._open.discard(sid)
        self.counters.frames_out += 1
        return HEADER.pack(sid, 0)

    def forget(self, sid: int) -> None:
        """Drop a stream whose peer never heard of it (no data was sent): no close is due."""
        self._open.discard(sid)

    def _check_sendable(self, sid: int) -> None:
        if not self.port_open:
            raise LocalProtocolError("the port is closed")
        if sid not in self._open:
            raise LocalProtocolError(f"stream {sid} is not open")

    # --- receiving ------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Events of all frames that ``data`` completes; the rest is kept.

        Bytes that arrive while the port is closed are dropped: they belong to
        the time before. Ids may be negative (spice-webdavd's are truncated
        pointers). Raises :class:`ProtocolError` when the peer opens more streams
        than allowed; the channel is then of no more use.
        """
        if not self.port_open:
            return []
        if self._buffer:
            self._buffer += data
            view = memoryview(self._buffer)
        else:
            view = memoryview(data)
        events: list[Event] = []
        at, end = 0, len(view)
        try:
            while end - at >= HEADER.size:
                sid, size = HEADER.unpack_from(view, at)
                if end - at - HEADER.size < size:
                    break
                at += HEADER.size
                self._frame(sid, view[at : at + size], events)
                at += size
        finally:
            self._buffer = bytearray(view[at:])
        return events

    def _frame(self, sid: int, payload: memoryview, events: list[Event]) -> None:
        self.counters.frames_in += 1
        self.counters.bytes_in += len(payload)
        if sid not in self._open and not self._accept(sid, payload, events):
            self.counters.dropped += 1
        elif payload:
            events.append(StreamData(sid, bytes(payload)))
        else:
            self._open.discard(sid)
            events.append(StreamClosed(sid))

    def _accept(self, sid: int, payload: memoryview, events: list[Event]) -> bool:
        """True if a frame of an unknown id opens a stream (sharing side only)."""
        if self.role is Role.HOST or not payload:
            return False
        if len(self._open) >= self._max_streams:
            raise ProtocolError(f"the host opened more than {self._max_streams} streams at once")
        self._open.add(sid)
        events.append(StreamOpened(sid))
        return True
