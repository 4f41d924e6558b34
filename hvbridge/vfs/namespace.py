"""Names: mkdir, rmdir, unlink, rename, by POSIX's rules.

The server's own rules are dangerous: a MOVE destroys whatever stands in its way,
a DELETE recurses. So what would be refused by POSIX is refused here, by a listing
of just now, before anything is sent.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from hvbridge.config import MIB
from hvbridge.errors import (
    Changed,
    Exists,
    FsError,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
)
from hvbridge.vfs import names
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.files import Files
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.overlay import Overlay
from hvbridge.vfs.remote import Entry, Remote
from hvbridge.vfs.tree import Tree

log = logging.getLogger(__name__)

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
        self._overlay.removed(path, folder=True)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder. Raises :class:`NotEmpty`, :class:`NotDirectory`."""
        if path == "/":
            raise InvalidArgument("the share itself cannot be removed", path)
        if self._files.at(path) is not None or not self._tree.lookup(path).is_dir:
            raise NotDirectory("is not a folder", path)
        self._require_empty(path)
        self._delete(path)
        self._overlay.removed(path, folder=True)

    def unlink(self, path: str) -> None:
        """Delete a file; who has it open goes on reading it. Raises :class:`IsDirectory`."""
        with self._files.kept_open(path) as file:
            if file is not None:
                self._unlink_open(file)
                return
        if self._tree.newest(path).is_dir:
            raise IsDirectory("is a folder", path)
        self._delete(path)

    def _unlink_open(self, file: OpenFile) -> None:
        with file.uploading:
            path = file.path
            if file.entry is not None:  # else it never got to the client
                self._keep_readable(file)
                if file.gone_path is None:
                    with contextlib.suppress(NotFound):
                        self._remote.delete(path)
            self._files.detach(file)
        self._tree.note(path, None)
        self._overlay.removed(path)

    def rename(self, src: str, dst: str) -> None:
        """rename(2), also over an existing file or an empty folder."""
        if src == dst:
            return
        if names.is_below(dst, src):
            raise InvalidArgument("cannot move a folder into itself", dst)
        if names.is_below(src, dst):
            raise NotEmpty("the folder that it is in is in the way", dst)
        with self._files.kept_open(src) as moving:
            if moving is not None:
                self._files.upload(moving)
        entry = self._tree.lookup(src, confirmed=False)
        with self._files.kept_open(dst) as standing:
            with _no_uploads([*self._files.below(src), *([standing] if standing is not None else [])]):
                self._replace(src, dst, entry, standing)
        self._cache.moved(src, dst)
        self._overlay.moved(src, dst)
        self._tree.note_moved(src, dst, entry)

    def _replace(self, src: str, dst: str, entry: Entry, standing: OpenFile | None) -> None:
        try:
            self._move(src, dst, self._clear_way(entry, dst, standing), standing)
        except BaseException:
            if standing is not None and standing.gone_path is not None:
                self._put_back(standing)
            raise
        if standing is not None:
            self._files.detach(standing)
        self._files.renamed(src, dst)

    # --- rules ----------------------------------------------------------

    def _require_empty(self, path: str) -> None:
        if self._files.unsent_in(path) or not self._tree.is_empty(path):
            raise NotEmpty("the folder is not empty", path)

    def _move(self, src: str, dst: str, overwrite: bool, standing: OpenFile | None) -> None:
        try:
            self._remote.move(src, dst, overwrite=overwrite)
        except Exists:
            # Something came to stand there since we looked: look again, by the rules.
            self._tree.forget(names.split(dst)[0])
            overwrite = self._clear_way(self._tree.lookup(src), dst, standing)
            self._remote.move(src, dst, overwrite=overwrite)

    def _clear_way(self, entry: Entry, dst: str, standing: OpenFile | None) -> bool:
        """What POSIX says of that which stands at ``dst``; true if something does and may go.

        ``standing``: the open file there, if there is one.
        """
        try:
            self._tree.lookup(dst, confirmed=False)
            target = self._tree.newest(dst)
        except NotFound:
            if standing is not None and entry.is_dir:  # which never got to the client
                raise NotDirectory("a file is in the way", dst) from None
            return False
        if target.is_dir and not entry.is_dir:
            raise IsDirectory("a folder is in the way", dst)
        if not target.is_dir and entry.is_dir:
            raise NotDirectory("a file is in the way", dst)
        if target.is_dir:
            self._require_empty(dst)
        elif standing is not None and standing.entry is not None and standing.gone_path is None:
            self._keep_readable(standing)
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
        """What an open file still needs of the client is fetched, or set aside there.

        At the top of the share, where no folder can be moved or removed over it.
        """
        try:
            if file.is_local:
                return
            if file.missing <= FETCH_BEFORE_DELETE:
                for at in range(0, file.size, MIB):
                    file.read(at, MIB)
                return
        except (NotFound, Changed) as exc:
            log.info("what its readers had open is lost already: %s", exc)
            return
        gone = names.temporary("/", "gone")
        self._remote.move(file.path, gone, overwrite=False)
        file.set_aside(gone)

    def _put_back(self, file: OpenFile) -> None:
        """It was set aside for something that then could not take its place."""
        assert file.gone_path is not None
        try:
            self._remote.move(file.gone_path, file.path, overwrite=False)
            file.put_back()
        except FsError as exc:
            log.error("%r is on the client as %r now, rename it there: %s", file.path, file.gone_path, exc)
            file.gone_path = None  # never removed by us


@contextlib.contextmanager
def _no_uploads(files: list[OpenFile]) -> Iterator[None]:
    """No upload of these begins; those under way end first. One order for all, against deadlocks."""
    with contextlib.ExitStack() as stack:
        for file in sorted(set(files), key=id):
            stack.enter_context(file.uploading)
        yield
