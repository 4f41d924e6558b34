"""PUT, COPY, MOVE and the limits of PROPFIND; the other methods are WsgiDAV's.

WsgiDAV writes a PUT over the old content, deletes the target of a MOVE before
it moves, and loses names with ``?``, ``;`` or a newline in ``Destination``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from wsgidav import util
from wsgidav.dav_error import (
    HTTP_BAD_GATEWAY,
    HTTP_BAD_REQUEST,
    HTTP_CONFLICT,
    HTTP_FORBIDDEN,
    HTTP_METHOD_NOT_ALLOWED,
    HTTP_NOT_FOUND,
    HTTP_NOT_IMPLEMENTED,
    HTTP_PRECONDITION_FAILED,
    DAVError,
    PRECONDITION_CODE_PropfindFiniteDepth,
)
from wsgidav.mw.base_mw import BaseMiddleware
from wsgidav.request_server import RequestServer

from hvbridge.share import placing
from hvbridge.share.provider import Environ, File, Folder, ShareProvider, unquote_path
from hvbridge.spice.mux import MAX_DATA

BLOCK = 8 * MAX_DATA
"""Bytes of content moved at once: whole mux frames, enough to make the work per block small."""

WRITING = frozenset({"PUT", "DELETE", "COPY", "MOVE", "MKCOL", "PROPPATCH", "POST", "LOCK", "UNLOCK"})

StartResponse = Callable[..., Any]


class Requests(RequestServer):  # type: ignore[misc]
    """WsgiDAV's request handlers with those that this share needs otherwise."""

    _davProvider: ShareProvider

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        """One request."""
        if self._davProvider.is_readonly() and environ["REQUEST_METHOD"] in WRITING:
            raise DAVError(HTTP_FORBIDDEN, "the share is read-only")
        yield from super().__call__(environ, start_response)

    def do_PROPFIND(self, environ: Environ, start_response: StartResponse) -> Any:
        """Depth 0 and 1; ``infinity``, which is also what none means, may be refused (section 9.1)."""
        if environ.get("HTTP_DEPTH", "infinity") == "infinity":
            raise DAVError(HTTP_FORBIDDEN, err_condition=PRECONDITION_CODE_PropfindFiniteDepth)
        return super().do_PROPFIND(environ, start_response)

    def do_PUT(self, environ: Environ, start_response: StartResponse) -> Any:
        """Create or replace a file, all of it or nothing. The answer has the new ETag."""
        if "HTTP_CONTENT_RANGE" in environ:
            raise DAVError(HTTP_BAD_REQUEST, "a part of a file cannot be put")
        if "HTTP_CONTENT_ENCODING" in environ:
            raise DAVError(HTTP_NOT_IMPLEMENTED, "encoded content cannot be put")
        path = environ["PATH_INFO"]
        old = self._check_put(environ)
        folder, target = self._place(path, old)
        draft = placing.Draft(folder)
        try:
            # A short body raises in read(): nothing has been named by then.
            while data := environ["wsgi.input"].read(BLOCK):
                draft.write(data)
            with self._davProvider.naming:
                old = self._check_put(environ)  # a long body leaves time for changes
                folder, target = self._place(path, old)
                if old is not None:
                    draft.adopt(old.stat)
                st = draft.commit(target)
        finally:
            draft.discard()
        new = File(path, environ, target, target, st)
        status = "201 Created" if old is None else "204 No Content"
        return _answer(start_response, status, [("ETag", f'"{new.get_etag()}"')])

    def do_COPY(self, environ: Environ, start_response: StartResponse) -> Any:
        """Copy a file or a folder with modes and times."""
        source, target, depth = self._check_transfer(environ, moving=False)
        with self._davProvider.naming:
            existed = self._check_overwrite(environ, target)
            local = self._davProvider.locate(target)
            if source.is_collection:
                placing.copy_tree(source.real, local, members=depth == "infinity")
            else:
                placing.copy_file(source.real, local)
        return _answer(start_response, "204 No Content" if existed else "201 Created")

    def do_MOVE(self, environ: Environ, start_response: StartResponse) -> Any:
        """Rename a file or a folder; over a file it is one rename(2)."""
        source, target, _depth = self._check_transfer(environ, moving=True)
        with self._davProvider.naming:
            existed = self._check_overwrite(environ, target)
            placing.move(source.local, self._davProvider.locate(target))
        source.remove_all_locks(recursive=True)
        return _answer(start_response, "204 No Content" if existed else "201 Created")

    # --- checks ---------------------------------------------------------

    def _check_put(self, environ: Environ) -> File | None:
        """The file that a PUT would replace. Raises :class:`DAVError` if it must not."""
        provider, path = self._davProvider, environ["PATH_INFO"]
        old = provider.get_resource_inst(path, environ)
        if isinstance(old, Folder) or path.endswith("/"):
            raise DAVError(HTTP_METHOD_NOT_ALLOWED, "a folder has no content")
        parent = self._parent(path, environ)
        self._check_conditions(old, environ)
        (old or parent).check_locks("0")
        if old is not None and not os.access(old.real, os.W_OK):
            raise DAVError(HTTP_FORBIDDEN, "the file is not writable")
        return old

    def _place(self, path: str, old: File | None) -> tuple[str, str]:
        """The folder in which a PUT works, and the name that it takes there."""
        target = old.real if old is not None else self._davProvider.locate(path)
        return os.path.dirname(target), target  # noqa: PTH120

    def _check_transfer(self, environ: Environ, *, moving: bool) -> tuple[File | Folder, str, str]:
        """Source, target path and depth of a COPY or MOVE. Raises :class:`DAVError`."""
        path = environ["PATH_INFO"]
        source = self._davProvider.get_resource_inst(path, environ)
        if source is None:
            raise DAVError(HTTP_NOT_FOUND, path)
        target = destination(environ)
        depth = environ.get("HTTP_DEPTH", "infinity")
        if depth not in (("infinity",) if moving and source.is_collection else ("0", "infinity")):
            raise DAVError(HTTP_BAD_REQUEST, "this depth is not for this method")
        self._check_apart(path, target)
        parent = self._parent(target, environ)
        self._check_conditions(source, environ)
        if moving:
            source.check_locks("infinity")
            self._parent(path, environ).check_locks("0")
        existing = self._davProvider.get_resource_inst(target, environ)
        if existing is None:
            parent.check_locks("0")
        else:
            existing.check_locks("infinity")
        return source, target, depth

    def _check_overwrite(self, environ: Environ, target: str) -> bool:
        """Whether something stands at ``target``, which ``Overwrite: F`` forbids (412)."""
        overwrite = environ.get("HTTP_OVERWRITE", "T")
        if overwrite not in ("T", "F"):
            raise DAVError(HTTP_BAD_REQUEST, "Overwrite is T or F")
        existed = os.path.lexists(self._davProvider.locate(target))
        if existed and overwrite == "F":
            raise DAVError(HTTP_PRECONDITION_FAILED, "the destination exists")
        return existed

    def _check_apart(self, source: str, target: str) -> None:
        """Neither may hold the other: the overwritten target would take the source with it."""
        if not source.strip("/") or util.is_equal_or_child_uri(source, target):
            raise DAVError(HTTP_FORBIDDEN, "the destination is the source, or inside it")
        if not target.strip("/") or util.is_child_uri(target, source):
            raise DAVError(HTTP_FORBIDDEN, "the destination holds the source")

    def _check_conditions(self, res: File | Folder | None, environ: Environ) -> None:
        """If, If-Match and their kin; WsgiDAV takes any as fulfilled where nothing exists."""
        if res is None and ("HTTP_IF_MATCH" in environ or "[" in environ.get("HTTP_IF", "")):
            raise DAVError(HTTP_PRECONDITION_FAILED, "nothing has this ETag")
        self._evaluate_if_headers(res, environ)

    def _parent(self, path: str, environ: Environ) -> Folder:
        parent = self._davProvider.get_resource_inst(path.rstrip("/").rpartition("/")[0], environ)
        if not isinstance(parent, Folder):
            raise DAVError(HTTP_CONFLICT, "the parent folder does not exist")
        return parent


class Resolver(BaseMiddleware):  # type: ignore[misc]
    """Hands each request to :class:`Requests`: there is one share, at ``/``."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        """One request."""
        return Requests(environ["wsgidav.provider"])(environ, start_response)


def destination(environ: Environ) -> str:
    """Path of the ``Destination`` header (section 10.3), an absolute URI or path.

    Raises :class:`DAVError` 400 without one, 502 for another server's.
    """
    match = re.fullmatch(r"(?:https?://([^/?#]*))?(/[^?#]*)", environ.get("HTTP_DESTINATION", ""), re.I)
    if match is None:
        raise DAVError(HTTP_BAD_REQUEST, "Destination names no path")
    host = environ.get("HTTP_HOST", "")
    if match[1] is not None and match[1].lower() != host.lower():
        raise DAVError(HTTP_BAD_GATEWAY, "Destination is on another server")
    path: str = util.normalize_path(unquote_path(match[2]))
    return path if path == "/" else path.rstrip("/")


def _answer(
    start_response: StartResponse, status: str, headers: list[tuple[str, str]] | None = None
) -> list[bytes]:
    start_response(status, [("Content-Length", "0"), *(headers or [])])
    return [b""]
