"""The share as an fsspec filesystem, for anybody's Python.

::

    with fsspec.open("hvbridge://notes.txt", channel="unix:///run/vm7.webdav") as file:
        print(file.read())

Built on webdav4's :class:`~webdav4.fsspec.WebdavFileSystem`; what moves content
or asks about names goes through :class:`~hvbridge.webdav.remote.WebdavRemote`.
Paths are unquoted, relative to the share, and hold any character. Errors are
Python's :class:`OSError` family, with hvbridge's own as their cause.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import weakref
from collections.abc import Iterator
from typing import IO, Any, cast

from fsspec.utils import stringify_path
from webdav4.fsspec import WebdavFileSystem

from hvbridge import errors
from hvbridge.channel.channel import Channel
from hvbridge.channel.opening import open_channel, read_password
from hvbridge.channel.url import HttpURL, parse
from hvbridge.config import MIB, Limits
from hvbridge.spice.mux import Role
from hvbridge.vfs import names
from hvbridge.vfs.remote import Entry
from hvbridge.webdav.client import PIECE, BridgeClient
from hvbridge.webdav.files import RemoteReader, WholeUpload
from hvbridge.webdav.remote import WebdavRemote, connect_remote

READ_BUFFER = MIB
"""Bytes that a reader fetches ahead of small reads."""

PYTHON_ERRORS: tuple[tuple[type[errors.HvbridgeError], type[OSError]], ...] = (
    (errors.NotFound, FileNotFoundError),
    (errors.Exists, FileExistsError),
    (errors.IsDirectory, IsADirectoryError),
    (errors.NotDirectory, NotADirectoryError),
    (errors.AccessDenied, PermissionError),
    (errors.ReadOnly, PermissionError),
    (errors.TimedOut, TimeoutError),
    (errors.Offline, ConnectionError),
    (errors.ConnectionLost, ConnectionError),
    (errors.FsError, OSError),
    (errors.ChannelError, ConnectionError),
)


@contextlib.contextmanager
def python_errors() -> Iterator[None]:
    """hvbridge's errors as Python's own."""
    try:
        yield
    except errors.HvbridgeError as exc:
        for ours, theirs in PYTHON_ERRORS:
            if isinstance(exc, ours):
                raise theirs(str(exc)) from exc
        raise


class HvbridgeFileSystem(WebdavFileSystem):  # type: ignore[misc]  # webdav4 has no type marker
    """The folder that a client shares on ``channel``, a channel URL or an open :class:`Channel`.

    Connects when it is first used; :meth:`close`, a ``with`` block or the garbage
    collector ends the connection. A channel that was handed in stays open.
    """

    protocol = "hvbridge"
    cachable = False  # a channel has one user: two filesystems on one URL must be two on purpose

    def __init__(self, channel: str | Channel, limits: Limits | None = None) -> None:
        self._channel = channel
        self._limits = limits or Limits()
        self._remote: WebdavRemote | None = None
        self._ending: weakref.finalize[Any, Any] | None = None
        super().__init__("", client=self)

    @property
    def remote(self) -> WebdavRemote:
        """The share, connecting on the first use. Raises :class:`~hvbridge.errors.HvbridgeError`."""
        if self._remote is None:
            self._remote, ending = self._connect()
            self._ending = weakref.finalize(self, ending.close)
        return self._remote

    @property
    def client(self) -> BridgeClient:
        """webdav4's client, for requests of one's own."""
        return self.remote.client

    @client.setter
    def client(self, client: Any) -> None:
        """Set by webdav4's constructor; the client is made on the first use."""

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self._ending is not None:
            self._ending()

    def __enter__(self) -> HvbridgeFileSystem:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _connect(self) -> tuple[WebdavRemote, contextlib.ExitStack]:
        with contextlib.ExitStack() as ending:
            if isinstance(self._channel, Channel):
                remote = connect_remote(self._channel, limits=self._limits)
            else:
                url = parse(self._channel)
                if isinstance(url, HttpURL):
                    password = read_password(url.password_file) if url.password_file is not None else ""
                    auth = None if url.user is None else (url.user, password)
                    remote = connect_remote(None, url.base, self._limits, auth)
                else:
                    channel = Channel(open_channel(url), Role.HOST)
                    channel.start()
                    ending.callback(channel.close)
                    remote = connect_remote(channel, limits=self._limits)
            ending.callback(remote.close)
            return remote, ending.pop_all()
        raise AssertionError("an ExitStack swallows nothing here")

    # --- names ----------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return stringify_path(path).removeprefix("hvbridge://").strip("/")

    def _at(self, path: Any) -> str:
        """The path within the share."""
        return "/" + str(self._strip_protocol(path))

    @staticmethod
    def _details(path: str, entry: Entry) -> dict[str, Any]:
        modified = None
        if entry.mtime_ns is not None:
            epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
            modified = epoch + datetime.timedelta(microseconds=entry.mtime_ns // 1000)
        return {
            "name": path.lstrip("/"),
            "size": entry.size,
            "type": "directory" if entry.is_dir else "file",
            "modified": modified,
            "etag": entry.etag,
            "executable": entry.executable,
        }

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a folder; of a file, the file itself."""
        at = self._at(path)
        with python_errors():
            try:
                found = [self._details(names.join(at, e.name), e) for e in self.remote.list(at).entries]
            except errors.NotDirectory:
                found = [self._details(at, self.remote.stat(at))]
        return found if detail else [details["name"] for details in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """``name``, ``size``, ``type``, ``modified``, ``etag``, ``executable``."""
        at = self._at(path)
        with python_errors():
            return self._details(at, self.remote.stat(at))

    def created(self, path: str) -> datetime.datetime | None:
        """Unknown to most servers: the time of the last change."""
        return self.modified(path)

    def modified(self, path: str) -> datetime.datetime | None:
        """Time of the last change, UTC."""
        return cast("datetime.datetime | None", self.info(path)["modified"])

    def checksum(self, path: str) -> str | None:
        """The ETag."""
        return cast("str | None", self.info(path)["etag"])

    def size(self, path: str) -> int | None:
        """Bytes of a file."""
        return cast("int | None", self.info(path)["size"])

    # --- content --------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if mode == "rb":
            with python_errors():
                return Reader(RemoteReader(self.remote, self._at(path)), READ_BUFFER)
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"mode {mode!r} is not supported: read the file, and write it anew")
        at = self._at(path)
        existing = self._existing(at)
        if existing is not None and existing.is_dir:
            raise IsADirectoryError(f"it is a folder: {at!r}")
        if existing is not None and mode == "xb":
            raise FileExistsError(f"the name is taken: {at!r}")
        file = WholeUpload(self, at, mode, block_size, autocommit)
        if existing is not None and mode == "ab":
            with python_errors():
                for piece in self.remote.get(at):
                    file.write(piece)
        return file

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Content of a file, or a part of it; negative offsets count from the end."""
        with python_errors():
            at = self._at(path)
            first, last = start or 0, end
            if first < 0 or (last is not None and last < 0):
                size = self.remote.stat(at).size or 0
                first = max(0, size + first) if first < 0 else first
                last = max(0, size + last) if last is not None and last < 0 else last
            if last is not None and last <= first:
                return b""
            return self._part(at, first, last)

    def _part(self, at: str, first: int, last: int | None) -> bytes:
        cheap = self.remote.traits.ranges and (first or last is not None)
        try:
            download = self.remote.get(at, first, last) if cheap else self.remote.get(at)
        except errors.Changed:
            return b""  # the range is past the end
        kept = bytearray()
        passed = download.start
        with contextlib.closing(download):
            for piece in download:
                kept += piece[max(0, first - passed) : None if last is None else max(0, last - passed)]
                passed += len(piece)
                if last is not None and passed >= last:
                    break
        return bytes(kept)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Create or replace a file (``mode="create"``: create only)."""
        self.commit(io.BytesIO(value), self._at(path), len(value), exclusive=mode == "create")

    def upload_fileobj(
        self,
        fobj: IO[bytes],
        rpath: str,
        callback: Any = None,
        overwrite: bool = True,
        size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Send what ``fobj`` holds from its position on, with the folders above it."""
        if size is None:
            begin = fobj.tell()
            size = fobj.seek(0, io.SEEK_END) - begin
            fobj.seek(begin)
        at = self._at(rpath)
        self.makedirs(names.split(at)[0], exist_ok=True)
        if callback is not None:
            callback.set_size(size)
        self.commit(fobj, at, size, exclusive=not overwrite)
        if callback is not None:
            callback.relative_update(size)

    put_fileobj = upload_fileobj

    def commit(self, file: IO[bytes], path: str, size: int, *, exclusive: bool = False) -> None:
        """Make ``size`` bytes of ``file`` the content of ``path``, all of them or none.

        In one request where the server takes that whole, else under a temporary
        name that is then moved over; an existing file is copied to that name
        first where this keeps its mode. Raises :class:`OSError`.
        """
        with python_errors():
            existing = self._existing(path)
            if existing is not None and existing.is_dir:
                raise errors.IsDirectory("it is a folder", path)
            if existing is not None and exclusive:
                raise errors.Exists("the name is taken", path)
            if not exclusive and size <= self.remote.atomic_put(path):
                self.remote.put(path, chunks(file), size)
                return
            part = names.temporary(names.split(path)[0], "part")
            try:
                if existing is not None and self.remote.traits.keeps_mode:
                    self.remote.copy(path, part, overwrite=False)
                self.remote.put(part, chunks(file), size)
                self.remote.move(part, path, overwrite=not exclusive)
            except BaseException:
                with contextlib.suppress(errors.FsError):
                    self.remote.delete(part)
                raise

    def _existing(self, at: str) -> Entry | None:
        with python_errors():
            try:
                return self.remote.stat(at)
            except errors.NotFound:
                return None

    # --- folders, names -------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Create a folder. Raises :class:`FileExistsError`."""
        at = self._at(path)
        if create_parents:
            self.makedirs(names.split(at)[0], exist_ok=True)
        with python_errors():
            self.remote.mkdir(at)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create a folder and those above it."""
        at = self._at(path)
        existing = self._existing(at)
        if existing is not None:
            if not existing.is_dir:
                raise NotADirectoryError(f"not a folder: {at!r}")
            if not exist_ok:
                raise FileExistsError(f"the name is taken: {at!r}")
            return
        self.makedirs(names.split(at)[0], exist_ok=True)
        with python_errors():
            self.remote.mkdir(at)

    def rmdir(self, path: str) -> None:
        """Remove a folder, if it is empty."""
        at = self._at(path)
        with python_errors():
            if self.remote.list(at).entries:
                raise errors.NotEmpty("the folder is not empty", at)
            self.remote.delete(at)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        at = self._at(path)
        with python_errors():
            if self.remote.stat(at).is_dir:
                raise errors.IsDirectory("it is a folder", at)
            self.remote.delete(at)

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and folders if ``recursive``; a name that exists is no pattern."""
        for one in [path] if isinstance(path, str) else path:
            at = self._at(one)
            existing = self._existing(at)
            if existing is None:
                super().rm(one, recursive=recursive, maxdepth=maxdepth)
            elif not existing.is_dir:
                self.rm_file(one)
            elif recursive and maxdepth is None:
                with python_errors():
                    self.remote.delete(at)
            else:
                raise IsADirectoryError(f"it is a folder: {at!r}")

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file, or a folder with all that is in it, on the server."""
        src, dst = self._at(path1), self._at(path2)
        with python_errors():
            self._check_target(dst)
            self.remote.copy(src, dst, overwrite=True)

    def mv(
        self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> None:
        """Rename on the server: over a file, into a folder; never over a folder."""
        src, dst = self._at(path1), self._at(path2)
        with python_errors():
            existing = self._existing(dst)
            if existing is not None and existing.is_dir:
                dst = names.join(dst, names.split(src)[1])
                self._check_target(dst)
            self.remote.move(src, dst, overwrite=True)

    def _check_target(self, at: str) -> None:
        """Refuse to overwrite a folder: the server would destroy it."""
        existing = self._existing(at)
        if existing is not None and existing.is_dir:
            raise errors.IsDirectory("it is a folder", at)


class Reader(io.BufferedReader):
    """A buffered :class:`RemoteReader` whose errors are Python's own."""

    raw: RemoteReader

    @property
    def size(self) -> int:
        """Bytes of the file, as fsspec's users ask for it."""
        return self.raw.size

    def read(self, size: int | None = -1, /) -> bytes:
        """As :meth:`io.BufferedReader.read`."""
        with python_errors():
            return super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        """As :meth:`io.BufferedReader.read1`."""
        with python_errors():
            return super().read1(size)

    def readinto(self, buffer: Any, /) -> int:
        """As :meth:`io.BufferedReader.readinto`."""
        with python_errors():
            return super().readinto(buffer)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of ``file``."""
    while piece := file.read(PIECE):
        yield piece
