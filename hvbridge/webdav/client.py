"""webdav4's client, made fit for strangers and for names of any kind.

Its methods (``move``, ``copy``, ``mkdir``, ``remove``, …) and exceptions are used
as they are; what lies below them is replaced: every character of a path is
quoted, ``Depth`` is always said, answers are read up to a limit, a 207 is read
by a parser with limits, nothing is decoded, followed, repeated or remembered.
What webdav4 lists (``ls``, ``info``) it asks for as ``allprop`` and reads with a
parser that phodav's names break: for that there is :meth:`BridgeClient.propfind_responses`.
"""

from __future__ import annotations

import collections
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx
from webdav4 import client as webdav4
from webdav4.http import Client as HTTPClient

from hvbridge import __version__, deadline
from hvbridge.config import KIB, Limits
from hvbridge.errors import InvalidName, IOFailed
from hvbridge.webdav.multistatus import MultistatusParser, RawResponse
from hvbridge.webdav.quirks import quirks_of

PIECE = 4 * 65535
"""Bytes of an upload that are handed on at once: four full mux frames."""

SAFE_IN_PATH = "/-._~!$'()*+,;=:@"
"""What RFC 3986 §3.3 allows in a path besides letters and digits, ``&`` left out for phodav's sake."""

IN_FLIGHT = 1024 * KIB
"""Bytes of an upload that may still be under way when the last one was written: socket buffers."""

MULTI_STATUS = 207
MOVED = frozenset({301, 302, 307, 308})

Auth = tuple[str, str] | httpx.Auth | None
Body = bytes | Iterable[bytes]


class BridgeClient(webdav4.Client):  # type: ignore[misc]  # webdav4 has no type marker
    """WebDAV over ``transport``; thread-safe. ``base_url`` ends with ``/``."""

    base_url: httpx.URL
    http: httpx.Client

    def __init__(
        self, base_url: str, transport: httpx.BaseTransport, limits: Limits, auth: Auth = None
    ) -> None:
        self.limits = limits
        self.requests: collections.Counter[str] = collections.Counter()
        """Requests sent, by method."""
        self.on_answer: Callable[[httpx.Response], None] = lambda response: None
        """Called with the head of every answer."""
        http = HTTPClient(
            transport=transport,
            auth=auth,
            trust_env=False,
            follow_redirects=False,
            headers={"User-Agent": f"hvbridge/{__version__}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(
                connect=limits.grace, read=limits.silence, write=limits.silence, pool=limits.request
            ),
            event_hooks={"request": [self._count], "response": [self._heard]},
        )
        for superfluous in ("accept", "connection"):
            del http.headers[superfluous]
        super().__init__(base_url, http_client=http, retry=False)

    def close(self) -> None:
        """Close every connection."""
        self.http.close()

    @property
    def prefix(self) -> str:
        """Path of the share's root on the server, without a trailing slash."""
        return urllib.parse.unquote(self.base_url.path).rstrip("/")

    def join_url(self, path: str, add_trailing_slash: bool = False) -> httpx.URL:
        """The URL of a path within the share, which may hold any character.

        A trailing slash is kept. Raises :class:`InvalidName` for what has no URL.
        """
        if "\0" in path or not {".", ".."}.isdisjoint(path.split("/")):
            raise InvalidName("no such name can be asked for", path)
        try:
            quoted = urllib.parse.quote(path.lstrip("/"), safe=SAFE_IN_PATH)
        except UnicodeEncodeError:
            raise InvalidName("the name is not UTF-8") from None
        target = self.base_url.raw_path.rstrip(b"/") + b"/" + quoted.encode()
        if add_trailing_slash and not target.endswith(b"/"):
            target += b"/"
        return self.base_url.copy_with(raw_path=target)

    # --- requests -------------------------------------------------------

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Body | None = None,
        read_timeout: float | None = None,
        add_trailing_slash: bool = False,
    ) -> httpx.Response:
        """Send a request; the answer, of any status, with its body still to come: close it.

        Raises httpx's exceptions.
        """
        extensions = {}
        if read_timeout is not None:
            extensions["timeout"] = {**self.http.timeout.as_dict(), "read": read_timeout}
        request = self.http.build_request(
            method,
            self.join_url(path, add_trailing_slash),
            headers=headers,
            content=content,
            extensions=extensions or None,
        )
        return self.http.send(request, stream=True)

    def _slashed(self, method: str, path: str, **options: Any) -> httpx.Response:
        """:meth:`send`, and once more with a slash behind ``path`` if just that is asked for.

        Apache's mod_dir does so for folders. No other redirect is followed, and of this one only
        the fact is used.
        """
        response = self.send(method, path, **options)
        wanted = response.request.url.raw_path.decode() + "/"
        if response.status_code in MOVED and response.headers.get("location", "").endswith(wanted):
            self.finish(response)
            return self.send(method, path + "/", **options)
        return response

    def finish(self, response: httpx.Response) -> httpx.Response:
        """The answer with its body read, if that is small, else without it and the connection dropped."""
        kept = bytearray()
        try:
            for piece in response.iter_raw():
                kept += piece
                if len(kept) > self.limits.error_body:
                    kept.clear()
                    break
        finally:
            response.close()
        headers = [(k, v) for k, v in response.headers.multi_items() if k not in UNFIT_ONCE_READ]
        return httpx.Response(
            response.status_code, headers=headers, content=bytes(kept), request=response.request
        )

    def check(self, answer: httpx.Response, path: str) -> httpx.Response:
        """``answer``, if its status is a success; else raises webdav4's exception for it."""
        if answer.status_code == 404:
            raise webdav4.ResourceNotFound(path)
        if answer.status_code == 507:
            raise webdav4.InsufficientStorage(path)
        if not answer.is_success:
            raise webdav4.HTTPError(answer)
        return answer

    def propfind_responses(self, path: str, body: bytes, depth: int) -> tuple[list[RawResponse], str]:
        """PROPFIND: the responses of the whole answer, and the ``Server`` header.

        Raises :class:`IOFailed` for an answer that is cut off or nonsense,
        :class:`~hvbridge.errors.TooLarge` over a limit.
        """
        headers = {"Depth": str(depth), "Content-Type": "application/xml"}
        with deadline.within(self.limits.request):
            response = self._slashed("PROPFIND", path, headers=headers, content=body)
            try:
                if response.status_code != MULTI_STATUS:
                    self.check(self.finish(response), path)
                    raise IOFailed(f"the client answered PROPFIND with {response.status_code}", path)
                check_identity(response)
                server = response.headers.get("server", "")
                parser = MultistatusParser(self.limits, mend_ampersands=quirks_of(server).mend_ampersands)
                responses = [raw for piece in response.iter_raw() for raw in parser.feed(piece)]
                return responses + parser.close(), server
            finally:
                response.close()

    def proppatch(self, path: str, tag: str, text: str) -> bool:
        """Set the property ``{namespace}name``; false where the server says that it did not."""
        namespace, _, name = tag[1:].partition("}")
        body = (
            '<?xml version="1.0" encoding="utf-8"?><propertyupdate xmlns="DAV:"><set><prop>'
            f'<x:{name} xmlns:x="{namespace}">{text}</x:{name}></prop></set></propertyupdate>'
        ).encode()
        answer = self._request("PROPPATCH", path, content=body, headers={"Content-Type": "application/xml"})
        if answer.status_code != MULTI_STATUS:
            return False
        return any(tag in raw.properties for raw in self._responses(answer))

    def put(self, path: str, body: Body, size: int) -> httpx.Response:
        """PUT of exactly ``size`` bytes. Raises :class:`ValueError` if ``body`` has more or fewer."""
        upload = Upload(body, size)
        headers = {"Content-Length": str(size)}
        # What the kernel's buffers hold must reach the server before it can answer.
        patience = self.limits.silence + min(size, IN_FLIGHT) / self.limits.min_rate
        with deadline.within(self.limits.transfer(size)):
            response = self.send("PUT", path, headers=headers, content=upload, read_timeout=patience)
            answer = self.check(self.finish(response), path)
        if upload.sent != size:
            raise IOFailed("the client answered before it had the whole file", path)
        return answer

    # --- below webdav4's methods ----------------------------------------

    def _request(
        self, method: str, path: str, add_trailing_slash: bool = False, **options: Any
    ) -> httpx.Response:
        headers = dict(options.get("headers") or {})
        if method == "PROPFIND":
            headers.setdefault("Depth", "0")
        with deadline.within(self.limits.request):
            response = self._slashed(
                method,
                path,
                headers=headers,
                content=options.get("content"),
                add_trailing_slash=add_trailing_slash,
            )
            answer = self.finish(response)
        self.check(answer, path)
        if method == "MKCOL" and answer.status_code not in (200, 201):
            raise webdav4.HTTPError(answer)
        return answer

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request whose 207, if it comes, tells what failed of it."""
        answer = self._request(method, path, **options)
        if answer.status_code == MULTI_STATUS:
            for raw in self._responses(answer):
                if raw.status is not None and raw.status >= 400:
                    raise webdav4.HTTPError(
                        httpx.Response(raw.status, request=answer.request, headers=answer.headers)
                    )
        return answer

    def _responses(self, answer: httpx.Response) -> list[RawResponse]:
        quirks = quirks_of(answer.headers.get("server", ""))
        parser = MultistatusParser(self.limits, mend_ampersands=quirks.mend_ampersands)
        return parser.feed(answer.content) + parser.close()

    def _count(self, request: httpx.Request) -> None:
        self.requests[request.method] += 1

    def _heard(self, response: httpx.Response) -> None:
        self.on_answer(response)


class Upload:
    """A body in pieces that counts what was taken of it."""

    def __init__(self, body: Body, size: int) -> None:
        self._body = body
        self._size = size
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        self.sent = 0
        for piece in pieces(self._body):
            if self.sent + len(piece) > self._size:
                raise ValueError(f"the body has more than the {self._size} bytes that were announced")
            yield piece
            self.sent += len(piece)
        if self.sent != self._size:
            raise ValueError(f"the body has {self.sent} bytes where {self._size} were announced")


def pieces(body: Body) -> Iterator[bytes]:
    """``body``, cut at :data:`PIECE`."""
    for part in (body,) if isinstance(body, bytes) else body:
        if len(part) <= PIECE:
            yield part
        else:
            for at in range(0, len(part), PIECE):
                yield part[at : at + PIECE]


UNFIT_ONCE_READ = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that describe a body as it was on the wire."""


def check_identity(response: httpx.Response) -> None:
    """Refuse a content coding: none was asked for, and a small answer could unfold to any size."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise IOFailed(f"the client sent the content coding {coding!r}, which was not asked for")
