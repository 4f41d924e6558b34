"""Statuses, webdav4's and httpx's exceptions as :class:`~hvbridge.errors.FsError`: once, here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
from webdav4 import client as webdav4

from hvbridge.errors import (
    AccessDenied,
    Changed,
    ConnectionLost,
    Exists,
    FsError,
    IOFailed,
    Locked,
    NameTooLong,
    NoSpace,
    NotFound,
    Offline,
    SessionChanged,
    TimedOut,
    TooLarge,
    Unsupported,
)
from hvbridge.webdav.backend import OtherSession

BY_STATUS: dict[int, tuple[type[FsError], str]] = {
    401: (AccessDenied, "the client wants a password"),
    403: (AccessDenied, "the client refuses"),
    404: (NotFound, "no such file or folder"),
    405: (Unsupported, "the client does not do that here"),
    409: (NotFound, "no such parent folder"),
    410: (NotFound, "no such file or folder"),
    412: (Changed, "it has changed on the client"),
    413: (TooLarge, "too large for the client"),
    414: (NameTooLong, "the path is too long for the client"),
    416: (Changed, "it has become shorter on the client"),
    423: (Locked, "locked on the client"),
    424: (IOFailed, "the client could not do a part of it"),
    501: (Unsupported, "the client does not do that"),
    507: (NoSpace, "the client's disk is full"),
}

BY_METHOD: dict[tuple[str, int], tuple[type[FsError], str]] = {
    ("MKCOL", 405): (Exists, "the name is taken"),
    ("MOVE", 412): (Exists, "the target exists"),
    ("COPY", 412): (Exists, "the target exists"),
}

CUT_OFF = ("Server disconnected", "peer closed connection", "peer unexpectedly closed")
"""How httpcore's and h11's texts begin when the connection ended inside an answer; they have no
exception of its own for it."""


def status_error(method: str, status: int, path: str | None) -> FsError:
    """What an answer's status means for a filesystem."""
    known = BY_METHOD.get((method, status)) or BY_STATUS.get(status)
    if known is not None:
        return known[0](known[1], path)
    if 300 <= status < 400:
        return IOFailed(f"the client redirects {method} ({status}), which is not followed", path)
    return IOFailed(f"the client answered {method} with {status}", path)


def network_error(exc: httpx.HTTPError | httpx.InvalidURL, path: str | None) -> FsError:
    """What a failed connection means; the kinds that leave the outcome unknown are told apart."""
    if isinstance(exc.__cause__, OtherSession):
        return SessionChanged(str(exc), path)
    if isinstance(exc, httpx.ConnectTimeout | httpx.ConnectError):
        return Offline(f"no client: {exc}", path)
    if isinstance(exc, httpx.TimeoutException):
        return TimedOut(f"the client did not answer in time ({exc or type(exc).__name__})", path)
    if isinstance(exc, httpx.NetworkError) or str(exc).startswith(CUT_OFF):
        return ConnectionLost(f"the connection ended under the request: {exc}", path)
    return IOFailed(f"the client does not speak HTTP as it should: {exc}", path)


BY_EXCEPTION: tuple[tuple[type[webdav4.ClientError], int], ...] = (
    (webdav4.ResourceNotFound, 404),
    (webdav4.ForbiddenOperation, 403),
    (webdav4.ResourceConflict, 409),
    (webdav4.ResourceLocked, 423),
    (webdav4.InsufficientStorage, 507),
    (webdav4.BadGatewayError, 502),
)
"""webdav4's exceptions and the statuses that they stand for."""


def client_error(method: str, exc: webdav4.ClientError, path: str) -> FsError:
    """What an exception of webdav4 means."""
    if isinstance(exc, webdav4.HTTPError):
        return status_error(exc.request.method, exc.status_code, path)
    if isinstance(exc, webdav4.ResourceAlreadyExists):
        return Exists("the name is taken", path)
    for kind, status in BY_EXCEPTION:
        if isinstance(exc, kind):
            return status_error(method, status, path)
    return IOFailed(f"the client could not do it: {exc}", path)


@contextlib.contextmanager
def translated(path: str, method: str) -> Iterator[None]:
    """A scope in which ``method`` on ``path`` fails with :class:`FsError` only."""
    try:
        yield
    except FsError as exc:
        if exc.path is None:
            exc.path = path
        raise
    except webdav4.ClientError as exc:
        raise client_error(method, exc, path) from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise network_error(exc, path) from exc
