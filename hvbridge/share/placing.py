"""Whole or not at all: how content and names come into being in the shared folder.

Everything new is made under a hidden name in the folder where it will stand,
or under no name at all, and takes its place by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

HIDDEN = re.compile(r"\.hvbridge-[0-9a-f]{16}\.(part|gone)")
"""Names of what is not finished, ours and the host's, and of what the host deleted
while it was still open there; they are never listed."""

COPY_BLOCK = 16 << 20
"""Bytes that the kernel copies at one call."""


def part_path(folder: str) -> str:
    """A hidden path in ``folder`` that is not taken."""
    return os.path.join(folder, f".hvbridge-{secrets.token_hex(8)}.part")  # noqa: PTH118


class Draft:
    """A file being written, which nobody sees until :meth:`commit`.

    ``folder``: the directory where it will stand. Without a commit nothing is
    left, not even after a crash, where the filesystem knows ``O_TMPFILE``.
    Leave by :meth:`discard`; all methods raise :class:`OSError`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._part: str | None = None
        try:
            self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
            return
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        self._part = part_path(folder)
        self.fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes) -> None:
        """Append all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def copy_from(self, source: int) -> None:
        """Append the content of an open file, by reflink or in the kernel where that works."""
        with contextlib.suppress(OSError):
            while os.copy_file_range(source, self.fd, COPY_BLOCK):
                pass
        while data := os.read(source, COPY_BLOCK):
            self.write(data)

    def adopt(self, model: os.stat_result) -> None:
        """Take over the permissions, and if we may the owner, of the file that this one replaces.

        Not set-uid and its kin: content from the channel must not run as somebody else.
        """
        with contextlib.suppress(OSError):
            os.fchown(self.fd, model.st_uid, model.st_gid)
        os.fchmod(self.fd, stat.S_IMODE(model.st_mode) & 0o777)

    def commit(self, target: str, *, over_folders: bool = False) -> os.stat_result:
        """Stand at ``target``, in place of any file there; the stat of what stands there now."""
        if self._part is None:
            self._part = part_path(self._folder)
            try:
                # A directory descriptor, which an absolute path ignores, makes Python call
                # linkat(2) with AT_SYMLINK_FOLLOW rather than link(2): open(2), O_TMPFILE.
                os.link(f"/proc/self/fd/{self.fd}", self._part, src_dir_fd=self.fd)
            except OSError:
                self._part = None
                raise
        if over_folders:
            take_place(self._part, target)
        else:
            os.replace(self._part, target)  # noqa: PTH105
        self._part = None
        return os.fstat(self.fd)

    def discard(self) -> None:
        """Release it; removes what was not committed. Idempotent, never raises."""
        if self._part is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._part)  # noqa: PTH108
            self._part = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def copy_file(source: str, target: str) -> None:
    """Copy a regular file with permissions and times to stand at ``target``, in place of what is there."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(fd)
        draft = Draft(os.path.dirname(target))  # noqa: PTH120
        try:
            draft.copy_from(fd)
            draft.adopt(before)
            os.utime(draft.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            draft.commit(target, over_folders=True)
        finally:
            draft.discard()
    finally:
        os.close(fd)


def copy_tree(source: str, target: str, *, members: bool) -> None:
    """Copy a folder (empty if not ``members``) to stand at ``target``, in place of what is there.

    Symbolic links are copied as links: whether they may be followed is asked
    at each access.
    """
    part = part_path(os.path.dirname(target))  # noqa: PTH120
    try:
        if members:
            shutil.copytree(source, part, symlinks=True, ignore=_hidden)
        else:
            os.mkdir(part)  # noqa: PTH102
            shutil.copystat(source, part)
        take_place(part, target)
    except shutil.Error as exc:
        raise OSError(errno.EIO, f"{len(exc.args[0])} members could not be copied") from exc
    finally:
        remove(part)


def move(source: str, target: str) -> None:
    """Rename, in place of what is at ``target``; across filesystems by copy and delete."""
    try:
        take_place(source, target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        if stat.S_ISDIR(os.lstat(source).st_mode):
            copy_tree(source, target, members=True)
        else:
            copy_file(source, target)
        remove(source)


def take_place(source: str, target: str) -> None:
    """Rename ``source`` to ``target``; what stood there goes only after that worked.

    Atomic for a file over a file and a folder over an empty one or nothing.
    """
    try:
        os.replace(source, target)  # noqa: PTH105
    except OSError as exc:
        if exc.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise
        _swap(source, target)
    else:
        # Two names of one file: rename(2) does nothing then.
        if os.path.lexists(source):
            os.unlink(source)  # noqa: PTH108


def remove(path: str) -> None:
    """Delete a file, a link, or a folder with all that is in it; nothing there is fine."""
    try:
        is_dir = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if is_dir:
        shutil.rmtree(path)
    else:
        Path(path).unlink()


def _swap(source: str, target: str) -> None:
    aside = part_path(os.path.dirname(target))  # noqa: PTH120
    os.rename(target, aside)  # noqa: PTH104
    try:
        os.rename(source, target)  # noqa: PTH104
    except OSError:
        os.rename(aside, target)  # noqa: PTH104
        raise
    remove(aside)


def _hidden(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if HIDDEN.fullmatch(name)}
