"""The filesystem: POSIX semantics over a share. Knows no FUSE and no HTTP.

Every method takes paths (``/a/b``) or handles (``int``), may be called from any
thread, and raises :class:`~hvbridge.errors.FsError`.

Parts: :mod:`tree` (what is where), :mod:`content` and :mod:`contentcache` (versions
of files), :mod:`readahead`, :mod:`files` with :mod:`openfile` and :mod:`spool` (what is
open and written), :mod:`namespace` (names, by POSIX's rules), :mod:`upload`,
:mod:`presence` (which share is there), :mod:`overlay` (times and modes that a share
cannot keep).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hvbridge import deadline
from hvbridge.config import GIB, Limits
from hvbridge.errors import (
    Changed,
    FsError,
    InvalidArgument,
    IOFailed,
    NotFound,
    Offline,
    ReadOnly,
    SessionChanged,
)
from hvbridge.vfs import names
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.files import Files, OpenMode
from hvbridge.vfs.namespace import Namespace
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.overlay import Overlay
from hvbridge.vfs.presence import SESSIONS_IN_A_ROW, AlwaysThere, Connection, Presence
from hvbridge.vfs.readahead import ReadAhead
from hvbridge.vfs.remote import Entry, Quota, Remote
from hvbridge.vfs.spool import make_folder
from hvbridge.vfs.tree import ROOT, Tree
from hvbridge.vfs.upload import Uploader

log = logging.getLogger(__name__)

T = TypeVar("T")

QUOTA_FRESH = 15.0
"""Seconds that statfs answers from memory: programs ask often."""

QUOTA_PATIENCE = 2.0
"""Seconds that statfs waits for the client at most: ``df`` must not hang."""

SETTLING = 1.5
"""Seconds after another share came in which changes fail. The kernel believes names for
1 s: what it had looked up, or held waiting behind another change, was meant for the last one."""

UNKNOWN_SPACE = 1024 * GIB
"""Free space shown where the server tells none: tools refuse to write to a full disk."""

FILE_MODE, FOLDER_MODE, EXEC = 0o666, 0o777, 0o111
"""Before the mount's umask."""


@dataclass(frozen=True, slots=True)
class Attr:
    """What stat(2) shows. ``mode``: permission bits, already masked."""

    is_dir: bool
    size: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True, slots=True)
class Space:
    """What statfs shows, in bytes."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How one mount behaves. ``cache_size``: bytes of content on the host's disk."""

    read_only: bool = False
    umask: int = 0o022
    cache_size: int = 8 * GIB
    mountpoint: str = ""
    mount_id: str = "unnamed"


class Filesystem:
    """One share, mounted. ``state``: folder for the spool and the cache.

    ``connection``: the channel, as far as its clients are counted; without one
    the server counts as always there.
    """

    def __init__(
        self,
        remote: Remote,
        state: Path,
        *,
        limits: Limits | None = None,
        settings: Settings | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.settings = settings or Settings()
        spool = make_folder(state, self.settings.mount_id)
        self._remote = remote
        self.presence = Presence(
            remote, connection or AlwaysThere(), self._other_share, on_session=self._new_session
        )
        self.tree = Tree(remote, self.limits, on_top=self.presence.update)
        self.cache = ContentCache(remote, spool, self.limits, self.settings.cache_size)
        self.readahead = ReadAhead(self.tree, self.cache, self.limits)
        self.overlay = Overlay()
        self.uploader = Uploader(remote, self.tree, self.presence, self.limits)
        self.files = Files(
            tree=self.tree,
            cache=self.cache,
            presence=self.presence,
            uploader=self.uploader,
            limits=self.limits,
            spool=spool,
            mountpoint=self.settings.mountpoint,
            after_upload=self._after_upload,
        )
        self.namespace = Namespace(
            remote=remote, tree=self.tree, files=self.files, cache=self.cache, overlay=self.overlay
        )
        self._quota: tuple[float, Quota] = (-QUOTA_FRESH, Quota())
        self._started_ns = time.time_ns()
        self._other_came = -SETTLING

    # --- looking --------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> Attr:
        """Attributes of a path, or of an open handle (also of a deleted file)."""
        file = self.files.of(fh) if fh is not None else self.files.at(path)
        path = path or (file.path if file is not None else "")
        if file is not None and (file.spool is not None or file.entry is None or file.unlinked):
            return self._attr_of_file(file)
        if path == "/" and not self.presence.came:
            return self._attr("/", ROOT)
        return self._attr(path, self._lookup(path))

    def readdir(self, path: str) -> list[tuple[str, Attr]]:
        """Names and attributes of a folder's members, without ``.`` and ``..``."""
        if not self.presence.came:
            if path == "/":
                return []
            raise NotFound("no client has come yet", path)
        self._recognise()
        members = {
            e.name: self._attr(names.join(path, e.name), e)
            for e in self._pinned(lambda: self.tree.list(path))
        }
        for file in self.files.unsent_in(path):
            members[names.split(file.path)[1]] = self._attr_of_file(file)
        return sorted(members.items())

    def statfs(self) -> Space:
        """Free and total bytes, by the client's quota; never waits long, never fails."""
        if not self.presence.came:
            return Space(0, 0)
        asked_at, quota = self._quota
        if time.monotonic() - asked_at > QUOTA_FRESH:
            try:
                with deadline.within(QUOTA_PATIENCE):
                    quota = self._remote.quota()
            except FsError as exc:
                log.debug("quota: %s", exc)
            self._quota = (time.monotonic(), quota)
        free = UNKNOWN_SPACE if quota.available is None else quota.available
        return Space(free + (quota.used or 0), free)

    def _lookup(self, path: str) -> Entry:
        self._lookup_allowed(path)
        return self._pinned(lambda: self.tree.lookup(path))

    def _recognise(self) -> None:
        """After a client came (back): is it the same share?"""
        if not self.presence.known:
            self.presence.current()

    def _new_session(self) -> None:
        self.tree.forget()
        self.uploader.sweep()

    def _attr(self, path: str, entry: Entry) -> Attr:
        mode = self.overlay.mode(path)
        if mode is None:
            mode = FOLDER_MODE if entry.is_dir else FILE_MODE | (EXEC if entry.executable else 0)
            mode &= ~self.settings.umask
        mtime_ns = self.overlay.mtime(path, entry)
        if mtime_ns is None:
            mtime_ns = entry.mtime_ns if entry.mtime_ns is not None else self._started_ns
        return Attr(entry.is_dir, entry.size or 0, mtime_ns, mode)

    def _attr_of_file(self, file: OpenFile) -> Attr:
        name = names.split(file.path)[1]
        if file.dirty or file.unlinked or file.entry is None:
            executable = file.entry.executable if file.entry is not None else None
            entry = Entry(name, False, mtime_ns=file.mtime_ns, executable=executable)
        else:
            try:
                entry = self.tree.lookup(file.path)
            except NotFound:
                entry = file.entry
        attr = replace(self._attr(file.path, entry), is_dir=False, size=file.size)
        return attr if file.mode is None else replace(attr, mode=file.mode)

    # --- open files -----------------------------------------------------

    def open(self, path: str, mode: OpenMode) -> int:
        """A handle. Raises :class:`NotFound`, :class:`IsDirectory`, :class:`ReadOnly`."""
        if mode.write or mode.truncate:
            self._writable(path)
        self._lookup_allowed(path)
        if mode.write:
            self._settled(path)
        else:
            self.readahead.opened(path)
        fh = self._pinned(lambda: self.files.open(path, mode))
        if mode.truncate:
            self.overlay.drop_mtime(path)
        return fh

    def resized(self, fh: int) -> bool:
        """True if the file turned out to have another size than its listing said."""
        return self.files.of(fh).resized

    def create(self, path: str, mode: int) -> int:
        """A new file's handle; the client gets the file when it is flushed."""
        self._writable(path)
        self._lookup_allowed(path)
        self._settled(path)
        fh = self.files.create(path, mode & 0o777)
        self.overlay.removed(path)
        return fh

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; shorter only at the end of the file."""
        return self.files.of(fh).read(offset, size)

    def write(self, fh: int, offset: int, data: bytes) -> int:
        """Bytes taken (all), into the spool."""
        self.overlay.drop_mtime(self.files.of(fh).path)
        return self.files.write(fh, offset, data)

    def truncate(self, path: str, size: int, fh: int | None = None) -> None:
        """Set the size, of a path (the client has it on return) or of a handle."""
        if size < 0:
            raise InvalidArgument("a size is not negative", path)
        self._writable(path)
        self.overlay.drop_mtime(path)
        if fh is not None:
            self.files.of(fh).truncate(size)
            return
        fh = self.open(path, OpenMode(read=False, write=True))
        try:
            self.files.of(fh).truncate(size)
            self.files.fsync(fh)
        finally:
            self.files.release(fh)

    def flush(self, fh: int) -> None:
        """close(2): return when the client has what was written, or raise why not."""
        self.files.flush(fh)

    def fsync(self, fh: int) -> None:
        """fsync(2): return when the client has what was written, or raise why not."""
        self.files.fsync(fh)

    def release(self, fh: int) -> None:
        """The handle is no longer used. Never raises for the client's faults."""
        self.files.release(fh)

    def _lookup_allowed(self, path: str) -> None:
        if not self.presence.came:
            raise NotFound("no client has come yet", path)
        names.check(path, self.limits)
        self._recognise()

    # --- names ----------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        """Make a folder."""
        self._change(path)
        self._pinned(lambda: self.namespace.mkdir(path))
        if mode & 0o777 != FOLDER_MODE & ~self.settings.umask:
            self.overlay.set_mode(path, mode & 0o777)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        self._change(path)
        self._pinned(lambda: self.namespace.rmdir(path))

    def unlink(self, path: str) -> None:
        """Delete a file; who has it open goes on reading it."""
        self._change(path)
        self._pinned(lambda: self.namespace.unlink(path))

    def rename(self, src: str, dst: str) -> None:
        """rename(2)."""
        self._change(src)
        self._change(dst)
        self._pinned(lambda: self.namespace.rename(src, dst))

    def _pinned(self, work: Callable[[], T]) -> T:
        """Do it on the share that is there now; after a reconnect, if it is still that one."""
        share = self.presence.current()
        for _ in range(SESSIONS_IN_A_ROW):
            try:
                with self.presence.pinned(share):
                    return work()
            except SessionChanged as exc:
                log.info("%s", exc)  # it was not sent: look who is there, and begin anew
        raise IOFailed("clients come and go too fast")

    # --- attributes -----------------------------------------------------

    def chmod(self, path: str, mode: int) -> None:
        """The exec bit goes to the client if it keeps it; the rest is remembered here."""
        self._change(path)
        file = self.files.at(path)
        if file is not None and file.entry is None:
            file.mode = mode & 0o777
            return
        entry = self.tree.lookup(path, confirmed=False)
        self._pinned(lambda: self._apply_mode(path, mode & 0o777, entry))

    def utimens(self, path: str, mtime_ns: int | None) -> None:
        """Set the modification time (``None``: now), on the client where it keeps it."""
        self._change(path)
        mtime_ns = time.time_ns() if mtime_ns is None else mtime_ns
        file = self.files.at(path)
        if file is None or not file.dirty:
            entry = self.tree.lookup(path, confirmed=False)
            if not entry.is_dir:
                with self.presence.pinned(None):
                    if self._set_mtime(path, mtime_ns, entry):
                        return
        self.overlay.set_mtime(path, mtime_ns)

    def _apply_mode(self, path: str, mode: int, entry: Entry) -> None:
        if not entry.is_dir and bool(mode & 0o100) != bool(entry.executable):
            on = bool(mode & 0o100)
            if self._asked("chmod", lambda: self._remote.set_executable(path, on)):
                entry = replace(entry, executable=on)
                self.tree.note(path, entry, confirmed=False)
        self.overlay.set_mode(path, None)
        if self._attr(path, entry).mode != mode:
            self.overlay.set_mode(path, mode)

    def _set_mtime(self, path: str, mtime_ns: int, entry: Entry) -> bool:
        if not self._asked("utimens", lambda: self._remote.set_mtime(path, mtime_ns)):
            return False
        self.overlay.drop_mtime(path)
        self.tree.note(path, replace(entry, mtime_ns=mtime_ns), confirmed=False)
        return True

    @staticmethod
    def _asked(what: str, ask: Callable[[], bool]) -> bool:
        """True if the server did it; its refusals are no error, since the overlay stands in."""
        try:
            return ask()
        except FsError as exc:
            log.debug("%s: %s", what, exc)
            return False

    def _after_upload(self, file: OpenFile) -> None:
        entry = file.entry
        if entry is None:
            return
        if (mtime_ns := self.overlay.mtime(file.path, entry)) is not None:
            self._set_mtime(file.path, mtime_ns, entry)
        if file.mode is not None:
            mode, file.mode = file.mode, None
            self._apply_mode(file.path, mode, entry)

    # --- life -----------------------------------------------------------

    def pending(self) -> list[dict[str, Any]]:
        """What the client has not got yet, for ``hvbridge status``."""
        return [f.spool.describe() | {"size": f.size} for f in self.files.unsent() if f.spool is not None]

    def failed(self) -> list[dict[str, Any]]:
        """Uploads that failed and whose file is closed; their content is in the spool."""
        return list(self.files.failed)

    def drain(self, seconds: float, progress: Callable[[str, int], None] | None = None) -> bool:
        """Upload everything that is dirty; true if nothing is left.

        ``progress(path, size)`` is called before each file. Files still open for
        writing are uploaded as they are now.
        """
        ends_at = time.monotonic() + seconds
        for file in self.files.unsent():
            if time.monotonic() > ends_at:
                break
            if progress is not None:
                progress(file.path, file.size)
            try:
                self.files.upload(file)
            except FsError as exc:
                log.debug("%s", exc)  # the uploader has said so
        return not self.files.unsent() and not self.files.failed

    def usage(self) -> dict[str, int]:
        """Cache and handles, for ``hvbridge status``."""
        held, known = self.cache.usage()
        return {"bytes": held, "files": known, "open_files": len(self.files)}

    def close(self) -> None:
        """Give back threads and disk space; what is dirty stays in the spool."""
        self.tree.close()
        self.readahead.close()
        self.files.close()
        self.cache.forget()

    def _other_share(self) -> None:
        self._other_came = time.monotonic()
        self.tree.forget()
        self.cache.forget()
        self.overlay.forget()

    def _change(self, path: str) -> None:
        self._writable(path)
        names.check(path, self.limits)
        self._recognise()
        self._settled(path)

    def _settled(self, path: str) -> None:
        if time.monotonic() - self._other_came < SETTLING:
            raise Changed("another share has just come", path)

    def _writable(self, path: str) -> None:
        if self.settings.read_only:
            raise ReadOnly("mounted read-only", path)
        if not self.presence.came:
            raise Offline("no client has come yet", path)
        self.presence.touch(path)
