"""One small os-like interface to a filesystem under test, and what its sharing side holds.

:class:`FsOps` has the calls of :mod:`os` that the contract suite makes; all raise
``OSError`` with an errno. :class:`MountOps` makes them on a real mount.
:class:`FilesystemOps` makes them on a :class:`~hvbridge.vfs.filesystem.Filesystem`
and does what Linux does before FUSE is asked: it walks the path, looks before it
creates, keeps descriptors with their access mode, and knows where files appended
to end.

:class:`ClientSide` is the folder as the client's user sees it.
"""

from __future__ import annotations

import abc
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from hvbridge.errors import FsError
from hvbridge.fuse.errno_map import errno_of
from hvbridge.vfs import names
from hvbridge.vfs.files import OpenMode
from hvbridge.vfs.filesystem import Filesystem
from hvbridge.vfs.memory import MemoryRemote

T = TypeVar("T")

CHUNK = 128 * 1024
"""Bytes of one write, as FUSE passes them."""


NOTICED = 10.0
"""Seconds in which a real mount shows what the client changed: twice a listing's life."""


class Stat(NamedTuple):
    """What of stat(2) is compared."""

    mode: int
    size: int
    mtime_ns: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class FsOps(abc.ABC):
    """Paths are relative to ``base`` (``""`` is that folder itself), without leading slash."""

    base = ""
    """Absolute within the share, without trailing slash: each test has a folder of its own."""

    def full(self, path: str) -> str:
        """Where ``path`` is on the share."""
        return f"{self.base}/{path}" if path else self.base or "/"

    @abc.abstractmethod
    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int: ...
    @abc.abstractmethod
    def close(self, fd: int) -> None: ...
    @abc.abstractmethod
    def pread(self, fd: int, size: int, offset: int) -> bytes: ...
    @abc.abstractmethod
    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...
    @abc.abstractmethod
    def append(self, fd: int, data: bytes) -> int:
        """write(2) on a descriptor that was opened with ``O_APPEND``."""

    @abc.abstractmethod
    def ftruncate(self, fd: int, size: int) -> None: ...
    @abc.abstractmethod
    def fsync(self, fd: int) -> None: ...
    @abc.abstractmethod
    def fstat(self, fd: int) -> Stat: ...
    @abc.abstractmethod
    def stat(self, path: str) -> Stat: ...
    @abc.abstractmethod
    def truncate(self, path: str, size: int) -> None: ...
    @abc.abstractmethod
    def listdir(self, path: str = "") -> list[str]: ...
    @abc.abstractmethod
    def mkdir(self, path: str, mode: int = 0o777) -> None: ...
    @abc.abstractmethod
    def rmdir(self, path: str) -> None: ...
    @abc.abstractmethod
    def unlink(self, path: str) -> None: ...
    @abc.abstractmethod
    def rename(self, src: str, dst: str) -> None: ...
    @abc.abstractmethod
    def chmod(self, path: str, mode: int) -> None: ...
    @abc.abstractmethod
    def utime(self, path: str, mtime_ns: int) -> None: ...
    @abc.abstractmethod
    def statfs(self) -> tuple[int, int]:
        """Total and free bytes."""

    @abc.abstractmethod
    def notices(self, seen: Callable[[], bool]) -> bool:
        """Whether a change that the client made is ``seen``: at the next look, or soon."""

    # --- made of the above ----------------------------------------------

    def write_file(self, path: str, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
        """Open, write all, close."""
        fd = self.open(path, os.O_WRONLY | flags)
        try:
            for at in range(0, len(data), CHUNK):
                self.pwrite(fd, data[at : at + CHUNK], at)
        finally:
            self.close(fd)

    def read_file(self, path: str) -> bytes:
        """Open, read to the end, close."""
        fd = self.open(path)
        try:
            return self.read_all(fd)
        finally:
            self.close(fd)

    def read_all(self, fd: int) -> bytes:
        """From offset 0 to the end."""
        pieces: list[bytes] = []
        at = 0
        while piece := self.pread(fd, CHUNK, at):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def exists(self, path: str) -> bool:
        """True if stat(2) finds it."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True


class MountOps(FsOps):
    """The calls themselves, below a mountpoint."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint

    def real(self, path: str) -> str:
        """The path that other programs know."""
        return str(self.mountpoint) + self.full(path)

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        return os.open(self.real(path), flags, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def append(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fstat(self, fd: int) -> Stat:
        return _stat(os.fstat(fd))

    def stat(self, path: str) -> Stat:
        return _stat(os.stat(self.real(path)))  # noqa: PTH116 - the calls themselves are under test

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.real(path), size)

    def listdir(self, path: str = "") -> list[str]:
        return sorted(os.listdir(self.real(path)))  # noqa: PTH208

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(self.real(path), mode)  # noqa: PTH102

    def rmdir(self, path: str) -> None:
        os.rmdir(self.real(path))  # noqa: PTH106

    def unlink(self, path: str) -> None:
        os.unlink(self.real(path))  # noqa: PTH108

    def rename(self, src: str, dst: str) -> None:
        os.rename(self.real(src), self.real(dst))  # noqa: PTH104

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.real(path), mode)  # noqa: PTH101

    def utime(self, path: str, mtime_ns: int) -> None:
        os.utime(self.real(path), ns=(mtime_ns, mtime_ns))

    def statfs(self) -> tuple[int, int]:
        space = os.statvfs(self.mountpoint)
        return space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize

    def notices(self, seen: Callable[[], bool]) -> bool:
        ends_at = time.monotonic() + NOTICED
        while not seen():
            if time.monotonic() > ends_at:
                return False
            time.sleep(0.1)
        return True


def _stat(found: os.stat_result) -> Stat:
    return Stat(found.st_mode, found.st_size, found.st_mtime_ns)


@dataclass
class _Descriptor:
    fh: int
    flags: int
    path: str
    """Absolute; ``""`` once it was deleted."""


class FilesystemOps(FsOps):
    """A :class:`Filesystem` behind the checks of Linux's VFS."""

    def __init__(self, fs: Filesystem) -> None:
        self.fs = fs
        self._numbers = itertools.count(1000)
        self._open: dict[int, _Descriptor] = {}

    # --- what the kernel does first ---------------------------------------

    @staticmethod
    def _call(work: Callable[[], T]) -> T:
        try:
            return work()
        except FsError as exc:
            number = errno_of(exc)
            raise OSError(number, os.strerror(number)) from exc

    def _walk(self, path: str) -> str:
        """The full path, if all folders above its last component are there."""
        full = self.full(path)
        above, parts = "", full.split("/")[1:-1]
        for part in parts:
            above += "/" + part
            here = above
            if not self._call(lambda: self.fs.getattr(here)).is_dir:  # noqa: B023 - called at once
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return full

    def _descriptor(self, fd: int, access: int | None = None) -> _Descriptor:
        found = self._open.get(fd)
        if found is None or (access is not None and found.flags & os.O_ACCMODE not in (access, os.O_RDWR)):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return found

    # --- the calls --------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        full = self._walk(path)
        access = flags & os.O_ACCMODE
        try:
            is_dir = self._call(lambda: self.fs.getattr(full)).is_dir
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            fh = self._call(lambda: self.fs.create(full, mode))
        else:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if is_dir and (access != os.O_RDONLY or flags & (os.O_CREAT | os.O_TRUNC)):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            wanted = OpenMode(access != os.O_WRONLY, access != os.O_RDONLY, bool(flags & os.O_TRUNC))
            fh = self._call(lambda: self.fs.open(full, wanted))
        fd = next(self._numbers)
        self._open[fd] = _Descriptor(fh, flags, full)
        return fd

    def close(self, fd: int) -> None:
        fh = self._descriptor(fd).fh
        del self._open[fd]
        try:
            self._call(lambda: self.fs.flush(fh))
        finally:
            self._call(lambda: self.fs.release(fh))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        fh = self._descriptor(fd, os.O_RDONLY).fh
        return self._call(lambda: self.fs.read(fh, offset, size))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        fh = self._descriptor(fd, os.O_WRONLY).fh
        return self._call(lambda: self.fs.write(fh, offset, data))

    def append(self, fd: int, data: bytes) -> int:
        assert self._descriptor(fd).flags & os.O_APPEND
        return self.pwrite(fd, data, self.fstat(fd).size)

    def ftruncate(self, fd: int, size: int) -> None:
        found = self._descriptor(fd, os.O_WRONLY)
        self._call(lambda: self.fs.truncate(found.path, size, found.fh))

    def fsync(self, fd: int) -> None:
        fh = self._descriptor(fd).fh
        self._call(lambda: self.fs.fsync(fh))

    def fstat(self, fd: int) -> Stat:
        found = self._descriptor(fd)
        return self._attr(found.path, found.fh)

    def stat(self, path: str) -> Stat:
        return self._attr(self._walk(path), None)

    def _attr(self, full: str, fh: int | None) -> Stat:
        attr = self._call(lambda: self.fs.getattr(full, fh))
        kind = stat.S_IFDIR if attr.is_dir else stat.S_IFREG
        return Stat(kind | attr.mode, attr.size, attr.mtime_ns)

    def truncate(self, path: str, size: int) -> None:
        full = self._walk(path)
        self._call(lambda: self.fs.truncate(full, size))

    def listdir(self, path: str = "") -> list[str]:
        full = self._walk(path)
        if not self._call(lambda: self.fs.getattr(full)).is_dir:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return sorted(name for name, _ in self._call(lambda: self.fs.readdir(full)))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        full = self._walk(path)
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._call(lambda: self.fs.mkdir(full, mode & ~0o022))

    def rmdir(self, path: str) -> None:
        full = self._walk(path)
        self._call(lambda: self.fs.rmdir(full))

    def unlink(self, path: str) -> None:
        full = self._walk(path)
        self._call(lambda: self.fs.unlink(full))
        self._lost(full)

    def rename(self, src: str, dst: str) -> None:
        old, new = self._walk(src), self._walk(dst)
        self._call(lambda: self.fs.getattr(old))
        self._call(lambda: self.fs.rename(old, new))
        if old != new:
            self._lost(new)
        for found in self._open.values():
            found.path = names.moved(found.path, old, new)

    def _lost(self, full: str) -> None:
        for found in self._open.values():
            if found.path == full:
                found.path = ""

    def chmod(self, path: str, mode: int) -> None:
        full = self._walk(path)
        self._call(lambda: self.fs.chmod(full, mode))

    def utime(self, path: str, mtime_ns: int) -> None:
        full = self._walk(path)
        self._call(lambda: self.fs.utimens(full, mtime_ns))

    def statfs(self) -> tuple[int, int]:
        space = self.fs.statfs()
        return space.total, space.free

    def notices(self, seen: Callable[[], bool]) -> bool:
        self.fs.tree.forget()  # as time does
        return seen()


class ClientSide(abc.ABC):
    """The shared folder as its owner sees it; paths as in :class:`FsOps`."""

    base = ""
    patience = 0.0
    """Seconds that content may take to be in place: phodav answers a PUT just before."""

    def has(self, path: str, data: bytes | bytearray) -> bool:
        """True once the file has exactly this content; false if not within :attr:`patience`."""
        ends_at = time.monotonic() + self.patience
        while (found := self._content(path)) != data:
            if time.monotonic() >= ends_at:
                print(f"{path!r} has {describe(found)} on the client, not {describe(data)}")
                return False
            time.sleep(0.005)
        return True

    def _content(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """A file's content. Raises ``FileNotFoundError``."""

    @abc.abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, behind the mount's back."""

    @abc.abstractmethod
    def mkdir(self, path: str) -> None:
        """Make a folder behind the mount's back."""

    @abc.abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file behind the mount's back."""

    @abc.abstractmethod
    def names(self, path: str = "") -> list[str]:
        """All names in a folder, hidden ones included, sorted."""

    @abc.abstractmethod
    def executable(self, path: str) -> bool:
        """The owner's exec bit."""

    @abc.abstractmethod
    def set_executable(self, path: str, on: bool) -> None:
        """Set the exec bit behind the mount's back."""


class MemoryClient(ClientSide):
    """What a :class:`MemoryRemote` holds."""

    def __init__(self, remote: MemoryRemote) -> None:
        self._remote = remote

    def _full(self, path: str) -> str:
        return f"{self.base}/{path}" if path else self.base or "/"

    def read(self, path: str) -> bytes:
        data = self._remote.tree().get(self._full(path))
        if data is None:
            raise FileNotFoundError(errno.ENOENT, path)
        return data

    def write(self, path: str, data: bytes) -> None:
        self._remote.write(self._full(path), data)

    def mkdir(self, path: str) -> None:
        self._remote.mkdir(self._full(path))

    def delete(self, path: str) -> None:
        self._remote.delete(self._full(path))

    def names(self, path: str = "") -> list[str]:
        full = self._full(path)
        return sorted(names.split(p)[1] for p in self._remote.tree() if names.split(p)[0] == full)

    def executable(self, path: str) -> bool:
        return bool(self._remote.stat(self._full(path)).executable)

    def set_executable(self, path: str, on: bool) -> None:
        self._remote.set_executable(self._full(path), on)


class DiskClient(ClientSide):
    """A folder on this machine's disk."""

    def __init__(self, folder: Path, patience: float = 0.0) -> None:
        self._folder, self.patience = folder, patience

    def _full(self, path: str) -> Path:
        return Path(f"{self._folder}{self.base}/{path}")

    def read(self, path: str) -> bytes:
        return self._full(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        self._full(path).write_bytes(data)

    def mkdir(self, path: str) -> None:
        self._full(path).mkdir()

    def delete(self, path: str) -> None:
        self._full(path).unlink()

    def names(self, path: str = "") -> list[str]:
        return sorted(member.name for member in self._full(path).iterdir())

    def executable(self, path: str) -> bool:
        return bool(self._full(path).stat().st_mode & stat.S_IXUSR)

    def set_executable(self, path: str, on: bool) -> None:
        self._full(path).chmod(0o755 if on else 0o644)


def describe(data: bytes | bytearray | None) -> str:
    """A content in few words, for failures."""
    return "nothing" if data is None else f"{len(data)} bytes ({bytes(data[:16])!r}…)"
