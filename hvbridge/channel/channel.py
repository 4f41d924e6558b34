"""A channel that comes and goes: opens transports one after the other, runs a session on each."""

from __future__ import annotations

import enum
import itertools
import logging
import threading
from collections.abc import Callable

from hvbridge.channel.base import Opener
from hvbridge.channel.session import Session, spawn
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout
from hvbridge.spice.mux import Role

log = logging.getLogger(__name__)

BACKOFF = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts to open; the last one repeats."""


class State(enum.Enum):
    """Where a channel is in its life."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSED = "closed"


class Channel:
    """Supervises one channel URL.

    Threads: one supervisor, which is also the reading thread of the session.
    ``on_state`` is called from it (and from :meth:`close`) at each change.
    """

    def __init__(
        self, opener: Opener, role: Role, *, on_state: Callable[[State], None] | None = None
    ) -> None:
        self.opener = opener
        self.role = role
        self.last_error: str | None = None
        self.sessions = 0
        """How many sessions there have been: its change means that the client is a new one."""
        self._on_state = on_state or (lambda state: None)
        self._ids = itertools.count(1)
        self._session: Session | None = None
        self._state = State.WAITING
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> State:
        """Waiting for a peer, open, or closed for good."""
        return self._state

    @property
    def current(self) -> Session | None:
        """The open session, if there is one now."""
        return self._session

    def start(self) -> None:
        """Begin to open; returns at once."""
        self._thread = spawn("hvbridge-channel", self._supervise)

    def close(self) -> None:
        """End the session and stop opening new ones; waits for the thread a moment."""
        self._stop.set()
        self.opener.close()
        if (session := self._session) is not None:
            session.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)
        self._become(State.CLOSED, None)

    def session(self, timeout: float) -> Session:
        """The open session, waiting up to ``timeout`` seconds for one.

        Raises :class:`ChannelTimeout`, or :class:`ChannelClosed` after :meth:`close`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._live() or self._state is State.CLOSED, timeout)
            if (session := self._live()) is not None:
                return session
            if self._state is State.CLOSED:
                raise ChannelClosed(f"{self.opener.url} is closed")
            raise ChannelTimeout(f"no client on {self.opener.url}")

    def _live(self) -> Session | None:
        """The session, unless it is over and its end is just not dealt with yet."""
        session = self._session
        return None if session is None or session.over else session

    def wait_state(self, wanted: State, timeout: float) -> bool:
        """Wait until the channel is in ``wanted``; false if it was not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state is wanted, timeout)

    def _supervise(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                transport = self.opener.open()
            except ChannelError as exc:
                if self._stop.is_set():
                    break
                if str(exc) != self.last_error:
                    log.warning("%s: %s", self.opener.url, exc)
                self.last_error = str(exc)
                self._stop.wait(BACKOFF[min(failures, len(BACKOFF) - 1)])
                failures += 1
                continue
            failures = 0
            self.last_error = None
            session = Session(transport, self.role, ids=self._ids)
            self.sessions += 1
            session.number = self.sessions
            log.info("port open: %s", transport.description)
            self._become(State.OPEN, session)
            if self._stop.is_set():
                session.close()  # close() came before it could see this session
            session.run()
            log.info("port closed: %s", transport.description)
            if self.opener.once:
                break
            self._become(State.WAITING, None)
            self._stop.wait(BACKOFF[0])
        self._become(State.CLOSED, None)

    def _become(self, state: State, session: Session | None) -> None:
        with self._changed:
            changed = self._state is not state
            self._state, self._session = state, session
            self._changed.notify_all()
        if changed:
            self._on_state(state)
