"""The httpx transport under the WebDAV client: httpcore's pool over the bridge's connections.

Differences from httpx's own transport: connections come from a
:class:`~hvbridge.webdav.backend.BridgeBackend`; waiting for one of them ends at
the operation's deadline; a connection is not used again after a 204, nor after
any answer of a server that ends its connections without saying so (phodav); a
request that changes nothing and met a connection which had died while idle is
sent once more, on a fresh one; no cookie is kept. Redirects and content codings
are left to the client above, which takes neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

import httpcore
import httpx

from hvbridge import deadline
from hvbridge.webdav.backend import BridgeBackend, BridgeStream, StaleConnection
from hvbridge.webdav.quirks import quirks_of

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND"})
"""Methods that change nothing (RFC 9110 §9.2.1, RFC 4918 §9.1): repeating them is harmless."""

NO_CONTENT = 204

HTTPX_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.TimeoutException, httpx.TimeoutException),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.NetworkError, httpx.NetworkError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.ProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
)


class BridgeTransport(httpx.BaseTransport):
    """Sends httpx requests over connections of ``backend``, at most ``streams`` at once.

    ``keepalive``: seconds after which an idle connection is not used again.
    """

    def __init__(self, backend: BridgeBackend, streams: int, keepalive: float | None = None) -> None:
        self._backend = backend
        self._pool = httpcore.ConnectionPool(
            max_connections=streams,
            max_keepalive_connections=streams,
            keepalive_expiry=keepalive,
            network_backend=backend,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``; returns when the answer's head is there. Raises httpx's exceptions."""
        with mapped_errors():
            try:
                response = self._pool.handle_request(self._translated(request))
            except StaleConnection:
                self._backend.retire()
                if request.method not in SAFE:
                    raise
                response = self._pool.handle_request(self._translated(request))
        stream = response.extensions.get("network_stream")
        headers = httpx.Headers([pair for pair in response.headers if pair[0].lower() != b"set-cookie"])
        last = response.status == NO_CONTENT or quirks_of(headers.get("server", "")).one_answer
        assert isinstance(stream, BridgeStream)  # both backends make nothing else
        if last:
            stream.poison()
        return httpx.Response(
            response.status,
            headers=headers,
            stream=AnswerBody(cast("Iterable[bytes]", response.stream), stream),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._pool.close()

    def _translated(self, request: httpx.Request) -> httpcore.Request:
        timeouts = dict(request.extensions.get("timeout", {}))
        timeouts["pool"] = deadline.remaining(timeouts.get("pool"))
        return httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=cast("Iterable[bytes]", request.stream),
            extensions={**request.extensions, "timeout": timeouts},
        )


class AnswerBody(httpx.SyncByteStream):
    """An answer's body with httpcore's exceptions as httpx's; ``stream`` learns how it ends."""

    def __init__(self, body: Iterable[bytes], stream: BridgeStream) -> None:
        self._body = body
        self._stream = stream
        self._whole = False

    def __iter__(self) -> Iterator[bytes]:
        with mapped_errors():
            for piece in self._body:
                try:
                    yield piece
                except GeneratorExit:
                    self._stream.abort()
                    raise
            self._whole = True
            self._stream.idle()

    def close(self) -> None:
        """Give the connection back, or drop it if the body was not read to its end."""
        if not self._whole:
            self._stream.abort()
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """httpcore's exceptions as the httpx ones of the same name."""
    try:
        yield
    except Exception as exc:
        for ours, theirs in HTTPX_ERRORS:
            if isinstance(exc, ours):
                raise theirs(str(exc)) from exc
        raise
