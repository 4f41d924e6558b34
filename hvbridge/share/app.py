"""The WSGI application: WsgiDAV between limits on what comes in and care for what goes out.

From the outside in: :class:`Application` bounds and decodes requests, WsgiDAV
dispatches, :class:`Errors` turns exceptions into statuses,
:class:`~hvbridge.share.requests.Requests` does the work.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from lxml import etree
from wsgidav.dav_error import DAVError, get_http_status_string
from wsgidav.mw.base_mw import BaseMiddleware
from wsgidav.util import normalize_path
from wsgidav.wsgidav_app import WsgiDAVApp

from hvbridge.share.provider import Environ, ShareProvider
from hvbridge.share.requests import BLOCK, Resolver, StartResponse

log = logging.getLogger(__name__)

WITH_XML = frozenset({"PROPFIND", "PROPPATCH", "LOCK"})
"""Methods whose body is XML; a body with another is WsgiDAV's to refuse (415)."""

MAX_XML = 256 << 10
"""Bytes of a request body that is not content; real ones have some hundred."""

MAX_DRAIN = 4 << 20
"""Bytes of an unwanted body that are read to keep a connection; beyond it is closed."""

_STATUS = {
    errno.ENOENT: "404 Not Found",
    errno.ENOTDIR: "404 Not Found",
    errno.EACCES: "403 Forbidden",
    errno.EPERM: "403 Forbidden",
    errno.EROFS: "403 Forbidden",
    errno.EBUSY: "403 Forbidden",
    errno.ELOOP: "403 Forbidden",
    errno.EEXIST: "405 Method Not Allowed",
    errno.ENAMETOOLONG: "414 URI Too Long",
    errno.ENOSPC: "507 Insufficient Storage",
    errno.EDQUOT: "507 Insufficient Storage",
    errno.EFBIG: "507 Insufficient Storage",
}


class Application:
    """Serves ``directory`` at ``/``; a WSGI callable (PEP 3333), to be used by many threads.

    ``on_request``: called with method, path and status of each request, from
    the thread that serves it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        read_only: bool = False,
        on_request: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.provider = ShareProvider(directory, read_only=read_only)
        self._on_request = on_request or (lambda method, path, status: None)
        self._dav = WsgiDAVApp(
            {
                "provider_mapping": {"/": self.provider},
                "middleware_stack": [Errors, Resolver],  # no browser, no authenticator, no CORS
                "hotfixes": {"re_encode_path_info": False},
                "http_authenticator": {"accept_basic": False, "accept_digest": False},
                "logging": {"enable": False},
                "add_header_MS_Author_Via": False,
                "block_size": BLOCK,
                "verbose": 1,
            }
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        """One request."""
        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "surrogateescape")
        environ["PATH_INFO"] = path
        environ["wsgidav.auth.user_name"] = ""
        body = Body(environ)
        missing = 0

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal missing
            if method != "HEAD":
                missing = sum(int(value) for name, value in headers if name == "Content-Length")
            if not body.drain():
                headers = [*headers, ("Connection", "close")]
            self._on_request(method, path, status)
            return start_response(status, headers, exc_info)

        for piece in self._respond(method, environ, body, start):
            yield piece
            missing -= len(piece)
        if missing:
            # cheroot would keep the connection, and the peer would wait for the rest.
            raise ConnectionAbortedError(errno.ECONNABORTED, "the body is not as long as its header says")

    def _respond(self, method: str, environ: Environ, body: Body, start: StartResponse) -> Iterable[bytes]:
        try:
            normalize_path(environ["PATH_INFO"])  # WsgiDAV's answer to a bad one has no body
            body.install(method)
        except DAVError as exc:
            return _error(exc, start)
        return cast("Iterable[bytes]", self._dav(environ, start))


class Body:
    """A request's body: its length is kept to, or reading it raises."""

    def __init__(self, environ: Environ) -> None:
        self._environ = environ
        self._input = environ["wsgi.input"]
        self._chunked = bool(environ.get("wsgi.input_terminated"))
        length = environ.get("CONTENT_LENGTH") or "0"
        self._valid = length.isascii() and length.isdigit()
        self._left = int(length) if self._valid and not self._chunked else 0
        self._done = not self._chunked and self._left == 0

    def install(self, method: str) -> None:
        """Become the request's ``wsgi.input``; read it now if it is not content.

        Raises :class:`DAVError` 400 or 413.
        """
        if not self._valid:
            self._done = True
            raise DAVError(400, "Content-Length is no number")
        if method == "PUT":
            self._environ["wsgi.input"] = self
            return
        data = self._read_all()
        if method in WITH_XML:
            _check_xml(data)
        self._environ["wsgi.input"] = io.BytesIO(data)
        self._environ["CONTENT_LENGTH"] = str(len(data))
        self._environ["wsgi.input_terminated"] = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; ``b""`` at the end, :class:`ConnectionResetError` at one that is early."""
        if self._done:
            return b""
        if self._chunked:
            return self._read_chunked(size)
        data: bytes = self._input.read(min(size, self._left))
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the connection ended within a body")
        self._left -= len(data)
        self._done = self._left == 0
        return data

    def drain(self) -> bool:
        """Read what nobody wanted, in bounds; false if the connection cannot be used further."""
        if not self._valid:
            return False
        taken = 0
        while not self._done and taken < MAX_DRAIN:
            taken += len(self.read(64 << 10))
        return self._done

    def _read_chunked(self, size: int) -> bytes:
        try:
            data: bytes = self._input.read(size)
        except ValueError as exc:  # not a chunk: cut off, or too large to hold
            raise ConnectionResetError(errno.ECONNRESET, f"bad chunked body: {exc}") from exc
        self._done = not data
        return data

    def _read_all(self) -> bytes:
        data = b""
        while piece := self.read(64 << 10):
            data += piece
            if len(data) > MAX_XML:
                raise DAVError(413, "the request is too large")
        return data


class Errors(BaseMiddleware):  # type: ignore[misc]
    """Exceptions to statuses, without telling the peer about this machine's paths."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        """One request."""
        started: list[Any] = []
        sent = False
        try:
            for piece in self.next_app(environ, lambda *args: started.append(args)):
                if not sent:
                    start_response(*started[-1])
                    sent = True
                yield piece
        except (ConnectionError, TimeoutError):
            raise  # the peer's connection, not our disk: the server knows what to do
        except Exception as exc:
            if sent:
                # Too late for a status: a cut connection tells that the body is not whole.
                raise ConnectionAbortedError(errno.ECONNABORTED, f"body cut short: {exc}") from exc
            yield from _error(exc, start_response)


def _error(exc: Exception, start_response: StartResponse) -> Iterable[bytes]:
    status, reason = _status(exc)
    body, kind = f"{reason}\n".encode("utf-8", "replace"), "text/plain; charset=utf-8"
    if isinstance(exc, DAVError) and exc.err_condition is not None:
        kind, body = exc.get_response_page()
    headers = [("Content-Length", str(len(body))), ("Content-Type", kind)]
    if isinstance(exc, DAVError):
        headers += exc.add_headers or []
        if exc.value in (204, 304):
            headers, body = [("Content-Length", "0")], b""
        elif not exc.add_body:
            body = b""  # the answer to HEAD has the length and no body
    start_response(status, headers)
    return [body]


def _status(exc: Exception) -> tuple[str, str]:
    """Status line and reason for an exception, or for the one that WsgiDAV wrapped."""
    if isinstance(exc, DAVError) and isinstance(exc.src_exception, OSError):
        exc = exc.src_exception
    if isinstance(exc, DAVError):
        return get_http_status_string(exc), str(exc.context_info or "")
    if isinstance(exc, OSError) and exc.errno in _STATUS:
        return _STATUS[exc.errno], exc.strerror or ""
    log.error("request failed", exc_info=exc)
    return "500 Internal Server Error", ""


def _check_xml(data: bytes) -> None:
    """Refuse document types: WebDAV has none, and entities are defined in them."""
    if not data:
        return
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as exc:
        raise DAVError(400, "the body is not XML") from exc
    tree: Any = root.getroottree()
    if tree.docinfo.doctype:
        raise DAVError(400, "the body has a document type")
