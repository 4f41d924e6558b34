"""A WebDAV server over the mux that answers byte for byte what a test says."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hvbridge.channel.base import Opener
from hvbridge.channel.channel import Channel, State
from hvbridge.channel.session import Stream, spawn
from hvbridge.config import Limits
from hvbridge.errors import ChannelError
from hvbridge.spice.mux import Role
from hvbridge.webdav.remote import WebdavRemote, connect_remote
from tests.support.webdav_servers import PairOpener, host_channel, opener_pair

PATIENCE = 20.0


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    stream: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    frames: tuple[int, ...]
    """Sizes of the pieces that it came in: one each mux frame."""


Answer = Iterable[bytes]
Script = Callable[[Request], Answer]


class ScriptedServer:
    """Answers each request with what ``script`` gives for it.

    The pieces are sent as frames; after the last one the stream stays open, or is
    closed if the script raises :class:`Hangup`. ``opener``: the sharing end of a channel,
    by default one to :meth:`connected`. ``requests``: what came, oldest first.
    """

    def __init__(self, script: Script, opener: Opener | None = None) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.closed = threading.Event()
        """Set when the host closed a stream under an answer, or before its next request."""
        self._near: PairOpener | None = None
        if opener is None:
            self._near, opener = opener_pair()
        self._channel = Channel(opener, Role.SHARE, on_state=self._state)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Channel]:
        """Serve whoever is at the other end of the opener; the channel, for frames of another kind."""
        self._channel.start()
        try:
            yield self._channel
        finally:
            self._channel.close()

    @contextlib.contextmanager
    def connected(self, limits: Limits | None = None) -> Iterator[WebdavRemote]:
        """The remote at the other end; there was no opener given."""
        assert self._near is not None
        self._channel.start()
        try:
            with host_channel(self._near) as channel:
                with contextlib.closing(connect_remote(channel, limits=limits)) as remote:
                    yield remote
        finally:
            self._channel.close()

    def hang_up(self) -> None:
        """Close the channel, as a client that leaves."""
        self._channel.close()

    def _state(self, state: State) -> None:
        if state is State.OPEN:
            session = self._channel.session(0)
            spawn("scripted-accept", lambda: self._accept(session.accept))

    def _accept(self, accept: Callable[[], Stream | None]) -> None:
        while (stream := accept()) is not None:
            spawn("scripted-serve", functools.partial(self._serve, stream))

    def _serve(self, stream: Stream) -> None:
        try:
            while (request := self._receive(stream)) is not None:
                self.requests.append(request)
                for piece in self.script(request):
                    stream.write(piece, PATIENCE)
        except Hangup:
            pass
        except ChannelError:
            self.closed.set()
        else:
            self.closed.set()
        stream.close()

    def _receive(self, stream: Stream) -> Request | None:
        data, frames = b"", []
        while b"\r\n\r\n" not in data:
            piece = stream.read(1 << 20, PATIENCE)
            if not piece:
                return None
            data += piece
            frames.append(len(piece))
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers.get("content-length", "0")):
            piece = stream.read(1 << 20, PATIENCE)
            if not piece:
                return None
            body += piece
            frames.append(len(piece))
        method, target, _ = first.split(" ")
        return Request(stream.id, method, target, headers, body, tuple(frames))


class Hangup(Exception):
    """Raised by a script: close the stream now."""


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer with ``Content-Length``; ``content_type="x"`` becomes ``Content-Type: x``."""
    headers = {"server": "Scripted/1", "content_length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} Scripted"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def multistatus(*entries: str) -> bytes:
    """The XML of a 207 with these ``response`` elements (prefix ``D`` is bound)."""
    return ('<D:multistatus xmlns:D="DAV:">' + "".join(entries) + "</D:multistatus>").encode()


def entry(href: str, size: int | None = None, extra: str = "") -> str:
    """A ``response`` for a file of ``size``, or for a folder."""
    kind = "<D:resourcetype><D:collection/></D:resourcetype>"
    if size is not None:
        kind = f"<D:resourcetype/><D:getcontentlength>{size}</D:getcontentlength>"
    return (
        f"<D:response><D:href>{href}</D:href><D:propstat><D:prop>{kind}{extra}</D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )
