"""How long the current operation may still take.

The adapter that receives an operation (FUSE, a CLI command) opens a scope; every
wait below it, down to the read of one stream, takes the smaller of its own limit
and what is left of the scope. So a client that trickles bytes cannot stretch an
operation by staying just within each single timeout.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

_ends_at: contextvars.ContextVar[float | None] = contextvars.ContextVar("hvbridge_deadline", default=None)


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """A scope of at most ``seconds`` (nested scopes: the earlier end holds); ``None`` lifts it."""
    ends_at = None if seconds is None else time.monotonic() + seconds
    outer = _ends_at.get()
    if ends_at is not None and outer is not None:
        ends_at = min(ends_at, outer)
    token = _ends_at.set(ends_at)
    try:
        yield
    finally:
        _ends_at.reset(token)


def remaining(limit: float | None = None) -> float | None:
    """Seconds left, at most ``limit``; ``None`` when there is no limit at all, never below 0."""
    ends_at = _ends_at.get()
    if ends_at is None:
        return limit
    left = max(0.0, ends_at - time.monotonic())
    return left if limit is None else min(left, limit)


def expired() -> bool:
    """True once the scope's time is over."""
    return remaining() == 0.0
