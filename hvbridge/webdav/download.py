"""An answer to GET, checked against what was asked for, and its bytes."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator

import httpx

from hvbridge.config import Limits
from hvbridge.errors import ConnectionLost, IOFailed, TimedOut
from hvbridge.webdav.client import check_identity
from hvbridge.webdav.errors import network_error
from hvbridge.webdav.properties import etag_of, size_of

log = logging.getLogger(__name__)

CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class WebdavDownload:
    """The bytes of one answer; see :class:`hvbridge.vfs.remote.Download`.

    May be iterated in another thread than it was made in, and closed from a third.
    """

    def __init__(
        self, path: str, response: httpx.Response, limits: Limits, *, start: int, size: int | None
    ) -> None:
        self._path = path
        self._response = response
        self._limits = limits
        self._start, self._size = start, size
        self._etag = etag_of(response.headers.get("etag"))
        self._closed = False

    @property
    def etag(self) -> str | None:
        """Validator of what is being sent."""
        return self._etag

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, if told."""
        return self._size

    @property
    def start(self) -> int:
        """Offset of the first byte that comes."""
        return self._start

    def __iter__(self) -> Iterator[bytes]:
        """The bytes, as they come, whole or an error: httpcore minds ``Content-Length``.

        Raises :class:`TimedOut` as well when the client keeps under ``limits.min_rate``; only
        time that is spent waiting for it counts.
        """
        waited, received = 0.0, 0
        pieces = self._response.iter_raw()
        try:
            while True:
                began = time.monotonic()
                piece = next(pieces, None)
                if piece is None:
                    return
                waited += time.monotonic() - began
                received += len(piece)
                yield piece
                if waited > self._limits.transfer(received):
                    raise TimedOut(f"the client sends less than {self._limits.min_rate} bytes/s", self._path)
        except httpx.StreamError as exc:
            raise ConnectionLost("the transfer was closed", self._path) from exc
        except httpx.HTTPError as exc:
            raise network_error(exc, self._path) from exc
        finally:
            self.close()

    def close(self) -> None:
        """End it; what has not come yet is cancelled. Idempotent, never raises."""
        if self._closed:
            return
        self._closed = True
        try:
            self._response.close()
        except (httpx.HTTPError, OSError, RuntimeError) as exc:
            log.debug("closing a transfer: %s", exc)


def download_of(
    path: str, response: httpx.Response, limits: Limits, start: int, end: int | None
) -> WebdavDownload:
    """The download that a 200 or 206 begins, when ``start`` to ``end`` (exclusive) was asked for.

    Raises :class:`IOFailed` where the answer does not fit the question, or its end could not be
    told from a cut.
    """
    check_identity(response)
    length = length_of(response)
    if response.status_code == 200:
        return WebdavDownload(path, response, limits, start=0, size=length)
    if start == 0 and end is None:
        raise IOFailed("the client sent a part where the whole file was asked for")
    told = response.headers.get("content-range", "")
    found = CONTENT_RANGE.fullmatch(told.strip())
    if found is None:
        raise IOFailed(f"the client sent a part without saying which ({told!r})")
    first, last = int(found[1]), int(found[2])
    size = size_of(found[3])
    wanted_end = min(end, size) if end is not None and size is not None else end or size
    if first != start or (wanted_end is not None and last + 1 != wanted_end) or last < first:
        raise IOFailed(f"the client sent another part than asked for ({told!r})")
    if length is not None and length != last + 1 - first:
        raise IOFailed(f"the client sent {length} bytes for the part {told!r}")
    return WebdavDownload(path, response, limits, start=first, size=size)


def length_of(response: httpx.Response) -> int | None:
    """``Content-Length``; ``None`` for a chunked body, which tells its own end.

    Raises :class:`IOFailed` for a body that only the connection's end would end.
    """
    if "transfer-encoding" in response.headers:
        return None
    length = size_of(response.headers.get("content-length"))
    if length is None:
        raise IOFailed("the client does not say how long the file is")
    return length
