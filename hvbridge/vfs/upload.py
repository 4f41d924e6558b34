"""Uploads: whole, or not at all.

phodav commits whatever it has when a connection dies in the middle of a PUT. So:

- a body that the server is known to take as a whole (:meth:`Remote.atomic_put`)
  is PUT in place, in one round trip, and the file keeps its mode;
- anything larger is PUT under a hidden name and moved over the target. Where the
  target exists, it is first copied to the hidden name on the client, because a
  PUT keeps the mode of what it replaces.

A connection that goes is waited for (the remote waits the grace period) and the
upload begins again, if the same share came back. Hidden names that were left are
remembered and removed once there is a connection.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from hvbridge import deadline
from hvbridge.config import Limits
from hvbridge.errors import ConnectionLost, FsError, NotFound, Offline, TimedOut
from hvbridge.vfs import names
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.presence import Presence
from hvbridge.vfs.remote import Entry, Remote
from hvbridge.vfs.tree import Tree

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times an upload begins anew after its connection went, or its file changed."""

PARALLEL = 4
"""Uploads of content at once; more only share the same line."""


class _Torn(Exception):
    """The file was written to while it was being sent."""


class Uploader:
    """Brings open files' newest versions to the client."""

    def __init__(self, remote: Remote, tree: Tree, presence: Presence, limits: Limits) -> None:
        self._remote, self._tree, self._presence, self._limits = remote, tree, presence, limits
        self._places = threading.BoundedSemaphore(PARALLEL)
        self._lock = threading.Lock()
        self._litter: set[str] = set()

    def upload(self, file: OpenFile, *, after: Callable[[OpenFile], None] = lambda file: None) -> None:
        """Return when the client has the version that ``file`` has now, or a newer one.

        ``after`` is called when an upload was made, before others see it as clean.
        Raises the error that kept it from being sent; the file stays dirty then.
        """
        wanted = file.version
        with file.uploading:
            if not file.dirty or file.clean_version >= wanted:
                return
            with self._places, deadline.within(None):
                self._annotate(file, state="uploading", size=file.size, path=file.path, error=None)
                try:
                    self._attempts(file)
                except FsError as exc:
                    file.error = exc
                    log.error("upload failed, its content is kept in the spool: %s", exc)
                    self._annotate(file, state="failed", error=str(exc), size=file.size, path=file.path)
                    if file.spool is not None:
                        file.spool.sync()
                    raise
                file.error = None
                self._annotate(file, state="writing")
                self._afterwards(file, after)

    def _afterwards(self, file: OpenFile, after: Callable[[OpenFile], None]) -> None:
        """Times and modes follow the content, to the same client; without them it is whole, too."""
        try:
            with self._presence.pinned(file.share):
                after(file)
        except FsError as exc:
            log.info("%s", exc)

    @staticmethod
    def _annotate(file: OpenFile, **changes: object) -> None:
        if file.spool is not None:
            file.spool.annotate(**changes)

    def _attempts(self, file: OpenFile) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._presence.pinned(file.share):
                    file.fill()
                    self._once(file)
                return
            except ConnectionLost as exc:
                if attempt == ATTEMPTS:
                    raise
                log.warning("upload begins anew: %s", exc)
            except _Torn:
                if attempt == ATTEMPTS:
                    # Writers wait this time: somebody rewrites it faster than it can be sent.
                    with file.lock, self._presence.pinned(file.share):
                        self._once(file)
                    return

    def _once(self, file: OpenFile) -> None:
        with file.lock:
            version, size, path = file.version, file.size, file.path
            whole = size <= self._remote.atomic_put(path)
            body = b"".join(file.body(size)) if whole and size <= self._limits.small_file else None
        with deadline.within(self._limits.transfer(size)):
            if body is not None:
                etag = self._remote.put(path, body, size)
            elif whole:
                etag = self._send(file, path, size, version)
            else:
                etag = self._beside_and_over(file, path, size, version)
        self._done(file, path, size, version, etag)

    def _beside_and_over(self, file: OpenFile, path: str, size: int, version: int) -> str | None:
        part = names.temporary(names.split(path)[0], "part")
        try:
            if file.entry is not None and self._remote.traits.keeps_mode:
                self._copy_mode(path, part)
            etag = self._send(file, part, size, version)
            self._move_over(part, path, size)
        except (ConnectionLost, Offline):
            with self._lock:
                self._litter.add(part)  # removed when there is a connection again
            raise
        except (FsError, _Torn):
            self.discard(part)
            raise
        return etag

    def _copy_mode(self, path: str, part: str) -> None:
        try:
            self._remote.copy(path, part, overwrite=True)
        except NotFound:
            log.info("%r went away on the client while it was edited here", path)

    def _send(self, file: OpenFile, path: str, size: int, version: int) -> str | None:
        try:
            etag = self._remote.put(path, file.body(size), size)
        except (FsError, ValueError):  # ValueError: it became shorter than was announced
            if file.version != version:
                raise _Torn from None
            raise
        if file.version != version:
            raise _Torn
        return etag

    def _move_over(self, part: str, path: str, size: int) -> None:
        """MOVE, and if the connection goes just then, look whether it happened."""
        try:
            self._remote.move(part, path, overwrite=True)
        except ConnectionLost:
            try:
                self._remote.stat(part)
            except NotFound:
                if self._size_of(path) == size:
                    return
            raise

    def _size_of(self, path: str) -> int | None:
        with contextlib.suppress(NotFound):
            return self._remote.stat(path).size
        return None

    def _done(self, file: OpenFile, path: str, size: int, version: int, etag: str | None) -> None:
        name = names.split(path)[1]
        with file.lock:
            # The server's own time and ETag are asked for when somebody looks.
            entry = Entry(name, is_dir=False, size=size, mtime_ns=file.mtime_ns, etag=None)
            file.entry = entry
            file.clean_version = version
        self._tree.note(path, entry, confirmed=False)
        log.debug("uploaded %r, %d bytes%s", path, size, f", {etag}" if etag else "")

    def discard(self, path: str) -> None:
        """Remove a hidden file of ours from the client, now or when it is there again."""
        with self._lock:
            self._litter.add(path)
        self.sweep()

    def sweep(self) -> None:
        """Remove hidden files that failed uploads left on the client; best effort.

        Waits for the client once at most, however many there are.
        """
        with self._lock:
            litter, self._litter = self._litter, set()
        while litter:
            part = litter.pop()
            try:
                self._remote.delete(part)
            except NotFound:
                continue
            except FsError as exc:
                log.debug("left on the client for now: %s", exc)
                with self._lock:
                    self._litter.add(part)
                    if isinstance(exc, Offline | TimedOut | ConnectionLost):
                        self._litter |= litter
                        return
