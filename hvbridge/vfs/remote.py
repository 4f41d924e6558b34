"""What the filesystem asks of the sharing side: the seam between ``vfs/`` and ``webdav/``.

Paths are absolute within the share, ``/`` separated, without a trailing slash
(``/`` is the share itself); names are ``str`` and valid UTF-8. Every method may
raise any :class:`~hvbridge.errors.FsError`; of these :class:`Offline`,
:class:`TimedOut` and :class:`ConnectionLost` say that the answer is unknown.
All methods block, honour :mod:`hvbridge.deadline`, and may be called from many
threads at once.

:class:`hvbridge.vfs.memory.MemoryRemote` is the fake; both pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder as a listing tells it."""

    name: str
    """Last component; ``""`` for the share itself."""

    is_dir: bool
    size: int | None = None
    """Bytes of a file, if the server tells."""

    mtime_ns: int | None = None
    """Modification time, ns since 1970 UTC."""

    etag: str | None = None
    """Opaque validator with its quotes; ``None`` if the server has none.
    Changes whenever the content does."""

    executable: bool | None = None
    """mod_dav's ``executable`` property, if the server tells."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One folder, complete."""

    folder: Entry
    entries: tuple[Entry, ...]
    dropped: int = 0
    """Members that cannot be shown (names with ``/`` or NUL, ``..``, not UTF-8, outside the folder)."""


@dataclass(frozen=True, slots=True)
class Quota:
    """RFC 4331; bytes, ``None`` where the server does not tell."""

    available: int | None = None
    used: int | None = None


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of the server, as far as it was learnt."""

    server: str = ""
    """Its ``Server`` header."""

    ranges: bool | None = None
    """Whether a ranged GET is cheap whatever the file's size: ``None`` while unknown."""

    keeps_mode: bool = True
    """Whether PUT on an existing name keeps that file's mode."""


class Download(Protocol):
    """An answer to GET under way. Iterate once; close always (closing early cancels)."""

    @property
    def etag(self) -> str | None:
        """Validator of what is being sent."""
        ...

    @property
    def size(self) -> int | None:
        """Size of the whole file, if told."""
        ...

    @property
    def start(self) -> int:
        """Offset of the first byte that comes: 0 where the server ignored the range."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """The bytes, in pieces of any size.

        Raises :class:`ConnectionLost` or :class:`IOFailed` if fewer come than the
        answer promised, :class:`TimedOut` on silence.
        """
        ...

    def close(self) -> None:
        """Idempotent, never raises."""
        ...


class Remote(Protocol):
    """The share."""

    @property
    def traits(self) -> Traits:
        """What is known of the server now; no request."""
        ...

    def stat(self, path: str) -> Entry:
        """PROPFIND Depth 0. Raises :class:`NotFound`."""
        ...

    def list(self, path: str) -> Listing:
        """PROPFIND Depth 1. Raises :class:`NotFound`, :class:`NotDirectory`, :class:`TooLarge`."""
        ...

    def get(self, path: str, start: int = 0, end: int | None = None) -> Download:
        """Begin to read; ``start``/``end`` (exclusive) ask for a part with one Range.

        With ``start=0, end=None`` no Range is sent. Returns when the answer's
        head is there. Raises :class:`IsDirectory` for a folder.
        """
        ...

    def put(self, path: str, body: bytes | Iterable[bytes], size: int) -> str | None:
        """Create or replace a file with exactly ``size`` bytes; the new ETag if the server tells.

        A body shorter or longer than ``size`` is our bug and aborts the request.
        No ``Expect``, no ``Content-Range``: phodav damages files on both.
        Not atomic beyond what :meth:`atomic_put` says.
        """
        ...

    def atomic_put(self, path: str) -> int:
        """Body bytes up to which a cut connection leaves the old file or the new one, never a part.

        Depends on ``path``, since head and body count together. 0 where nothing
        is known of the server yet; no request.
        """
        ...

    def mkdir(self, path: str) -> None:
        """MKCOL. Raises :class:`Exists`; :class:`NotFound` without a parent."""
        ...

    def delete(self, path: str) -> None:
        """DELETE: a folder goes with all that is in it."""
        ...

    def move(self, src: str, dst: str, *, overwrite: bool) -> None:
        """MOVE; with ``overwrite`` whatever stands at ``dst`` is destroyed, folders included.

        Without, raises :class:`Exists` if something stands there.
        """
        ...

    def copy(self, src: str, dst: str, *, overwrite: bool) -> None:
        """COPY of one file on the server, with its mode."""
        ...

    def set_executable(self, path: str, on: bool) -> bool:
        """Set the exec bit; false where the server does not do that (known after the first try)."""
        ...

    def set_mtime(self, path: str, mtime_ns: int) -> bool:
        """Set the modification time; false where the server does not do that."""
        ...

    def quota(self) -> Quota:
        """Free and used bytes."""
        ...
