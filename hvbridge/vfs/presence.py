"""Who is there: whether a client is connected, and whether it is the one from before.

A client that comes back finds its mount; another share is another mount. SPICE
has no name for a share, so it is known by its members: the folder at the top has
the same ones (name, kind, ETag), or at least half of them; what was changed from
here does not count, since an answer that got lost leaves it open. An upload that began
for one share is never finished on another.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Protocol

from hvbridge import pin
from hvbridge.errors import Changed, IOFailed, SessionChanged
from hvbridge.vfs.remote import Listing, Remote

log = logging.getLogger(__name__)

TOUCHED = 100_000
"""Names changed from here that are remembered; beyond, a share with as many may count as another."""


SESSIONS_IN_A_ROW = 5
"""Clients that may come and go while one is being looked at."""


class Connection(Protocol):
    """What the filesystem needs to know of the channel."""

    @property
    def sessions(self) -> int:
        """How many clients have come so far; 0 before the first."""
        ...


class AlwaysThere:
    """A server that is not behind a channel (``http://``)."""

    sessions = 1


@dataclass(frozen=True, slots=True)
class Share:
    """One share, as far as it can be told from another; compared by identity."""

    number: int


Members = frozenset[tuple[str, bool, str | None]]


def members(listing: Listing) -> Members:
    """What identifies a share: the members of its top folder."""
    # Folders by their ETag, too: every second share has a "Documents".
    return frozenset((e.name, e.is_dir, e.etag) for e in listing.entries)


def alike(before: Members, now: Members, touched: Set[str] = frozenset()) -> bool:
    """Whether two listings of a top folder are the same share's.

    ``touched``: names that were changed from here in between, which tell nothing.
    """
    before, now = (frozenset(m for m in found if m[0] not in touched) for found in (before, now))
    if not before or not now:
        return before == now
    return len(before & now) * 2 >= min(len(before), len(now))


class Presence:
    """Tells shares apart. ``on_session`` is called when a client has come (back) and was looked
    at, ``on_other`` before it if that is another share."""

    def __init__(
        self,
        remote: Remote,
        connection: Connection,
        on_other: Callable[[], None],
        on_session: Callable[[], None] = lambda: None,
    ) -> None:
        self._remote, self._connection = remote, connection
        self._on_other, self._on_session = on_other, on_session
        self._lock = threading.Lock()
        self._session = 0
        self._share = Share(0)
        self._members: Members | None = None
        self._touched: set[str] = set()

    @property
    def came(self) -> bool:
        """False until the first client has come."""
        return self._connection.sessions > 0

    @property
    def known(self) -> bool:
        """True if the client that is connected now has been looked at."""
        return self._session == self._connection.sessions

    def current(self) -> Share:
        """The share that is connected now; asks the client once a session.

        Raises what :meth:`Remote.list` raises.
        """
        return self._look()[0]

    def _look(self) -> tuple[Share, int]:
        """The share that is connected now, and the session that it was seen in."""
        for _ in range(SESSIONS_IN_A_ROW):
            session = self._connection.sessions
            with self._lock:
                if session == self._session and self._members is not None:
                    return self._share, session
            try:
                with pin.to(session):
                    listing = self._remote.list("/")
            except SessionChanged:
                continue
            with self._lock:
                is_new = self._settle(session, members(listing))
                share = self._share
            if is_new:
                self._on_session()
            return share, session
        raise IOFailed("clients come and go too fast")

    @contextlib.contextmanager
    def pinned(self, share: object) -> Iterator[None]:
        """A scope whose requests go to ``share`` (``None``: whichever is there) and to no other.

        They raise :class:`SessionChanged`, unsent, once its client has left and another
        came: look again then. Raises :class:`Changed` if another share is there.
        """
        found, session = self._look()
        if share is not None and found is not share:
            raise Changed("another share is connected now")
        with pin.to(session):
            yield

    def _settle(self, session: int, now: Members) -> bool:
        """Take note of who is there; false if another thread has done so."""
        if session == self._session and self._members is not None:
            return False
        before, self._members, self._session = self._members, now, session
        if before is None or alike(before, now, self._touched):
            return True
        self._touched.clear()
        log.warning("another share is connected; what was cached of the last one is dropped")
        self._share = Share(self._share.number + 1)
        self._on_other()
        return True

    def touch(self, path: str) -> None:
        """``path`` is about to be changed from here; whether that succeeds may never be known."""
        top = path.lstrip("/").partition("/")[0]  # a folder's ETag moves with its members
        with self._lock:
            if len(self._touched) >= TOUCHED:
                self._touched.clear()
            self._touched.add(top)

    def update(self, listing: Listing) -> None:
        """The top folder was listed again."""
        with self._lock:
            if self._session == self._connection.sessions:
                self._members = members(listing)
