"""The shared folder as WebDAV resources (RFC 4918) for WsgiDAV.

WsgiDAV's own filesystem provider writes in place, asks the disk several times
for each property and has neither modes nor quota; this one stats each member
once. Paths inside the share are ``str`` with ``/``; names that are not UTF-8
live in them as surrogates (PEP 383), and leave as their bytes, percent-encoded.

Nothing outside of the folder is served: the folder part of every path is
resolved, and so is a symbolic link at its end. The peer cannot make links, so
there is no race to win between check and use.
"""

from __future__ import annotations

import datetime
import io
import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote_to_bytes

from lxml import etree
from wsgidav import util
from wsgidav.dav_error import (
    HTTP_BAD_REQUEST,
    HTTP_CONFLICT,
    HTTP_FORBIDDEN,
    HTTP_NOT_FOUND,
    DAVError,
    PRECONDITION_CODE_ProtectedProperty,
)
from wsgidav.dav_provider import DAVCollection, DAVNonCollection, DAVProvider

from hvbridge.share import placing

EXECUTABLE = "{http://apache.org/dav/props/}executable"
"""mod_dav's property: ``T`` or ``F``."""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot carry, surrogates among them."""

_LOCK_PROPERTIES = ("{DAV:}supportedlock", "{DAV:}lockdiscovery")

_HREF_SAFE = "/!*'(),$-_|."
"""What RFC 3986 leaves alone in a path, as far as clients agree on it."""

Environ = dict[str, Any]


def etag(st: os.stat_result) -> str:
    """A strong validator without its quotes: mtime in ns, size and inode, in hex."""
    return f"{st.st_mtime_ns:x}-{st.st_size:x}-{st.st_ino:x}"


class _Resource:
    """What files and folders have in common; mixed into WsgiDAV's resource classes.

    ``local``: where it is on disk, a link unresolved; ``real``: what is served.
    """

    provider: ShareProvider
    environ: Environ
    path: str
    name: str
    is_collection: bool
    local: str
    real: str
    stat: os.stat_result

    _properties: ClassVar[dict[str, Callable[[Any], Any]]]

    def get_href(self) -> str:
        """Absolute path, percent-encoded; a folder's ends with ``/``."""
        href = quote(self.path.rstrip("/"), safe=_HREF_SAFE, errors="surrogateescape")
        return href + "/" if self.is_collection else href

    def get_ref_url(self) -> str:
        """Key of this resource in the lock tables."""
        return quote(self.path.rstrip("/") or "/", errors="surrogateescape")

    def get_content_length(self) -> int | None:
        """Bytes; ``None`` for a folder."""
        return None if self.is_collection else self.stat.st_size

    def get_creation_date(self) -> float:
        """Seconds since 1970; Linux tells only when the inode last changed."""
        return self.stat.st_ctime

    def get_last_modified(self) -> float:
        """Seconds since 1970."""
        return self.stat.st_mtime

    def support_etag(self) -> bool:
        """True: files and folders have validators."""
        return True

    def get_etag(self) -> str:
        """See :func:`etag`."""
        return etag(self.stat)

    def get_property_names(self, *, is_allprop: bool) -> list[str]:
        """Clark names of what there is; ``allprop`` leaves the quota out (RFC 4331, section 3)."""
        names = [name for name in self._properties if not (is_allprop and ":}quota" in name)]
        if self.provider.lock_manager and not self.provider.is_readonly():
            names.extend(_LOCK_PROPERTIES)
        return names

    def get_property_value(self, name: str) -> Any:
        """Text or element. Raises :class:`DAVError` 404 for what there is not."""
        if getter := self._properties.get(name):
            return getter(self)
        if name in _LOCK_PROPERTIES:
            return super().get_property_value(name)  # type: ignore[misc]
        raise DAVError(HTTP_NOT_FOUND)

    def set_property_value(self, name: str, value: Any, *, dry_run: bool = False) -> None:
        """PROPPATCH of the modification time and the exec bit; 403 for anything else."""
        if self.provider.is_readonly() or value is None:
            raise DAVError(HTTP_FORBIDDEN)
        text = (value.text or "").strip()
        if name == "{DAV:}getlastmodified":
            mtime = _parse_time(text)
            if not dry_run:
                os.utime(self.real, ns=(self.stat.st_atime_ns, mtime))
        elif name == EXECUTABLE and not self.is_collection:
            if text not in ("T", "F"):
                raise DAVError(HTTP_CONFLICT, "executable is T or F")
            if not dry_run:
                _set_executable(self.real, on=text == "T")
        else:
            raise DAVError(HTTP_FORBIDDEN, err_condition=PRECONDITION_CODE_ProtectedProperty)

    def handle_delete(self) -> bool:
        """DELETE with all members, listed or not. Raises :class:`OSError`, :class:`DAVError`."""
        if self.path.strip("/") == "":
            raise DAVError(HTTP_FORBIDDEN, "the share itself cannot be deleted")
        self.check_locks("infinity")
        with self.provider.naming:
            placing.remove(self.local)
        self.remove_all_locks(recursive=True)
        return True

    def remove_all_locks(self, *, recursive: bool) -> None:
        """Forget the locks of what has gone."""
        if self.provider.lock_manager:
            self.provider.lock_manager.remove_all_locks_from_url(self.get_ref_url(), recursive=recursive)

    def check_locks(self, depth: str) -> None:
        """Raise :class:`DAVError` 423 if somebody else holds a lock here (or below)."""
        if self.provider.lock_manager:
            util.parse_if_header_dict(self.environ)
            self.provider.lock_manager.check_write_permission(
                url=self.get_ref_url(),
                depth=depth,
                token_list=self.environ["wsgidav.ifLockTokenList"],
                principal=self.environ["wsgidav.user_name"],
            )

    def _display_name(self) -> str:
        if _NOT_XML.search(self.name):
            raise DAVError(HTTP_NOT_FOUND)  # the href has it; half a name would be a wrong one
        return self.name

    def _quota(self) -> os.statvfs_result:
        return os.statvfs(self.real)


class File(_Resource, DAVNonCollection):  # type: ignore[misc]
    """A regular file."""

    def __init__(self, path: str, environ: Environ, local: str, real: str, st: os.stat_result) -> None:
        DAVNonCollection.__init__(self, path, environ)
        self.local, self.real, self.stat = local, real, st
        self._content: _Content | None = None

    _properties: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "{DAV:}resourcetype": lambda self: "",
        "{DAV:}displayname": lambda self: self._display_name(),
        "{DAV:}creationdate": lambda self: util.get_rfc3339_time(self.get_creation_date()),
        "{DAV:}getlastmodified": lambda self: util.get_rfc1123_time(self.stat.st_mtime_ns // 10**9),
        "{DAV:}getcontentlength": lambda self: str(self.stat.st_size),
        "{DAV:}getcontenttype": lambda self: self.get_content_type(),
        "{DAV:}getetag": lambda self: f'"{etag(self.stat)}"',
        EXECUTABLE: lambda self: "T" if self.stat.st_mode & 0o111 else "F",
    }

    def open(self) -> None:
        """Open the content now, so that its stat, and so the ETag, is of what will be sent."""
        fd = os.open(self.real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._content = _Content(fd)
        self.stat = os.fstat(fd)
        if not stat.S_ISREG(self.stat.st_mode):
            raise DAVError(HTTP_FORBIDDEN)
        self._content.size = self.stat.st_size

    def get_content(self) -> io.RawIOBase:
        """The open content."""
        if self._content is None:
            self.open()
        assert self._content is not None
        return self._content

    def support_ranges(self) -> bool:
        """True: a range costs a seek."""
        return True

    def delete(self) -> None:
        """Only through :meth:`handle_delete`."""
        raise DAVError(HTTP_FORBIDDEN)


class Folder(_Resource, DAVCollection):  # type: ignore[misc]
    """A folder."""

    def __init__(self, path: str, environ: Environ, local: str, real: str, st: os.stat_result) -> None:
        DAVCollection.__init__(self, path, environ)
        self.local, self.real, self.stat = local, real, st

    _properties: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "{DAV:}resourcetype": lambda self: _collection(),
        "{DAV:}displayname": lambda self: self._display_name(),
        "{DAV:}creationdate": lambda self: util.get_rfc3339_time(self.get_creation_date()),
        "{DAV:}getlastmodified": lambda self: util.get_rfc1123_time(self.stat.st_mtime_ns // 10**9),
        "{DAV:}getetag": lambda self: f'"{etag(self.stat)}"',
        "{DAV:}quota-available-bytes": lambda self: str(self._quota().f_bavail * self._quota().f_frsize),
        "{DAV:}quota-used-bytes": lambda self: str(
            (self._quota().f_blocks - self._quota().f_bfree) * self._quota().f_frsize
        ),
    }

    def get_member_list(self) -> list[File | Folder]:
        """Files and folders, one stat each; hidden ones and what may not be served left out."""
        members = []
        base = self.path.rstrip("/")
        with os.scandir(self.real) as entries:
            for entry in entries:
                if placing.HIDDEN.fullmatch(entry.name):
                    continue
                member = self._member(f"{base}/{entry.name}", entry)
                if member is not None:
                    members.append(member)
        return members

    def get_member_names(self) -> list[str]:
        """Names of :meth:`get_member_list`."""
        return [member.name for member in self.get_member_list()]

    def get_member(self, name: str) -> File | Folder | None:
        """One member, or ``None``."""
        return self.provider.get_resource_inst(f"{self.path.rstrip('/')}/{name}", self.environ)

    def create_collection(self, name: str) -> None:
        """MKCOL."""
        os.mkdir(self.provider.locate(f"{self.path.rstrip('/')}/{name}"))  # noqa: PTH102

    def create_empty_resource(self, name: str) -> File | Folder | None:
        """LOCK of a name that is not taken (RFC 4918, section 7.3)."""
        path = f"{self.path.rstrip('/')}/{name}"
        fd = os.open(self.provider.locate(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.close(fd)
        return self.provider.get_resource_inst(path, self.environ)

    def delete(self) -> None:
        """Only through :meth:`handle_delete`."""
        raise DAVError(HTTP_FORBIDDEN)

    def _member(self, path: str, entry: os.DirEntry[str]) -> File | Folder | None:
        try:
            if entry.is_symlink():
                found = self.provider.get_resource_inst(path, self.environ)
                # A link upwards would let a walk run in circles.
                looping = found is not None and found.is_collection and _within(found.real, self.real)
                return None if looping else found
            st = entry.stat(follow_symlinks=False)
        except (OSError, DAVError):
            return None
        return self.provider.resource(path, self.environ, entry.path, entry.path, st)


class ShareProvider(DAVProvider):  # type: ignore[misc]
    """The folder ``root``, which must exist."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__()
        self.root = os.path.realpath(root)
        self._read_only = read_only
        self.naming = threading.RLock()
        """Held while a name is looked at and then given or taken."""

    def is_readonly(self) -> bool:
        """True if nothing may be written."""
        return self._read_only

    def ref_url_to_path(self, ref_url: str) -> str:
        """The path that :meth:`_Resource.get_ref_url` came from."""
        return "/" + unquote_path(ref_url).lstrip("/")

    def locate(self, path: str) -> str:
        """Where ``path`` is on disk, its folder resolved, a link at its end not.

        Raises :class:`DAVError` 403 outside of the share, 400 for what cannot be a path.
        """
        parts = [part for part in path.split("/") if part]
        if "\0" in path or "." in parts or ".." in parts:
            raise DAVError(HTTP_BAD_REQUEST, "no such path can be")
        if not parts:
            return self.root
        folder = os.path.realpath(os.path.join(self.root, *parts[:-1]))  # noqa: PTH118
        self._check_inside(folder)
        return os.path.join(folder, parts[-1])  # noqa: PTH118

    def get_resource_inst(self, path: str | None, environ: Environ) -> File | Folder | None:
        """What is at ``path``, ``None`` if nothing is.

        (WsgiDAV takes ``/`` for the parent of a name of blanks in the share
        itself, and asks for ``None``.)
        """
        path = path or "/"
        local = real = self.locate(path)
        try:
            st = os.lstat(local)
            if stat.S_ISLNK(st.st_mode):
                real = os.path.realpath(local)
                self._check_inside(real)
                st = os.stat(real)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = self.resource(path, environ, local, real, st)
        if found is None:
            raise DAVError(HTTP_FORBIDDEN, "neither a file nor a folder")
        if isinstance(found, File) and environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
            found.open()
        return found

    def resource(
        self, path: str, environ: Environ, local: str, real: str, st: os.stat_result
    ) -> File | Folder | None:
        """The resource for what was found; ``None`` for devices, pipes and sockets."""
        if stat.S_ISDIR(st.st_mode):
            return Folder(path, environ, local, real, st)
        if stat.S_ISREG(st.st_mode):
            return File(path, environ, local, real, st)
        return None

    def _check_inside(self, real: str) -> None:
        if not _within(self.root, real):
            raise DAVError(HTTP_FORBIDDEN, "outside of the share")


class _Content(io.FileIO):
    """An open file of a promised size, which raises where it would come short.

    WsgiDAV ends the body there, and the peer would wait for the rest on a
    connection that stays open.
    """

    size = 0

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes; raises :class:`OSError` at an end before :attr:`size`."""
        data = super().read(-1 if size is None else size) or b""
        if not data and size and self.tell() < self.size:
            raise OSError("the file became shorter while it was sent")
        return data


def unquote_path(quoted: str) -> str:
    """Percent-decoding into a path with surrogates for what is not UTF-8."""
    return unquote_to_bytes(quoted).decode("utf-8", "surrogateescape")


def _within(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _collection() -> Any:
    element = etree.Element("{DAV:}resourcetype")
    etree.SubElement(element, "{DAV:}collection")
    return element


def _set_executable(path: str, *, on: bool) -> None:
    """Exec for whom may read, or for nobody."""
    mode = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116
    os.chmod(path, mode | (mode & 0o444) >> 2 if on else mode & ~0o111)  # noqa: PTH101


def _parse_time(text: str) -> int:
    """Nanoseconds of an RFC 1123 or an ISO 8601 time, a fraction of nine digits included."""
    seconds = util.parse_time_string(text)
    if seconds is not None:
        return int(seconds) * 10**9
    match = re.fullmatch(r"(.*T\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text)
    try:
        if match is None:
            raise ValueError
        whole = datetime.datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
        fraction = int((match[2] or "").ljust(9, "0"))
        return (int(whole.timestamp()) * 10**9) + fraction
    except (ValueError, OverflowError):
        raise DAVError(HTTP_CONFLICT, "no time that could be read") from None
