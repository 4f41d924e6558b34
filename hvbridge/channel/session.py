"""One open port: its streams, one reading thread, writers under one lock.

Invariants. The reading thread never writes and never waits for a consumer
longer than :data:`~hvbridge.channel.buffer.PATIENCE`: with no flow control per
stream, anything else could deadlock with a peer that does the same. A write
that makes no progress for the stall time ends the whole session, because a
frame cut in the middle cannot be taken back.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

from hvbridge.channel.base import Transport
from hvbridge.channel.buffer import Overflow, SpillBuffer
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout
from hvbridge.spice.mux import MAX_DATA, Counters, Event, Mux, Role, StreamClosed, StreamData, StreamOpened

log = logging.getLogger(__name__)

READ_SIZE = 256 << 10
"""Bytes asked of the transport at once: four full frames."""

LINGER = 5.0
"""Seconds that the peer has to close a stream whose answer is complete: many round
trips. After that we do, when the next stream is opened."""

CLOSE_WAIT = 0.5
"""Seconds that closing a stream waits for the line: its user has no use for it any more."""

STALL = 20.0
"""Seconds that a write may make no progress before the peer counts as gone."""


class Stream:
    """A blocking byte stream over the mux: one HTTP connection."""

    def __init__(self, session: Session, sid: int) -> None:
        self.id = sid
        self.reusable = True
        """Set to false to make connection pools drop this stream once it is idle."""
        self._session = session
        self._buffer = SpillBuffer()
        self._closed = False
        self._sent = False
        self._expecting = True

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Up to ``max_bytes``; ``b""`` when the peer closed the stream.

        Raises :class:`ChannelTimeout` after ``timeout`` seconds without data,
        :class:`ChannelClosed` when the port closed over it.
        """
        try:
            return self._buffer.get(max_bytes, timeout)
        except TimeoutError:
            raise ChannelTimeout(f"no answer within {timeout:g} s") from None

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send ``data``; up to 65535 bytes leave as one frame.

        Raises :class:`ChannelTimeout` if the channel stays busy for ``timeout``
        seconds, :class:`ChannelClosed` if the stream or the port ended.
        """
        self._sent = self._expecting = True
        self._session.send(self, data, timeout)

    def idle(self) -> None:
        """The answer is complete: whatever comes before the next :meth:`write` was not asked for."""
        self._expecting = False

    def close(self) -> None:
        """Close the stream, dropping what was not read. Idempotent, never raises."""
        if not self._closed:
            self._closed = True
            self._buffer.discard()
            self._session.finish(self, tell_peer=self._sent)

    def linger(self) -> None:
        """Done with it, and the peer is about to close it: leave that to the peer.

        phodav closes each connection after its answer. A close of ours that crosses
        the peer's would name an id that spice-gtk no longer knows, and open another
        connection there, which nobody ever closes.
        """
        if not self._closed:
            self._closed = True
            self._buffer.discard()
            self._session.linger(self)

    @property
    def readable(self) -> bool:
        """True if :meth:`read` would not wait: for an idle connection, that it is over."""
        return self._buffer.ready

    def feed(self, data: bytes) -> None:
        """Called by the session: payload arrived. Raises :class:`Overflow` if it cannot be taken."""
        if not self._expecting:
            raise Overflow("the peer sent what nobody asked for")
        self._buffer.put(data)

    def end(self, error: ChannelError | None) -> None:
        """Called by the session: the peer closed it, or (``error``) the port did."""
        self.reusable = False
        self._buffer.end(error)


class Session:
    """The streams over one :class:`Transport`, from its opening to its end.

    ``ids``: where stream ids come from (see :class:`Mux`). Call :meth:`run` in
    the thread that shall read; it returns when the port closed.
    """

    def __init__(self, transport: Transport, role: Role, *, ids: Iterator[int] | None = None) -> None:
        self.transport = transport
        self._mux = Mux(role, ids=ids)
        self._mux.open_port()
        self._streams: dict[int, Stream] = {}
        self._state = threading.Lock()  # guards the mux and the table; never held over I/O
        self._writing = threading.Lock()  # one frame sequence at a time on the wire
        self._accepted: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        self._lingering: dict[int, tuple[float, Stream]] = {}
        self._over = False
        self.stall = STALL
        self.number = 0
        """Which of the channel's sessions this is, from 1."""

    @property
    def counters(self) -> Counters:
        """Frames and bytes so far."""
        return self._mux.counters

    @property
    def over(self) -> bool:
        """True once the port closed."""
        return self._over

    @property
    def open_streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    # --- streams --------------------------------------------------------

    def open_stream(self) -> Stream:
        """A new stream (host side). Raises :class:`ChannelClosed` if the port is closed."""
        self._close_lingering()
        with self._state:
            if self._over:
                raise ChannelClosed("the client's port is closed")
            sid = self._mux.open()
            stream = self._streams[sid] = Stream(self, sid)
            return stream

    def accept(self) -> Stream | None:
        """The next stream that the host opens (sharing side); ``None`` once the port closed."""
        stream = self._accepted.get()
        if stream is None:
            self._accepted.put(None)  # for whoever asks next
        return stream

    def send(self, stream: Stream, data: bytes, timeout: float | None) -> None:
        """Send one stream's data as frames; other streams' frames may come between."""
        started = time.monotonic()
        view = memoryview(data)
        for at in range(0, len(view), MAX_DATA):
            left = -1 if timeout is None else timeout - (time.monotonic() - started)
            if timeout is not None and left <= 0:
                raise ChannelTimeout(f"the channel was busy for {timeout:g} s")
            if not self._writing.acquire(timeout=left):
                raise ChannelTimeout(f"the channel was busy for {timeout:g} s")
            try:
                with self._state:
                    self._check_sendable(stream)
                    frames = self._mux.send(stream.id, view[at : at + MAX_DATA])
                self._write(b"".join(frames))
            finally:
                self._writing.release()

    def finish(self, stream: Stream, *, tell_peer: bool) -> None:
        """Forget a stream that our side closed, and say so to the peer."""
        with self._state:
            self._streams.pop(stream.id, None)
            if not tell_peer and self._mux.role is Role.HOST:
                self._mux.forget(stream.id)
        if not self._writing.acquire(timeout=CLOSE_WAIT):
            with self._state:  # the line is busy: whoever opens the next stream says it
                if not self._over:
                    self._streams[stream.id] = stream
                    self._lingering[stream.id] = (0.0, stream)
            return
        try:
            with self._state:
                frame = b"" if self._over else self._mux.close(stream.id)
            if frame:
                self._write(frame)
        except ChannelError as exc:
            log.debug("closing stream %d: %s", stream.id, exc)
        finally:
            self._writing.release()

    def linger(self, stream: Stream) -> None:
        """Wait for the peer's close of this stream, without anybody waiting."""
        with self._state:
            if stream.id in self._streams:
                self._lingering[stream.id] = (time.monotonic() + LINGER, stream)

    def _close_lingering(self) -> None:
        now = time.monotonic()
        with self._state:
            late = [stream for due, stream in self._lingering.values() if due < now]
            for stream in late:
                del self._lingering[stream.id]
        for stream in late:
            self.finish(stream, tell_peer=True)

    def _check_sendable(self, stream: Stream) -> None:
        if self._over:
            raise ChannelClosed("the client's port is closed")
        if not self._mux.is_open(stream.id):
            raise ChannelClosed("the peer closed the stream")

    def _write(self, data: bytes) -> None:
        try:
            self.transport.write(data, self.stall)
        except ChannelError:
            self.transport.close()
            raise

    # --- the reading thread ---------------------------------------------

    def run(self) -> None:
        """Read until the port closes, then end every stream. Never raises for the peer's faults."""
        reason = ChannelClosed("the client's port closed")
        try:
            while data := self.transport.read(READ_SIZE):
                with self._state:
                    events = self._mux.receive(data)
                for event in events:
                    self._dispatch(event)
        except ChannelError as exc:
            log.warning("%s: %s", self.transport.description, exc)
            reason = ChannelClosed(str(exc))
        finally:
            self._end(reason)

    def close(self) -> None:
        """End the session from any thread."""
        self.transport.close()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, StreamOpened):
            stream = Stream(self, event.id)
            stream._sent = True
            with self._state:
                self._streams[event.id] = stream
            self._accepted.put(stream)
            return
        target = self._streams.get(event.id)
        if target is None:
            return
        if isinstance(event, StreamClosed):
            with self._state:
                self._streams.pop(event.id, None)
                self._lingering.pop(event.id, None)
            target.end(None)
        elif isinstance(event, StreamData):
            self._feed(target, event.data)

    def _feed(self, stream: Stream, data: bytes) -> None:
        try:
            stream.feed(data)
        except Overflow as exc:
            log.warning("stream %d given up: %s", stream.id, exc)
            stream.end(ChannelClosed(str(exc)))
            # The close frame is a write, and this thread must not write.
            spawn(f"hvbridge-close-{stream.id}", stream.close)

    def _end(self, reason: ChannelError) -> None:
        with self._state:
            self._over = True
            self._mux.close_port()
            streams = list(self._streams.values())
            self._streams.clear()
            self._lingering.clear()
        for stream in streams:
            stream.end(ChannelClosed(str(reason)))
        self._accepted.put(None)
        self.transport.close()


def spawn(name: str, target: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
