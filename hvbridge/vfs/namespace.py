"""Names: mkdir, rmdir, unlink, rename, by POSIX's rules.

The server's own rules are dangerous: a MOVE destroys whatever stands in its way,
a DELETE recurses. So what would be refused by POSIX is refused here, by a listing
of just now, before anything is sent.
"""

from __future__ import annotations

import time

from hvbridge.config import MIB
from hvbridge.errors import Exists, InvalidArgument, IsDirectory, NotDirectory, NotEmpty, NotFound
from hvbridge.vfs import names
from hvbridge.vfs.content import ContentCache
from hvbridge.vfs.files import Files
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.overlay import Overlay
from hvbridge.vfs.remote import Entry, Remote
from hvbridge.vfs.tree import Tree

FETCH_BEFORE_DELETE = 8 * MIB
"""An open file that is deleted is fetched first if it lacks no more than this;
else the client keeps it under a hidden name until it is closed."""


class Namespace:
    """Changes of names on a share, and of everything here that knows them."""

    def __init__(
        self, *, remote: Remote, tree: Tree, files: Files, cache: ContentCache, overlay: Overlay
    ) -> None:
        self._remote, self._tree, self._files, self._cache = remote, tree, files, cache
        self._overlay = overlay

    def mkdir(self, path: str) -> None:
        """Make a folder. Raises :class:`Exists`."""
        self._remote.mkdir(path)
        entry = Entry(names.split(path)[1], is_dir=True, mtime_ns=time.time_ns())
        self._tree.note_new_folder(path, entry)
        self._overlay.removed(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder. Raises :class:`NotEmpty`, :class:`NotDirectory`."""
        if path == "/":
            raise InvalidArgument("the share itself cannot be removed", path)
        if not self._tree.lookup(path).is_dir:
            raise NotDirectory("is not a folder", path)
        self._require_empty(path)
        self._delete(path)

    def unlink(self, path: str) -> None:
        """Delete a file; who has it open goes on reading it. Raises :class:`IsDirectory`."""
        file = self._files.at(path)
        if file is not None:
            with file.uploading:
                on_client = file.entry is not None
                if on_client:
                    self._keep_readable(file)
                self._files.detach(file)
            if not on_client or file.gone_path is not None:
                self._tree.note(path, None)
                self._overlay.removed(path)
                return
        elif self._tree.lookup(path, confirmed=False).is_dir:
            raise IsDirectory("is a folder", path)
        self._delete(path)

    def rename(self, src: str, dst: str) -> None:
        """rename(2), also over an existing file or an empty folder."""
        if src == dst:
            return
        if names.is_below(dst, src):
            raise InvalidArgument("cannot move a folder into itself", dst)
        if (moving := self._files.at(src)) is not None:
            self._files.upload(moving)
        entry = self._tree.lookup(src, confirmed=False)
        overwrite = self._clear_way(entry, dst)
        moved = self._files.below(src)
        for file in moved:
            file.uploading.acquire()
        try:
            self._move(src, dst, overwrite)
            self._files.renamed(src, dst)
        finally:
            for file in moved:
                file.uploading.release()
        self._cache.moved(src, dst)
        self._overlay.moved(src, dst)
        self._tree.note_moved(src, dst, entry)

    # --- rules ----------------------------------------------------------

    def _require_empty(self, path: str) -> None:
        if self._files.unsent_in(path) or self._tree.list(path, newest=True):
            raise NotEmpty("the folder is not empty", path)

    def _move(self, src: str, dst: str, overwrite: bool) -> None:
        try:
            self._remote.move(src, dst, overwrite=overwrite)
        except Exists:
            # Something came to stand there since we looked: look again, by the rules.
            self._tree.forget(names.split(dst)[0])
            overwrite = self._clear_way(self._tree.lookup(src), dst)
            self._remote.move(src, dst, overwrite=overwrite)

    def _clear_way(self, entry: Entry, dst: str) -> bool:
        """What POSIX says of that which stands at ``dst``; true if something does and may go."""
        standing = self._files.at(dst)
        if standing is not None and standing.entry is None:
            self._files.detach(standing)  # never got to the client
            standing = None
        try:
            target = self._tree.lookup(dst, confirmed=False)
        except NotFound:
            return False
        if target.is_dir and not entry.is_dir:
            raise IsDirectory("a folder is in the way", dst)
        if not target.is_dir and entry.is_dir:
            raise NotDirectory("a file is in the way", dst)
        if target.is_dir:
            self._require_empty(dst)
        elif standing is not None:
            with standing.uploading:
                self._keep_readable(standing)
                self._files.detach(standing)
            return standing.gone_path is None
        return True

    # --- deleting -------------------------------------------------------

    def _delete(self, path: str) -> None:
        try:
            self._remote.delete(path)
        except NotFound:
            self._tree.note(path, None)
            raise
        self._tree.note(path, None)
        self._overlay.removed(path)

    def _keep_readable(self, file: OpenFile) -> None:
        """What an open file still needs of the client is fetched, or set aside there."""
        if file.is_local:
            return
        if file.missing <= FETCH_BEFORE_DELETE:
            for at in range(0, file.size, MIB):
                file.read(at, MIB)
            return
        gone = names.temporary(names.split(file.path)[0], "gone")
        self._remote.move(file.path, gone, overwrite=False)
        file.set_aside(gone)
