"""A filesystem in a few dictionaries, with Linux's rules and errno: what ours is compared to."""

from __future__ import annotations

import copy
import errno
import itertools
import os
from dataclasses import dataclass, field

CREATE = os.O_CREAT | os.O_TRUNC


@dataclass(eq=False)
class _File:
    data: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class _Folder:
    members: dict[str, _File | _Folder] = field(default_factory=dict)


@dataclass(eq=False)
class _Open:
    file: _File
    flags: int


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class PosixModel:
    """Paths as in :class:`tests.support.fsops.FsOps`, and its calls."""

    def __init__(self) -> None:
        self._root = _Folder()
        self._numbers = itertools.count(1)
        self.open_files: dict[int, _Open] = {}

    def copy(self) -> PosixModel:
        """An independent copy, without open files."""
        other = PosixModel()
        other._root = copy.deepcopy(self._root)
        return other

    # --- finding ----------------------------------------------------------

    def _parent(self, path: str) -> tuple[_Folder, str]:
        folder = self._root
        *above, name = path.split("/")
        for part in above:
            below = folder.members.get(part)
            if below is None:
                raise _fail(errno.ENOENT)
            if not isinstance(below, _Folder):
                raise _fail(errno.ENOTDIR)
            folder = below
        return folder, name

    def _find(self, path: str) -> _File | _Folder:
        if not path:
            return self._root
        folder, name = self._parent(path)
        if name not in folder.members:
            raise _fail(errno.ENOENT)
        return folder.members[name]

    def _all(self) -> dict[str, _File | _Folder]:
        found: dict[str, _File | _Folder] = {}

        def walk(prefix: str, folder: _Folder) -> None:
            for name, node in folder.members.items():
                found[prefix + name] = node
                if isinstance(node, _Folder):
                    walk(f"{prefix}{name}/", node)

        walk("", self._root)
        return found

    def folders(self) -> list[str]:
        """Every folder's path."""
        return ["", *(path for path, node in self._all().items() if isinstance(node, _Folder))]

    def files(self) -> list[str]:
        """Every file's path."""
        return [path for path, node in self._all().items() if isinstance(node, _File)]

    def settled_files(self) -> dict[str, bytes]:
        """Content of the files that nobody has open."""
        return {
            path: bytes(node.data)
            for path, node in self._all().items()
            if isinstance(node, _File) and not self._is_open(node)
        }

    def _is_open(self, file: _File) -> bool:
        return any(handle.file is file for handle in self.open_files.values())

    def kind_and_size(self, path: str) -> tuple[bool, int]:
        """(is a folder, bytes)."""
        node = self._find(path)
        return (True, 0) if isinstance(node, _Folder) else (False, len(node.data))

    # --- descriptors ------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        folder, name = self._parent(path)
        node = folder.members.get(name)
        if node is None:
            if not flags & os.O_CREAT:
                raise _fail(errno.ENOENT)
            node = folder.members[name] = _File()
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _fail(errno.EEXIST)
        if isinstance(node, _Folder):
            raise _fail(errno.EISDIR)  # Linux: only if it is opened for writing; FUSE has opendir then
        if flags & os.O_TRUNC:
            del node.data[:]
        fd = next(self._numbers)
        self.open_files[fd] = _Open(node, flags)
        return fd

    def close(self, fd: int) -> None:
        del self.open_files[fd]

    def read_all(self, fd: int) -> bytes:
        handle = self.open_files[fd]
        if handle.flags & os.O_ACCMODE == os.O_WRONLY:
            raise _fail(errno.EBADF)
        return bytes(handle.file.data)

    def _writable(self, fd: int) -> bytearray:
        handle = self.open_files[fd]
        if handle.flags & os.O_ACCMODE == os.O_RDONLY:
            raise _fail(errno.EBADF)
        return handle.file.data

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        content = self._writable(fd)
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        return len(data)

    def ftruncate(self, fd: int, size: int) -> None:
        _resize(self._writable(fd), size)

    def fsync(self, fd: int) -> None:
        assert fd in self.open_files

    # --- whole files --------------------------------------------------------

    def write_file(self, path: str, data: bytes) -> None:
        fd = self.open(path, os.O_WRONLY | CREATE)
        self.pwrite(fd, data, 0)
        self.close(fd)

    def read_file(self, path: str) -> bytes:
        fd = self.open(path)
        data = self.read_all(fd)
        self.close(fd)
        return data

    def truncate(self, path: str, size: int) -> None:
        node = self._find(path)
        if isinstance(node, _Folder):
            raise _fail(errno.EISDIR)
        _resize(node.data, size)

    # --- names ------------------------------------------------------------

    def listdir(self, path: str = "") -> list[str]:
        node = self._find(path)
        if isinstance(node, _File):
            raise _fail(errno.ENOTDIR)
        return sorted(node.members)

    def mkdir(self, path: str) -> None:
        folder, name = self._parent(path)
        if name in folder.members:
            raise _fail(errno.EEXIST)
        folder.members[name] = _Folder()

    def rmdir(self, path: str) -> None:
        node = self._find(path)
        if isinstance(node, _File):
            raise _fail(errno.ENOTDIR)
        if node.members:
            raise _fail(errno.ENOTEMPTY)
        folder, name = self._parent(path)
        del folder.members[name]

    def unlink(self, path: str) -> None:
        if isinstance(self._find(path), _Folder):
            raise _fail(errno.EISDIR)
        folder, name = self._parent(path)
        del folder.members[name]

    def rename(self, src: str, dst: str) -> None:
        (source, source_name), (target, target_name) = self._parent(src), self._parent(dst)
        node = self._find(src)
        if dst.startswith(src + "/"):
            raise _fail(errno.EINVAL)
        standing = target.members.get(target_name)
        if standing is node:
            return
        if src.startswith(dst + "/"):
            raise _fail(errno.ENOTEMPTY)
        if standing is not None:
            self._may_replace(node, standing)
        del source.members[source_name]
        target.members[target_name] = node

    @staticmethod
    def _may_replace(node: _File | _Folder, standing: _File | _Folder) -> None:
        if isinstance(node, _Folder) and isinstance(standing, _File):
            raise _fail(errno.ENOTDIR)
        if isinstance(node, _File) and isinstance(standing, _Folder):
            raise _fail(errno.EISDIR)
        if isinstance(standing, _Folder) and standing.members:
            raise _fail(errno.ENOTEMPTY)

    # --- what the client may do without touching what is open here ----------

    def client_may_write(self, path: str) -> bool:
        try:
            folder, name = self._parent(path)
        except OSError:
            return False
        node = folder.members.get(name)
        return node is None or (isinstance(node, _File) and not self._is_open(node))

    def client_may_delete(self, path: str) -> bool:
        try:
            node = self._find(path)
        except OSError:
            return False
        return isinstance(node, _File) and not self._is_open(node)

    def client_may_make(self, path: str) -> bool:
        try:
            folder, name = self._parent(path)
        except OSError:
            return False
        return name not in folder.members


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))
