"""Identical requests under way at the same time are one request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from hvbridge import deadline
from hvbridge.errors import TimedOut

T = TypeVar("T")


class Flights:
    """Joins callers of the same key onto the first one's result or error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[Hashable, Future[Any]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flying

    def do(self, key: Hashable, work: Callable[[], T]) -> T:
        """The result of ``work()``, or of the same key's call that is under way.

        Raises what it raises; :class:`TimedOut` if the caller's own deadline
        passes while it waits for another's request.
        """
        with self._lock:
            future = self._flying.get(key)
            mine = future is None
            if future is None:
                future = self._flying[key] = Future()
        if not mine:
            joined: T = self._join(future)
            return joined
        try:
            result = work()
        except BaseException as exc:
            with self._lock:
                del self._flying[key]
            future.set_exception(exc)
            raise
        with self._lock:
            del self._flying[key]
        future.set_result(result)
        return result

    @staticmethod
    def _join(future: Future[Any]) -> Any:
        try:
            return future.result(deadline.remaining())
        except FutureTimeout:
            raise TimedOut("the client did not answer in time") from None
