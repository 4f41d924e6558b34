"""cheroot's HTTP over a mux stream: its connection class on file objects of ours, without sockets."""

from __future__ import annotations

import errno
import io
import logging
from typing import Any

from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.wsgi import Server

from hvbridge import __version__
from hvbridge.channel.session import Stream
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout
from hvbridge.share.app import Application
from hvbridge.spice.mux import MAX_DATA

log = logging.getLogger(__name__)

SILENCE = 60.0
"""Seconds that a host may be silent inside a request, or take nothing of an answer.
Between requests it may be silent for ever: the end of the channel ends that."""

MAX_HEADER = 64 << 10
"""Bytes of a request's line and headers."""

MAX_CHUNK = 16 << 20
"""Bytes of one chunk of a chunked body, which cheroot holds in memory."""


class Request(HTTPRequest):
    """cheroot keeps a connection although the application said ``Connection: close``."""

    def send_headers(self) -> None:
        """Send the head of the answer; there is none if the connection broke before."""
        if not self.status:
            raise BrokenPipeError(errno.EPIPE, "the connection broke within the request")
        if any(k.lower() == b"connection" and v.lower() == b"close" for k, v in self.outheaders):
            self.close_connection = True
        super().send_headers()


class Connection(HTTPConnection):
    """One HTTP connection."""

    RequestHandlerClass = Request


class DavServer(Server):
    """cheroot's server with our limits and our log."""

    ConnectionClass = Connection
    max_request_header_size = MAX_HEADER
    software = f"hvbridge/{__version__}"
    version = software

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """What cheroot would print."""
        log.log(level, "%s", msg, exc_info=traceback)


class StreamServer(DavServer):
    """What cheroot's requests ask of their server; it listens nowhere and starts no threads."""

    can_add_keepalive_connection = True

    def __init__(self, app: Application) -> None:
        super().__init__(("localhost", 80), app)

    def answer(self, stream: Stream) -> None:
        """Answer the requests of one stream until it ends; then close it."""
        writer = _Writer(stream)
        source = _Source(stream, writer)
        reader = _Reader(source)
        connection: Any = Connection(
            self, stream, lambda _stream, mode, _size: reader if "r" in mode else writer
        )
        try:
            while source.wait(reader) and connection.communicate():
                pass
            writer.flush()
        except OSError:
            pass  # the stream has ended under an answer
        finally:
            stream.close()


class _Source(io.RawIOBase):
    """A stream's incoming bytes; what was written goes out before it waits."""

    def __init__(self, stream: Stream, writer: _Writer) -> None:
        self._stream, self._writer = stream, writer
        self._timeout: float | None = SILENCE

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As :meth:`io.RawIOBase.readinto`; raises :class:`TimeoutError`."""
        self._writer.flush()
        try:
            data = self._stream.read(len(buffer), self._timeout)
        except ChannelTimeout:
            raise TimeoutError("timed out") from None  # cheroot knows it by this text
        except ChannelClosed:
            return 0
        buffer[: len(data)] = data
        return len(data)

    def wait(self, reader: io.BufferedReader) -> bool:
        """Wait for the next request, however long; false at the end."""
        self._timeout = None
        try:
            return bool(reader.peek(1))
        finally:
            self._timeout = SILENCE


class _Reader(io.BufferedReader):
    """Bounded: cheroot reads a chunk of a body at once, whatever length it claims."""

    def __init__(self, source: _Source) -> None:
        super().__init__(source, 2 * MAX_DATA)

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end."""
        if size is None or not 0 <= size <= MAX_CHUNK:
            raise ValueError("more than may be held in memory")
        return super().read(size)


class _Writer:
    """A stream's outgoing bytes; a small answer leaves as one frame, head and body."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        """Send, or keep until :meth:`flush` what does not fill a frame."""
        if len(self._held) + len(data) < MAX_DATA:
            self._held += data
            return len(data)
        self.flush()
        self._send(data)
        return len(data)

    def flush(self) -> None:
        """Send what was kept."""
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            self._send(held)

    def _send(self, data: bytes) -> None:
        try:
            self._stream.write(data, SILENCE)
        except ChannelError as exc:
            raise BrokenPipeError(errno.EPIPE, str(exc)) from exc
