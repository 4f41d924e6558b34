"""Requests that must go to one client and no other.

A channel outlives its clients. A request that waits for a client which left would
else be sent to whoever comes next, and change files on another person's machine. So
what changes something is pinned to the session whose share was looked at.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_session: contextvars.ContextVar[int | None] = contextvars.ContextVar("hvbridge_session", default=None)


@contextlib.contextmanager
def to(session: int | None) -> Iterator[None]:
    """A scope whose requests go to this session (:attr:`Channel.sessions`) or fail unsent."""
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


def allows(session: int) -> bool:
    """True if a request may go to ``session``."""
    wanted = _session.get()
    return wanted is None or wanted == session
