"""The share over WebDAV: :class:`hvbridge.vfs.remote.Remote` made of requests.

One request an operation, as a rule: ``list``, ``stat``, ``get``, ``put``,
``mkdir``, ``delete``, ``move``, ``copy``, ``quota`` each send one. More are sent
to explain a failure, to a server that must be told folders from files (nginx),
and where phodav's answer leaves two folders of the same name indistinct.

What is learnt of the server holds for one session of the channel: the client
that comes next may be another.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import httpx
from webdav4.client import HTTPError, ResourceNotFound

from hvbridge import deadline
from hvbridge.channel.channel import Channel
from hvbridge.config import KIB, Limits
from hvbridge.errors import (
    AccessDenied,
    Exists,
    FsError,
    InvalidArgument,
    IOFailed,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotFound,
)
from hvbridge.vfs import names
from hvbridge.vfs.remote import Entry, Listing, Quota, Traits
from hvbridge.webdav import entries
from hvbridge.webdav.backend import BridgeBackend, MuxBackend, SocketBackend
from hvbridge.webdav.client import Auth, BridgeClient
from hvbridge.webdav.download import WebdavDownload, download_of
from hvbridge.webdav.errors import status_error, translated
from hvbridge.webdav.multistatus import APACHE, DAV, RawResponse
from hvbridge.webdav.properties import etag_of, http_date, iso_date
from hvbridge.webdav.quirks import Quirks, quirks_of
from hvbridge.webdav.transport import BridgeTransport

MUX_URL = "http://share.hvbridge.invalid/"
"""Base URL over the mux, where no host has a name (RFC 6761 §6.4)."""

HEAD_ROOM = KIB
"""Bytes that the head of a PUT may have besides its path; without credentials it has some 150."""

KEEPALIVE = 4.0
"""Seconds that an idle TCP connection is kept: servers close theirs after 5 (Apache) or more."""

MAX_SERVER = 200
"""Characters of a ``Server`` header that are kept."""

FOLDER_ANSWERS = frozenset({301, 302, 307, 308, 403, 405, 409})
"""Statuses that servers give to GET on a folder."""

UNCLEAR = frozenset({405, 409, 500})
"""Statuses of PUT that need a second look."""

NO_PROPPATCH = frozenset({400, 405, 409, 501})
"""Statuses of PROPPATCH that mean "not this property", or "no PROPPATCH"."""


@dataclass(slots=True)
class Learnt:
    """What the answers of one session told."""

    session: int
    server: str | None = None
    """The ``Server`` header; ``""`` if there is none, ``None`` while nothing was heard."""

    settable: dict[str, bool] = field(default_factory=dict)
    """Whether PROPPATCH of a property has the effect it claims, by property."""


class WebdavRemote:
    """The share behind ``client``; thread-safe. ``channel``: where the client's sessions are counted."""

    def __init__(self, client: BridgeClient, channel: Channel | None = None) -> None:
        self.client = client
        self._limits = client.limits
        self._channel = channel
        self._learnt = Learnt(session=0)
        client.on_answer = self._heard

    def close(self) -> None:
        """Close every connection; requests under way fail."""
        self.client.close()

    @property
    def traits(self) -> Traits:
        """What is known of the server now; no request."""
        learnt = self._current()
        quirks = quirks_of(learnt.server or "")
        return Traits(server=learnt.server or "", ranges=quirks.ranges, keeps_mode=quirks.keeps_mode)

    def atomic_put(self, path: str) -> int:
        """Body bytes that a PUT on ``path`` carries whole or not at all; no request."""
        whole = self._quirks.whole_request
        if not whole:
            return 0
        return max(0, whole - HEAD_ROOM - len(self.client.join_url(path).raw_path))

    # --- reading --------------------------------------------------------

    def stat(self, path: str) -> Entry:
        """PROPFIND Depth 0."""
        with translated(path, "PROPFIND"):
            responses, server = self.client.propfind_responses(path, entries.PROPFIND_ENTRY, 0)
            return entries.entry_of(path, responses, quirks_of(server), self.client.prefix)

    def list(self, path: str) -> Listing:
        """PROPFIND Depth 1."""
        with translated(path, "PROPFIND"):
            responses, server = self._members(path)
            found = entries.listing_of(path, responses, quirks_of(server), self._limits, self.client.prefix)
        return found.listing if found.twin is None else self._told_apart(path, found.listing, found.twin)

    def get(self, path: str, start: int = 0, end: int | None = None) -> WebdavDownload:
        """GET, with one Range where a part is asked for."""
        if start < 0 or (end is not None and end <= start):
            raise InvalidArgument(f"no such part: {start} to {end}", path)
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with translated(path, "GET"), deadline.within(self._limits.request):
            response = self.client.send("GET", path, headers=headers)
            try:
                if suspicious(response) and self._is_folder(path):
                    raise IsDirectory("it is a folder", path)
                if response.status_code not in (200, 206):
                    raise status_error("GET", response.status_code, path)
                return download_of(path, response, self._limits, start, end)
            except BaseException:
                response.close()
                raise

    def quota(self) -> Quota:
        """PROPFIND of RFC 4331's properties at the root."""
        cheap = self._current().server is not None and self._quirks.used_is_cheap
        body = entries.PROPFIND_QUOTA if cheap else entries.PROPFIND_AVAILABLE
        with translated("/", "PROPFIND"):
            return entries.quota_of(self.client.propfind_responses("/", body, 0)[0])

    # --- writing --------------------------------------------------------

    def put(self, path: str, body: bytes | Iterable[bytes], size: int) -> str | None:
        """PUT with ``Content-Length``; the new ETag if the server tells."""
        with translated(path, "PUT"):
            try:
                answer = self.client.put(path, body, size)
            except HTTPError as exc:
                raise self._put_error(path, size, exc.status_code) from exc
        return etag_of(answer.headers.get("etag"))

    def mkdir(self, path: str) -> None:
        """MKCOL."""
        if self._quirks.mkcol_blind and self._stands(path):
            raise Exists("the name is taken", path)
        with translated(path, "MKCOL"):
            self.client.mkdir(path)

    def delete(self, path: str) -> None:
        """DELETE."""
        with translated(path, "DELETE"):
            self.client.remove(path + self._slash(path))

    def move(self, src: str, dst: str, *, overwrite: bool) -> None:
        """MOVE."""
        self._transfer("MOVE", self.client.move, src, dst, overwrite)

    def copy(self, src: str, dst: str, *, overwrite: bool) -> None:
        """COPY."""
        self._transfer("COPY", self.client.copy, src, dst, overwrite)

    def set_executable(self, path: str, on: bool) -> bool:
        """PROPPATCH of mod_dav's ``executable``, looked at afterwards the first time."""
        return self._set(
            path, APACHE + "executable", "T" if on else "F", lambda entry: entry.executable is on
        )

    def set_mtime(self, path: str, mtime_ns: int) -> bool:
        """PROPPATCH of ``getlastmodified``, looked at afterwards the first time.

        Whole seconds, except on our own share, which takes all nine digits.
        """
        seconds = mtime_ns // 10**9
        return self._set(
            path,
            DAV + "getlastmodified",
            iso_date(mtime_ns) if self._known_quirks().exact_dates else http_date(mtime_ns),
            lambda entry: entry.mtime_ns is not None and entry.mtime_ns // 10**9 == seconds,
        )

    # --- what was learnt ------------------------------------------------

    @property
    def _quirks(self) -> Quirks:
        return quirks_of(self._current().server or "")

    def _current(self) -> Learnt:
        session = self._channel.sessions if self._channel is not None else 0
        if self._learnt.session != session:
            self._learnt = Learnt(session)
        return self._learnt

    def _heard(self, response: httpx.Response) -> None:
        learnt = self._current()
        learnt.server = response.headers.get("server", "")[:MAX_SERVER] or learnt.server or ""

    def _known_quirks(self) -> Quirks:
        """The quirks, asking the server for anything if nothing was heard of it yet."""
        if self._current().server is None:
            self.stat("/")
        return self._quirks

    # --- parts of operations --------------------------------------------

    def _slash(self, path: str) -> str:
        """What to put behind ``path``: a slash if the server must be told that it is a folder."""
        return "/" if self._known_quirks().folder_slash and self.stat(path).is_dir else ""

    def _members(self, path: str) -> tuple[Sequence[RawResponse], str]:
        """PROPFIND Depth 1, spelt as the server wants a folder to be."""
        if self._quirks.list_slash and path != "/":
            with contextlib.suppress(ResourceNotFound, HTTPError):  # it may be a file
                return self.client.propfind_responses(path + "/", entries.PROPFIND_ENTRY, 1)
        return self.client.propfind_responses(path, entries.PROPFIND_ENTRY, 1)

    def _told_apart(self, path: str, listing: Listing, twin: str) -> Listing:
        """``listing`` with the folder itself and the member ``twin`` each asked for alone."""
        member = self.stat(names.join(path, twin))
        members = tuple(member if entry.name == twin else entry for entry in listing.entries)
        return dataclasses.replace(listing, folder=self.stat(path), entries=members)

    def _is_folder(self, path: str) -> bool:
        try:
            return self.stat(path).is_dir
        except (NotFound, AccessDenied):
            return False

    def _transfer(self, method: str, send: Callable[..., None], src: str, dst: str, overwrite: bool) -> None:
        try:
            with translated(src, method):
                slash = self._slash(src)
                send(src + slash, dst + slash, overwrite=overwrite)
        except Exists as exc:
            # phodav answers 412 to almost any failure of MOVE and COPY.
            if overwrite or not self._stands(dst):
                raise IOFailed(f"the client could not {method} it to {dst!r}", src) from exc
            raise Exists("the name is taken", dst) from exc
        except AccessDenied as exc:
            if not self._stands(src):  # rclone
                raise NotFound("no such file or folder", src) from exc
            raise

    def _stands(self, path: str) -> bool:
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    def _put_error(self, path: str, size: int, status: int) -> FsError:
        """Why a PUT failed: phodav says 500 to a missing parent, a folder and a full disk alike."""
        error = status_error("PUT", status, path)
        if status not in UNCLEAR:
            return error
        try:
            return self._obstacle(path) or self._shortage(path, size) or error
        except FsError:
            return error

    def _obstacle(self, path: str) -> FsError | None:
        """What stands in the way of a file at ``path``, or is not there for it."""
        if self._stands(path):
            return IsDirectory("it is a folder", path) if self._is_folder(path) else None
        folder = names.split(path)[0]
        if not self._stands(folder):
            return NotFound("no such parent folder", path)
        return None if self._is_folder(folder) else NotDirectory("the parent is not a folder", path)

    def _shortage(self, path: str, size: int) -> FsError | None:
        available = self.quota().available
        if available is None or available >= size:
            return None
        return NoSpace("the client's disk is full", path)

    def _set(self, path: str, tag: str, text: str, has_it: Callable[[Entry], bool]) -> bool:
        """PROPPATCH ``tag``, unless it is known to have no effect; whether it had one."""
        if not self._known_quirks().properties_writable:
            return False
        settable = self._current().settable
        if settable.get(tag) is False:
            return False
        if tag not in settable and has_it(self.stat(path)):
            return True  # nothing to do, and nothing that would be learnt
        with translated(path, "PROPPATCH"):
            try:
                said = self.client.proppatch(path, tag, text)
            except HTTPError as exc:
                if exc.status_code not in NO_PROPPATCH:
                    raise
                said = False
        if tag not in settable:
            settable[tag] = said and has_it(self.stat(path))
            return settable[tag]
        return said


def suspicious(response: httpx.Response) -> bool:
    """True for answers to GET that a folder may have given: a page about it, a redirect, a refusal."""
    if response.status_code in (200, 206):
        page = response.headers.get("content-type", "").startswith("text/html")
        return page and "etag" not in response.headers
    return response.status_code in FOLDER_ANSWERS


def connect_remote(
    channel: Channel | None, base_url: str = MUX_URL, limits: Limits | None = None, auth: Auth = None
) -> WebdavRemote:
    """The share over ``channel`` (mux), or, where that is ``None``, at ``base_url`` over TCP.

    Connects when it is first asked for something. ``auth``: user and password, for ``http://``.
    """
    limits = limits or Limits()
    backend: BridgeBackend = SocketBackend() if channel is None else MuxBackend(channel)
    transport = BridgeTransport(backend, limits.streams, KEEPALIVE if channel is None else None)
    base_url = base_url if base_url.endswith("/") else base_url + "/"
    return WebdavRemote(BridgeClient(base_url, transport, limits, auth), channel)
