from __future__ import annotations

import threading
import time

import pytest

from hvbridge import deadline
from hvbridge.errors import NotFound, TimedOut
from hvbridge.vfs.flights import Flights
from tests.support.pipes import eventually


class Work:
    """Counts its calls and ends when told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.begun, self.go = threading.Event(), threading.Event()
        self._error = error

    def __call__(self) -> int:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(10)
        if self._error is not None:
            raise self._error
        return self.calls


def callers(flights: Flights, work: Work, number: int) -> tuple[list[threading.Thread], list[object]]:
    results: list[object] = []

    def call() -> None:
        try:
            results.append(flights.do("key", work))
        except NotFound as exc:
            results.append(exc)

    threads = [threading.Thread(target=call) for _ in range(number)]
    threads[0].start()
    assert work.begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    return threads, results


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_callers_of_one_key_share_one_result() -> None:
    flights, work = Flights(), Work()
    threads, results = callers(flights, work, 5)
    assert "key" in flights
    time.sleep(0.05)  # the others reach the flight; should one not, the count tells
    work.go.set()
    join(threads)
    assert results == [1] * 5
    assert work.calls == 1
    assert "key" not in flights


def test_they_share_its_error_and_the_next_call_is_new() -> None:
    flights, work = Flights(), Work(NotFound("x"))
    threads, results = callers(flights, work, 3)
    time.sleep(0.05)
    work.go.set()
    join(threads)
    assert [type(result) for result in results] == [NotFound] * 3
    assert flights.do("key", lambda: "new") == "new"


def test_other_keys_do_not_wait() -> None:
    flights, work = Flights(), Work()
    threads, _ = callers(flights, work, 1)
    assert flights.do("other", lambda: 7) == 7
    work.go.set()
    join(threads)


def test_a_joiner_has_its_own_deadline() -> None:
    flights, work = Flights(), Work()
    threads, _ = callers(flights, work, 1)
    with pytest.raises(TimedOut), deadline.within(0.05):
        flights.do("key", work)
    work.go.set()
    join(threads)
    eventually(lambda: "key" not in flights)
    assert work.calls == 1
