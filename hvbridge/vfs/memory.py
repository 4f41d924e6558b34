"""A share in memory: the fake that the filesystem's tests run on.

It behaves as phodav does where that matters: MOVE destroys what stands in its
way, DELETE recurses, PUT tells no ETag, a PUT that is cut leaves what had come.
``before`` is called with each request's name and path and may raise or block;
``after`` likewise once a change took effect, so that its answer can get lost.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hvbridge.errors import ConnectionLost, Exists, FsError, IsDirectory, NotDirectory, NotFound
from hvbridge.vfs import names
from hvbridge.vfs.remote import Entry, Listing, Quota, Traits


@dataclass(slots=True)
class _Node:
    data: bytes | None
    """``None``: a folder."""
    etag: str
    mtime_ns: int
    executable: bool = False
    members: dict[str, _Node] = field(default_factory=dict)


class _MemoryDownload:
    def __init__(self, data: bytes, node: _Node, start: int, on_piece: Callable[[int], None]) -> None:
        self.etag: str | None = node.etag
        self.size: int | None = len(node.data or b"")
        self.start = start
        self._data, self._on_piece = data, on_piece
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self._data), 64 << 10):
            if self.closed:
                raise ConnectionLost("closed")
            self._on_piece(at)
            yield self._data[at : at + (64 << 10)]

    def close(self) -> None:
        self.closed = True


class MemoryRemote:
    """Implements :class:`hvbridge.vfs.remote.Remote`; ``requests`` counts by method."""

    def __init__(self, *, ranges: bool | None = None, atomic: int = 4096) -> None:
        self.traits = Traits(server="memory", ranges=ranges)
        self.requests: Counter[str] = Counter()
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        self.on_piece: Callable[[int], None] = lambda at: None
        """Called for each piece of a body, down or up, with its offset; may raise."""
        self.atomic = atomic
        self._lock = threading.RLock()
        self._etags = itertools.count(1)
        self._root = self._node(None)

    def _node(self, data: bytes | None) -> _Node:
        return _Node(data, f'"{next(self._etags)}"', time.time_ns())

    # --- for tests: what the client's user does ---------------------------

    def tree(self) -> dict[str, bytes | None]:
        """Everything on the share: path → content, ``None`` for folders."""
        found: dict[str, bytes | None] = {}

        def walk(path: str, node: _Node) -> None:
            for name, member in node.members.items():
                below = names.join(path, name)
                found[below] = member.data
                walk(below, member)

        with self._lock:
            walk("/", self._root)
        return found

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file behind the mount's back."""
        with self._lock:
            folder, name = self._parent(path)
            folder.members[name] = self._node(data)

    # --- Remote -----------------------------------------------------------

    def stat(self, path: str) -> Entry:
        """See :class:`Remote`."""
        self._begin("stat", path)
        with self._lock:
            return _entry(names.split(path)[1], self._find(path))

    def list(self, path: str) -> Listing:
        """See :class:`Remote`."""
        self._begin("list", path)
        with self._lock:
            node = self._find(path)
            if node.data is not None:
                raise NotDirectory("is a file", path)
            shown = {n: m for n, m in node.members.items() if not names.is_hidden(n)}
            return Listing(_entry(names.split(path)[1], node), tuple(_entry(n, m) for n, m in shown.items()))

    def get(self, path: str, start: int = 0, end: int | None = None) -> _MemoryDownload:
        """See :class:`Remote`."""
        self._begin("get", path)
        with self._lock:
            node = self._find(path)
            if node.data is None:
                raise IsDirectory("is a folder", path)
            return _MemoryDownload(node.data[start:end], node, start, self.on_piece)

    def put(self, path: str, body: bytes | Iterable[bytes], size: int) -> str | None:
        """See :class:`Remote`. A body that is cut leaves what came before, as phodav does."""
        self._begin("put", path)
        received = bytearray()
        try:
            for piece in [body] if isinstance(body, bytes) else body:
                self.on_piece(len(received))
                received += piece
            if len(received) != size:
                raise ConnectionLost("the body's size is not what was announced")
        except FsError:
            if size > self.atomic:
                self._commit(path, bytes(received))
            raise
        self._commit(path, bytes(received))
        self.after("put", path)
        return None

    def _commit(self, path: str, data: bytes) -> None:
        with self._lock:
            folder, name = self._parent(path)
            standing = folder.members.get(name)
            node = folder.members[name] = self._node(data)
            node.executable = standing is not None and standing.executable

    def atomic_put(self, path: str) -> int:
        """See :class:`Remote`."""
        return self.atomic

    def mkdir(self, path: str) -> None:
        """See :class:`Remote`."""
        self._begin("mkdir", path)
        with self._lock:
            folder, name = self._parent(path)
            if name in folder.members:
                raise Exists("exists", path)
            folder.members[name] = self._node(None)
        self.after("mkdir", path)

    def delete(self, path: str) -> None:
        """See :class:`Remote`."""
        self._begin("delete", path)
        with self._lock:
            self._find(path)
            folder, name = self._parent(path)
            del folder.members[name]
        self.after("delete", path)

    def move(self, src: str, dst: str, *, overwrite: bool) -> None:
        """See :class:`Remote`."""
        self._begin("move", src)
        with self._lock:
            node = self._find(src)
            folder, name = self._parent(dst)
            if name in folder.members and not overwrite:
                raise Exists("exists", dst)
            source, source_name = self._parent(src)
            del source.members[source_name]
            folder.members[name] = node
        self.after("move", src)

    def copy(self, src: str, dst: str, *, overwrite: bool) -> None:
        """See :class:`Remote`."""
        self._begin("copy", src)
        with self._lock:
            node = self._find(src)
            folder, name = self._parent(dst)
            if name in folder.members and not overwrite:
                raise Exists("exists", dst)
            folder.members[name] = self._node(node.data)
            folder.members[name].executable = node.executable
        self.after("copy", src)

    def set_executable(self, path: str, on: bool) -> bool:
        """See :class:`Remote`."""
        self._begin("proppatch", path)
        with self._lock:
            self._find(path).executable = on
        return True

    def set_mtime(self, path: str, mtime_ns: int) -> bool:
        """See :class:`Remote`. As phodav: not kept."""
        self._begin("proppatch", path)
        return False

    def quota(self) -> Quota:
        """See :class:`Remote`."""
        self._begin("quota", "/")
        return Quota(available=10**9, used=10**6)

    def _begin(self, method: str, path: str) -> None:
        self.requests[method] += 1
        self.before(method, path)

    def _find(self, path: str) -> _Node:
        node = self._root
        for name in path.split("/")[1:] if path != "/" else []:
            if node.data is not None or name not in node.members:
                raise NotFound("not found", path)
            node = node.members[name]
        return node

    def _parent(self, path: str) -> tuple[_Node, str]:
        folder, name = names.split(path)
        node = self._find(folder)
        if node.data is not None:
            raise NotFound("not a folder", folder)
        return node, name


def _entry(name: str, node: _Node) -> Entry:
    size = None if node.data is None else len(node.data)
    return Entry(name, node.data is None, size, node.mtime_ns, node.etag, node.executable)
