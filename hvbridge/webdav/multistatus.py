"""Multi-Status answers (RFC 4918 §13), bytes in, responses out; no I/O.

:class:`MultistatusParser` reads an answer as it arrives and builds no tree: what
it holds at any time is one response and at most :data:`MAX_TEXT` bytes of input.
The answer comes from a stranger, so there is a limit on everything, a DOCTYPE
(and with it every entity) is refused, and XML that is not well-formed is an
error, a cut answer included: a short listing must never pass for a whole one.

Two faults of real servers would make whole folders unreadable and are mended in
the bytes before they are parsed, since each has just one meaning:

* phodav copies the path of the request into ``href`` without escaping it, so a
  folder ``R&D`` makes ``&`` stand where only an entity may (``mend_ampersands``);
* control characters and noncharacters, which XML 1.0 cannot carry (§2.2), stand
  raw where a file name has them. They pass the parser as code points at the end
  of plane 16 and are turned back afterwards.

Bytes that are not UTF-8 become U+FFFD; names with it are judged by the caller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from hvbridge.config import Limits
from hvbridge.errors import IOFailed, TooLarge

DAV = "{DAV:}"
APACHE = "{http://apache.org/dav/props/}"

MAX_TEXT = 64 << 10
"""Bytes of one text or tag. A path of 128 components of 255 bytes, escaped, has 98 KB; real hrefs end
at PATH_MAX (4096, escaped 12 KB)."""

MAX_PROPERTIES = 64
"""Properties of one response. We ask for seven."""

BARE_AMPERSAND = re.compile(rb"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9a-fA-F]{1,6});)")
UNCARRIABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
MAYBE_UNCARRIABLE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")
DISGUISE = 0x10F700
"""Private code points that stand for :data:`UNCARRIABLE` ones: this plus the low byte."""

DISGUISED = re.compile("[\U0010f700-\U0010f71f\U0010f7fe\U0010f7ff]")
STATUS_LINE = re.compile(r"HTTP/\d(?:\.\d)? +(\d{3})(?: |$)")


@dataclass(slots=True)
class RawResponse:
    """One ``response`` element as it stands."""

    href: str = ""
    status: int | None = None
    """Of the response as a whole; ``None`` where it has propstats instead."""

    collection: bool = False
    """``resourcetype`` holds ``collection``."""

    properties: dict[str, str] = field(default_factory=dict)
    """Text of the properties whose propstat says 200, by ``{namespace}name``."""

    failed: dict[str, int] = field(default_factory=dict)
    """Status of the properties whose propstat says something else."""


class MultistatusParser:
    """Feed it the body of one 207; take responses as they complete.

    ``mend_ampersands``: for phodav only, see the module's docstring.
    """

    def __init__(self, limits: Limits, *, mend_ampersands: bool = False) -> None:
        self._limits = limits
        self._mend_ampersands = mend_ampersands
        self._received = 0
        self._held = bytearray()
        self._target = _Target(limits)
        self._parser = etree.XMLParser(
            target=self._target,
            encoding="utf-8",
            resolve_entities=False,
            load_dtd=False,
            no_network=True,
            huge_tree=False,
        )

    def feed(self, data: bytes) -> list[RawResponse]:
        """Responses that ``data`` completes.

        Raises :class:`TooLarge` over a limit of the host, :class:`IOFailed` for
        what is not a multistatus document.
        """
        self._received += len(data)
        if self._received > self._limits.listing_bytes:
            raise TooLarge(f"the client's listing has more than {self._limits.listing_bytes} bytes")
        self._held += data
        # Up to a tag's end no character, reference or declaration is cut in two.
        cut = self._held.rfind(b">") + 1
        if len(self._held) - cut > MAX_TEXT:
            raise IOFailed(f"the client's listing has a text of more than {MAX_TEXT} bytes")
        if cut:
            piece = bytes(memoryview(self._held)[:cut])
            del self._held[:cut]
            self._parse(piece)
        return self._target.take()

    def close(self) -> list[RawResponse]:
        """The body's end: raises :class:`IOFailed` unless the document ended, too."""
        if self._held.strip():
            raise IOFailed("the client's listing is cut off")
        try:
            self._parser.close()
        except etree.LxmlError as exc:
            raise IOFailed(f"the client's listing is cut off or malformed: {exc}") from exc
        if not self._target.complete:
            raise IOFailed("the client's listing is cut off")
        return self._target.take()

    def _parse(self, piece: bytes) -> None:
        if b"<!D" in piece or b"<!E" in piece:
            raise IOFailed("the client's listing has a DOCTYPE, which is refused")
        if self._mend_ampersands and b"&" in piece:
            piece = BARE_AMPERSAND.sub(b"&amp;", piece)
        try:
            self._parser.feed(carriable(piece))
        except etree.LxmlError as exc:
            raise IOFailed(f"the client's listing is malformed: {exc}") from exc


def carriable(piece: bytes) -> bytes:
    """``piece`` as valid UTF-8 of characters that XML 1.0 can carry; mostly unchanged."""
    if not MAYBE_UNCARRIABLE.search(piece):
        try:
            piece.decode()
        except UnicodeDecodeError:
            pass
        else:
            return piece
    text = piece.decode(errors="replace")
    return UNCARRIABLE.sub(lambda found: chr(DISGUISE + (ord(found[0]) & 0xFF)), text).encode()


def undisguised(text: str) -> str:
    """What :func:`carriable` replaced, put back."""

    def original(found: re.Match[str]) -> str:
        low = ord(found[0]) - DISGUISE
        return chr(low if low < 0x20 else 0xFF00 + low)

    return DISGUISED.sub(original, text) if max(text, default="") >= chr(DISGUISE) else text


class _Target:
    """The parser's events, by depth: 1 multistatus, 2 response, 3 its parts, 4 a propstat's, 5 properties."""

    def __init__(self, limits: Limits) -> None:
        self.complete = False
        self._limits = limits
        self._path: list[str] = []
        self._done: list[RawResponse] = []
        self._count = 0
        self._response = RawResponse()
        self._found: dict[str, str] = {}
        self._status: int | None = None
        self._text: list[str] | None = None
        self._length = 0

    def take(self) -> list[RawResponse]:
        """The responses that were completed since the last call."""
        done, self._done = self._done, []
        return done

    # --- called by lxml -------------------------------------------------

    def start(self, tag: Any, attributes: Any) -> None:
        path = self._path
        path.append(tag)
        depth = len(path)
        if depth > self._limits.xml_depth:
            raise IOFailed(f"the client's listing nests deeper than {self._limits.xml_depth}")
        if depth == 1 and tag != DAV + "multistatus":
            raise IOFailed("the client's answer is XML, but no multistatus")
        if depth == 2 and tag == DAV + "response":
            self._begin_response()
        elif depth == 3 and tag == DAV + "propstat":
            self._found, self._status = {}, None
        elif depth == 6 and tag == DAV + "collection" and path[4] == DAV + "resourcetype":
            self._text = [tag]
        elif self._is_leaf(depth, tag):
            self._text, self._length = [], 0

    def data(self, data: Any) -> None:
        if self._text is not None:
            self._length += len(data)
            if self._length > MAX_TEXT:
                raise IOFailed(f"the client's listing has a text of more than {MAX_TEXT} bytes")
            self._text.append(data)

    def end(self, tag: Any) -> None:
        path = self._path
        depth = len(path)
        if depth == 5 and self._in_property():
            self._end_property(tag)
        elif depth == 4 and tag == DAV + "status" and path[2] == DAV + "propstat":
            self._status = status_of(self._taken())
        elif depth == 3:
            self._end_part(tag)
        elif depth == 2 and tag == DAV + "response":
            self._done.append(self._response)
        elif depth == 1:
            self.complete = True
        path.pop()

    def doctype(self, *declaration: Any) -> None:
        raise IOFailed("the client's listing has a DOCTYPE, which is refused")

    def comment(self, text: Any) -> None:
        """Comments say nothing."""

    def close(self) -> None:
        """lxml wants one; nothing is returned by it."""

    # --- parts ----------------------------------------------------------

    def _begin_response(self) -> None:
        self._count += 1
        if self._count > self._limits.listing_entries:
            raise TooLarge(f"the client's folder has more than {self._limits.listing_entries} entries")
        self._response = RawResponse()

    def _is_leaf(self, depth: int, tag: str) -> bool:
        if depth == 5:
            return self._in_property()
        if depth == 4:
            return tag == DAV + "status"
        return depth == 3 and tag in (DAV + "href", DAV + "status")

    def _in_property(self) -> bool:
        path = self._path
        return path[3] == DAV + "prop" and path[2] == DAV + "propstat" and path[1] == DAV + "response"

    def _taken(self) -> str:
        text = "".join(self._text or ())
        self._text = None
        return undisguised(text)

    def _end_property(self, tag: str) -> None:
        if len(self._found) >= MAX_PROPERTIES:
            raise IOFailed(f"the client's listing has more than {MAX_PROPERTIES} properties of one file")
        self._found[tag] = self._taken()

    def _end_part(self, tag: str) -> None:
        response = self._response
        if tag == DAV + "href":
            response.href = self._taken()
        elif tag == DAV + "status":
            response.status = status_of(self._taken())
        elif tag == DAV + "propstat":
            if self._status == 200:
                response.properties.update(self._found)
                kind = self._found.get(DAV + "resourcetype", "")
                response.collection |= DAV + "collection" in kind
            elif self._status is not None:
                response.failed.update(dict.fromkeys(self._found, self._status))


def status_of(line: str) -> int | None:
    """The code in a status line (``HTTP/1.1 200 OK``), ``None`` if it is none."""
    found = STATUS_LINE.match(line.strip())
    return int(found[1]) if found else None
