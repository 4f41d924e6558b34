"""The table of open files and handles: open, read, write, flush, release.

An upload happens at flush (close(2)) and fsync, and both return its error. Only
a file that was emptied and not yet written to waits for its last close: a shell's
``> file`` closes a duplicate before it writes, and the client would see the file
empty in between.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvbridge.config import Limits
from hvbridge.errors import BadHandle, FsError, IsDirectory, NotFound, TooLarge, TooManyFiles
from hvbridge.vfs import names
from hvbridge.vfs.content import Content
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.presence import Presence
from hvbridge.vfs.remote import Entry
from hvbridge.vfs.spool import SpoolFile
from hvbridge.vfs.tree import Tree
from hvbridge.vfs.upload import Uploader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenMode:
    """What open(2) was asked for."""

    read: bool = True
    write: bool = False
    truncate: bool = False


@dataclass(slots=True)
class _Handle:
    file: OpenFile
    mode: OpenMode


class Files:
    """Open files by path, handles by number.

    ``after_upload`` is called with each file whose content the client just got.
    """

    def __init__(
        self,
        *,
        tree: Tree,
        cache: ContentCache,
        presence: Presence,
        uploader: Uploader,
        limits: Limits,
        spool: Path,
        mountpoint: str,
        after_upload: Callable[[OpenFile], None],
    ) -> None:
        self._tree, self._cache, self._presence, self._uploader = tree, cache, presence, uploader
        self._limits, self._spool, self._mountpoint = limits, spool, mountpoint
        self._after_upload = after_upload
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._handles: dict[int, _Handle] = {}
        self._files: dict[str, OpenFile] = {}
        self.failed: list[dict[str, Any]] = []
        """Uploads that failed and whose file is closed; their content is in the spool."""

    # --- finding --------------------------------------------------------

    def at(self, path: str) -> OpenFile | None:
        """The open file at a path."""
        return self._files.get(path)

    def of(self, fh: int) -> OpenFile:
        """The open file of a handle. Raises :class:`BadHandle`."""
        return self._handle(fh).file

    def below(self, path: str) -> list[OpenFile]:
        """Open files at ``path`` and below it."""
        with self._lock:
            return [f for p, f in self._files.items() if p == path or names.is_below(p, path)]

    def unsent_in(self, folder: str) -> list[OpenFile]:
        """Files directly in ``folder`` that the client has not got as they are now."""
        with self._lock:
            return [f for p, f in self._files.items() if f.dirty and names.split(p)[0] == folder]

    def unsent(self) -> list[OpenFile]:
        """All files that the client has not got as they are now."""
        with self._lock:
            return list(dict.fromkeys(h.file for h in self._handles.values() if h.file.dirty))

    def __len__(self) -> int:
        return len(self._handles)

    def _handle(self, fh: int) -> _Handle:
        try:
            return self._handles[fh]
        except KeyError:
            raise BadHandle("the handle is closed") from None

    # --- opening --------------------------------------------------------

    def open(self, path: str, mode: OpenMode) -> int:
        """A handle on an existing file. Raises :class:`NotFound`, :class:`IsDirectory`."""
        while (handle := self._add(self._existing(path, mode), mode)) is None:
            pass  # its last handle was released meanwhile
        if mode.truncate:
            try:
                self.of(handle).truncate(0)
            except FsError:
                self.release(handle)
                raise
        return handle

    def create(self, path: str, mode: int) -> int:
        """A handle on a new file; the client gets it when it is flushed."""
        file = self._new(path, None)
        file.mode = mode
        file.mtime_ns = time.time_ns()
        file.ensure_spool()
        handle = self._add(file, OpenMode(read=True, write=True))
        assert handle is not None, "a new file has not been released"
        return handle

    def _existing(self, path: str, mode: OpenMode) -> OpenFile:
        file = self.at(path)
        if file is not None and (file.dirty or file.entry is None):
            return file
        entry = self._tree.lookup(path)
        if entry.is_dir:
            raise IsDirectory("is a folder", path)
        if entry.etag is None:
            entry = self._tree.confirm(path)
        if file is not None and _same_version(file, entry):
            return file
        file = self._new(path, entry)
        if mode.read and not mode.write:
            self._begin_reading(file, entry)
        return file

    def _begin_reading(self, file: OpenFile, entry: Entry) -> None:
        """One GET now instead of one at the first read: it also tells the newest version."""
        if (entry.size or 0) > self._limits.small_file and self._cache.ranges_are_cheap:
            return
        try:
            content = self._cache.begin(file.path, entry)
        except NotFound:
            self._tree.note(file.path, None)  # the client deleted it since it was listed
            raise
        if content.etag != entry.etag or content.size != entry.size:
            entry = replace(entry, size=content.size, etag=content.etag)
            self._tree.note(file.path, entry, confirmed=False)
        file.use_base(content, entry)

    def _new(self, path: str, entry: Entry | None) -> OpenFile:
        file = OpenFile(path, entry, self._open_base, self._make_spool)
        file.share = self._presence.current()
        return file

    def _open_base(self, file: OpenFile) -> Content:
        entry = file.entry or Entry("", is_dir=False, size=0)
        return self._cache.open(file.gone_path or file.path, entry)

    def _make_spool(self, file: OpenFile) -> SpoolFile:
        return SpoolFile(self._spool, self._mountpoint, file.path)

    def _add(self, file: OpenFile, mode: OpenMode) -> int | None:
        """A handle on ``file``; ``None`` if it was closed meanwhile."""
        with self._lock:
            if file.closed:
                return None
            if len(self._handles) >= self._limits.open_files:
                if not file.handles:
                    file.discard()
                raise TooManyFiles("too many open files in this mount", file.path)
            other = self._files.get(file.path)
            if other is not None and other is not file and (other.dirty or _same_version(other, file.entry)):
                file.discard()  # another thread opened it meanwhile
                file = other
            self._files[file.path] = file
            return self._register(file, mode)

    # --- content --------------------------------------------------------

    def write(self, fh: int, offset: int, data: bytes) -> int:
        """Bytes taken (all), into the spool."""
        handle = self._handle(fh)
        if not handle.mode.write:
            raise BadHandle("not open for writing", handle.file.path)
        if offset + len(data) >= 1 << 63:
            raise TooLarge("offset out of range", handle.file.path)
        return handle.file.write(offset, data)

    def flush(self, fh: int) -> None:
        """close(2) of one descriptor: as :meth:`fsync`, but see the module's first lines."""
        handle = self._handle(fh)
        if handle.mode.write and not handle.file.untouched:
            self.upload(handle.file)

    def fsync(self, fh: int) -> None:
        """Return when the client has what was written, or raise why it has not."""
        self.upload(self._handle(fh).file)

    def release(self, fh: int) -> None:
        """The last descriptor of the handle is gone. Never raises for the client's faults."""
        self._handle(fh)
        with self._lock:
            file = self._handles.pop(fh).file
        if not self._let_go(file, unless_dirty=True):
            # Created and never written; or pages of a mapping, written after close(2).
            try:
                self.upload(file)
            except FsError as exc:
                log.debug("%s", exc)
            self._let_go(file)

    def upload(self, file: OpenFile) -> None:
        """Bring the newest version to the client. Raises what keeps it from that."""
        if file.dirty and not file.closed:
            self._uploader.upload(file, after=self._after_upload)
            # Saved after all: an earlier failure is of no more concern.
            self.failed = [item for item in self.failed if item["path"] != file.path]

    @contextlib.contextmanager
    def kept_open(self, path: str) -> Iterator[OpenFile | None]:
        """The open file at ``path``, if there is one; it stays open within the block."""
        with self._lock:
            file = self._files.get(path)
            number = self._register(file, OpenMode()) if file is not None else None
        try:
            yield file
        finally:
            if number is not None:
                self.release(number)

    def _register(self, file: OpenFile, mode: OpenMode) -> int:
        file.handles += 1
        number = next(self._numbers)
        self._handles[number] = _Handle(file, mode)
        return number

    def _let_go(self, file: OpenFile, *, unless_dirty: bool = False) -> bool:
        """One handle less; the last one closes the file.

        ``unless_dirty``: if it is the last one and there is something to upload, do nothing
        and return false.
        """
        with self._lock:
            if file.handles == 1 and unless_dirty and file.dirty and file.error is None:
                return False
            file.handles -= 1
            if file.handles:
                return True
            file.closed = True
            if self._files.get(file.path) is file:
                del self._files[file.path]
        self._close(file)
        return True

    def _close(self, file: OpenFile) -> None:
        if file.dirty and file.spool is not None:
            file.spool.annotate(state="failed", error=str(file.error or "not uploaded"), size=file.size)
            self.failed.append(file.spool.describe())
        file.close()
        if file.gone_path is not None:
            self._uploader.discard(file.gone_path)

    # --- names that change ----------------------------------------------

    def detach(self, file: OpenFile) -> None:
        """``file`` lost its name; its handles stay."""
        with self._lock:
            file.unlinked = True
            if self._files.get(file.path) is file:
                del self._files[file.path]

    def renamed(self, src: str, dst: str) -> None:
        """``src`` is now ``dst``, with all below it."""
        with self._lock:
            for file in self.below(src):
                del self._files[file.path]
                file.path = names.moved(file.path, src, dst)
                self._files[file.path] = file

    def close(self) -> None:
        """Close all; what is dirty stays in the spool."""
        with self._lock:
            files = list(dict.fromkeys(h.file for h in self._handles.values()))
            self._handles.clear()
            self._files.clear()
        for file in files:
            file.close()


def _same_version(file: OpenFile, entry: Entry | None) -> bool:
    known = file.entry
    if known is None or entry is None:
        return False
    if known.etag is None and known.size == entry.size:
        file.entry = entry  # uploaded from here, and now looked at
        return True
    return known.etag == entry.etag and known.size == entry.size
