"""A small WebDAV client for tests: raw requests, over mux streams or sockets, nothing hidden."""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from lxml import etree

from hvbridge.channel.session import Session, Stream, spawn
from hvbridge.errors import ChannelClosed
from hvbridge.share.server import Share
from hvbridge.spice.mux import Role
from tests.support.pipes import QueueOpener, pair

T = 15.0
"""Seconds that an answer may take."""

APACHE = "{http://apache.org/dav/props/}"

PROPS = b"""<?xml version="1.0"?><D:propfind xmlns:D="DAV:"><D:prop><D:getcontentlength/>
<D:getlastmodified/><D:resourcetype/><D:getetag/><D:displayname/>
<A:executable xmlns:A="http://apache.org/dav/props/"/></D:prop></D:propfind>"""


@dataclass(frozen=True)
class Answer:
    """What came back; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Dav:
    """Requests over one mux session, each on a stream of its own unless one is given."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(
        self,
        method: str,
        path: str | bytes,
        body: bytes = b"",
        *,
        stream: Stream | None = None,
        **headers: str,
    ) -> Answer:
        """One request; ``path`` is plain, bytes for what is not UTF-8; ``If_Match="x"`` is a header."""
        return self.send(method, path, headers, body, stream)

    def send(
        self,
        method: str,
        path: str | bytes,
        headers: dict[str, str],
        body: bytes = b"",
        stream: Stream | None = None,
    ) -> Answer:
        """As calling it, with the headers in one argument."""
        own = stream is None
        stream = stream or self.session.open_stream()
        try:
            stream.write(request(method, path, body, **headers))
            return answer(stream, method)
        finally:
            if own:
                stream.close()

    def get(self, path: str | bytes, **headers: str) -> bytes:
        """Content of a file, which must be there."""
        got = self.send("GET", path, headers)
        assert got.status in (200, 206), got
        return got.body

    def put(self, path: str | bytes, body: bytes, **headers: str) -> int:
        """Status of a PUT."""
        return self.send("PUT", path, headers, body).status

    def move(self, source: str | bytes, target: str | bytes, method: str = "MOVE", **headers: str) -> int:
        """Status of a MOVE (or COPY)."""
        return self.send(method, source, {"Destination": href(target), **headers}).status

    def list(self, path: str | bytes, depth: str = "1") -> dict[bytes, dict[str, str]]:
        """Properties by the path that an entry's href says, the folder itself included."""
        got = self("PROPFIND", path, PROPS, Depth=depth)
        assert got.status == 207, got
        return multistatus(got.body)

    def names(self, path: str | bytes) -> set[bytes]:
        """Last components of a folder's members."""
        folder = (path.encode() if isinstance(path, str) else path).rstrip(b"/") + b"/"
        return {key.removeprefix(folder).rstrip(b"/") for key in self.list(path) if key != folder}

    def proppatch(self, path: str, name: str, value: str) -> int:
        """Status that a PROPPATCH of one property got."""
        element = etree.Element("{DAV:}propertyupdate")
        prop = etree.SubElement(etree.SubElement(element, "{DAV:}set"), "{DAV:}prop")
        etree.SubElement(prop, name).text = value
        got = self("PROPPATCH", path, etree.tostring(element))
        assert got.status == 207, got
        found = re.search(rb"HTTP/1.1 (\d+)", got.body)
        assert found is not None
        return int(found[1])


def href(path: str | bytes) -> str:
    """Percent-encoded as a careful client does it."""
    return quote(path, safe="/")


def request(method: str, path: str | bytes, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {href(path)} HTTP/1.1", "Host: share"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if (body or method == "PUT") and not {"Content_Length", "Transfer_Encoding"} & headers.keys():
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class _Raw(io.RawIOBase):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(min(len(buffer), 1 << 16), T)
        except ChannelClosed:
            return 0
        buffer[: len(data)] = data
        return len(data)


class _FakeSocket:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Raw(self._stream), 1)


def answer(stream: Stream, method: str = "GET") -> Answer:
    """The next answer on a stream; raises :mod:`http.client`'s errors if it is cut short."""
    response = http.client.HTTPResponse(_FakeSocket(stream), method=method)  # type: ignore[arg-type]
    response.begin()
    body = response.read()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)


def multistatus(body: bytes) -> dict[bytes, dict[str, str]]:
    """Properties found (status 200), by decoded href; ``{DAV:}`` is left off their names."""
    result = {}
    for response in etree.fromstring(body).iterfind("{DAV:}response"):
        props: dict[str, str] = {}
        for propstat in response.iterfind("{DAV:}propstat"):
            if "200" not in (propstat.findtext("{DAV:}status") or ""):
                continue
            for prop in propstat.iterfind("{DAV:}prop/*"):
                kind = "collection" if prop.find("{DAV:}collection") is not None else prop.text or ""
                props[str(prop.tag).removeprefix("{DAV:}").removeprefix(APACHE)] = kind
        result[unquote_to_bytes(response.findtext("{DAV:}href") or "")] = props
    return result


@contextmanager
def shared(folder: Path, *, read_only: bool = False) -> Iterator[Dav]:
    """A client of ``folder``, shared over a mux in this process."""
    near, far = pair()
    opener = QueueOpener(once=True)
    opener.put(far)
    share = Share(folder, opener, read_only=read_only)
    running = spawn("test-share", share.run)
    session = Session(near, Role.HOST)
    spawn("test-host", session.run)
    try:
        yield Dav(session)
    finally:
        session.close()
        running.join(T)
        assert not running.is_alive()
