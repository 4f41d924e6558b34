"""fusepy's operations on a :class:`~hvbridge.vfs.filesystem.Filesystem`: conversions only.

fusepy turns an ``OSError`` without errno into ERANGE by way of a NameError, any
other exception into EINVAL, and one name that cannot be encoded into a failed
listing. So every operation is wrapped here: an :class:`FsError` becomes its
errno, anything else a logged EIO, and names are UTF-8 with surrogates for the
bytes that are not.

Each operation that moves no content has one deadline over all its requests. The
others (read, flush, rename, …) are bounded by the filesystem: they may take
longer, but only while the client keeps moving.
"""

from __future__ import annotations

import codecs
import errno
import logging
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import fuse

from hvbridge import deadline
from hvbridge.errors import FsError, NotFound
from hvbridge.fuse.errno_map import errno_of
from hvbridge.vfs.files import OpenMode
from hvbridge.vfs.filesystem import Attr, Filesystem

log = logging.getLogger(__name__)

ENCODING = "hvbridge-utf8"
"""UTF-8 with surrogateescape: fusepy takes a codec's name, not its error handler."""

BLOCK = 4096

TELL_AGAIN = 300.0
"""Seconds after which the same I/O error is logged again."""

TOLD = 1000
"""Errors remembered as told."""

UNTIMED = frozenset({"read", "write", "flush", "fsync", "release", "unlink", "rename", "truncate"})

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
"""``tv_nsec`` values of utimensat(2); libfuse2 passes them on as they are, with ``tv_sec`` 0."""


def _codec(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != ENCODING:
        return None
    return codecs.CodecInfo(
        name=ENCODING,
        encode=lambda text, errors="strict": codecs.utf_8_encode(text, "surrogateescape"),
        decode=lambda data, errors="strict": codecs.utf_8_decode(data, "surrogateescape", True),
    )


codecs.register(_codec)


class News:
    """Tells what was logged already: a program that retries must not fill the journal."""

    def __init__(self) -> None:
        self._told: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, text: str) -> bool:
        """True unless ``text`` was told within :data:`TELL_AGAIN` seconds."""
        now = time.monotonic()
        with self._lock:
            told = self._told.get(text)
            if told is not None and now - told < TELL_AGAIN:
                return False
            self._told[text] = now
            self._told.move_to_end(text)
            if len(self._told) > TOLD:
                self._told.popitem(last=False)
            return True


class Operations(fuse.Operations):  # type: ignore[misc]
    """What libfuse calls, from many threads at once. ``fi`` is libfuse's ``fuse_file_info``."""

    use_ns = True
    flag_nullpath_ok = 1  # a deleted file that is still open has no path
    flag_utime_omit_ok = 1

    def __init__(self, fs: Filesystem, uid: int, gid: int, *, on_mounted: Callable[[], None]) -> None:
        self._fs, self._uid, self._gid, self._on_mounted = fs, uid, gid, on_mounted
        self._news = News()

    def __call__(self, op: str, *args: Any) -> Any:
        """Run one operation; the only errors that leave are ``OSError`` with an errno."""
        limit = None if op in UNTIMED else self._fs.limits.operation
        try:
            with deadline.within(limit):
                return getattr(self, op)(*args)
        except FsError as exc:
            number = errno_of(exc)
            level = logging.WARNING if number == errno.EIO and self._news.is_new(str(exc)) else logging.DEBUG
            log.log(level, "%s: %s", op, exc)
            raise OSError(number, os.strerror(number)) from exc
        except OSError as exc:
            raise OSError(exc.errno or errno.EIO, os.strerror(exc.errno or errno.EIO)) from exc
        except Exception as exc:
            log.exception("%s%r", op, tuple(a for a in args if isinstance(a, str | int)))
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from exc

    # --- mounting -------------------------------------------------------

    def init(self, path: str) -> None:
        """The kernel has the mount."""
        self._on_mounted()

    def destroy(self, path: str) -> None:
        """The mount is gone."""

    # --- looking --------------------------------------------------------

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        """lookup, stat(2), fstat(2)."""
        fh = fi.fh if fi is not None and fi.fh else None
        return self._stat(self._fs.getattr(path or "", fh))

    def readdir(self, path: str, fh: int) -> Iterator[Any]:
        """getdents(2)."""
        entries: list[Any] = [".", ".."]
        entries += [(name, self._stat(attr), 0) for name, attr in self._fs.readdir(path)]
        return iter(entries)

    def statfs(self, path: str) -> dict[str, int]:
        """statfs(2)."""
        space = self._fs.statfs()
        return {
            "f_bsize": BLOCK,
            "f_frsize": BLOCK,
            "f_blocks": space.total // BLOCK,
            "f_bfree": space.free // BLOCK,
            "f_bavail": space.free // BLOCK,
            "f_namemax": self._fs.limits.name_bytes,
        }

    def access(self, path: str, amode: int) -> int:
        """The kernel checks, by mode and owner (``default_permissions``)."""
        return 0

    def _stat(self, attr: Attr) -> dict[str, int]:
        return {
            "st_mode": (stat.S_IFDIR if attr.is_dir else stat.S_IFREG) | attr.mode,
            "st_nlink": 2 if attr.is_dir else 1,
            "st_uid": self._uid,
            "st_gid": self._gid,
            "st_size": attr.size,
            "st_blocks": (attr.size + 511) // 512,
            "st_blksize": 128 * 1024,
            "st_atime": attr.mtime_ns,
            "st_mtime": attr.mtime_ns,
            "st_ctime": attr.mtime_ns,
        }

    # --- open files -----------------------------------------------------

    def open(self, path: str, fi: Any) -> int:
        """open(2) of what exists; the kernel has seen to O_EXCL and O_APPEND."""
        access = fi.flags & os.O_ACCMODE
        mode = OpenMode(
            read=access != os.O_WRONLY,
            write=access != os.O_RDONLY,
            truncate=bool(fi.flags & os.O_TRUNC),
        )
        try:
            fi.fh = self._fs.open(path, mode)
        except NotFound as exc:
            # The kernel knew the name a moment ago: ESTALE has it look again, and create
            # the file if that was asked for.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from exc
        # The kernel cuts reads at the size that it knows: pass it by if that is another.
        fi.direct_io = self._fs.resized(fi.fh)
        return 0

    def create(self, path: str, mode: int, fi: Any) -> int:
        """open(2) with O_CREAT of what does not exist."""
        fi.fh = self._fs.create(path, mode)
        return 0

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """pread(2)."""
        return self._fs.read(fi.fh, offset, size)

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """pwrite(2)."""
        return self._fs.write(fi.fh, offset, data)

    def truncate(self, path: str | None, length: int, fi: Any = None) -> int:
        """truncate(2), ftruncate(2)."""
        self._fs.truncate(path or "", length, fi.fh if fi is not None else None)
        return 0

    def flush(self, path: str | None, fi: Any) -> int:
        """close(2) of one descriptor."""
        self._fs.flush(fi.fh)
        return 0

    def fsync(self, path: str | None, datasync: int, fi: Any) -> int:
        """fsync(2)."""
        self._fs.fsync(fi.fh)
        return 0

    def release(self, path: str | None, fi: Any) -> int:
        """The last descriptor of an open is gone."""
        self._fs.release(fi.fh)
        return 0

    # --- names ----------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> int:
        """mkdir(2)."""
        self._fs.mkdir(path, mode)
        return 0

    def rmdir(self, path: str) -> int:
        """rmdir(2)."""
        self._fs.rmdir(path)
        return 0

    def unlink(self, path: str) -> int:
        """unlink(2)."""
        self._fs.unlink(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        """rename(2)."""
        self._fs.rename(old, new)
        return 0

    def symlink(self, target: str, source: str) -> int:
        """A share has files and folders only."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def link(self, target: str, source: str) -> int:
        """A share has no hard links."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def mknod(self, path: str, mode: int, dev: int) -> int:
        """Regular files come through :meth:`create`; a share has no others."""
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        fh = self._fs.create(path, stat.S_IMODE(mode))
        try:
            self._fs.fsync(fh)
        finally:
            self._fs.release(fh)
        return 0

    def readlink(self, path: str) -> str:
        """Nothing here is a link."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    # --- attributes -----------------------------------------------------

    def chmod(self, path: str, mode: int) -> int:
        """chmod(2)."""
        self._fs.chmod(path, stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        """Owners are fixed by the mount. Not refused: tar as root and libvirt's DAC driver
        change owners of all they touch, and a refusal would fail them. Never sent."""
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None) -> int:
        """utimensat(2); access times are not kept."""
        wanted = UTIME_NOW if times is None else times[1]
        if wanted == UTIME_OMIT:
            return 0
        mtime_ns = None if wanted == UTIME_NOW else wanted
        self._fs.utimens(path, mtime_ns)
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """None are kept."""
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """None are kept."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def removexattr(self, path: str, name: str) -> int:
        """None are kept."""
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    def listxattr(self, path: str) -> list[str]:
        """None are kept."""
        return []
