"""The connection's habits, on a wire that records."""

from __future__ import annotations

import httpcore
import pytest

from hvbridge import deadline
from hvbridge.webdav.backend import GATHER, BridgeBackend, BridgeStream, StaleConnection


class Recorder:
    """A wire whose answers are queued; ``b""`` is the end."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.written: list[bytes] = []
        self.timeouts: list[float | None] = []
        self.readable = False

    def read(self, max_bytes: int, timeout: float | None) -> bytes:
        self.timeouts.append(timeout)
        return self.answers.pop(0)

    def write(self, data: bytes, timeout: float | None) -> None:
        self.timeouts.append(timeout)
        self.written.append(bytes(data))

    def close(self) -> None:
        self.written.append(b"closed")

    def linger(self) -> None:
        self.written.append(b"left to the peer")

    def idle(self) -> None:
        self.written.append(b"nothing expected")


def connection(*answers: bytes) -> tuple[BridgeStream, Recorder, BridgeBackend]:
    backend = BridgeBackend()
    wire = Recorder(*answers)
    return BridgeStream(wire, backend), wire, backend


def test_head_and_body_leave_together_when_the_answer_is_read() -> None:
    stream, wire, _ = connection(b"answer")
    stream.write(b"head")
    stream.write(b"body")
    assert wire.written == []
    assert stream.read(10) == b"answer"
    assert wire.written == [b"headbody"]


def test_a_large_body_leaves_as_it_comes() -> None:
    stream, wire, _ = connection(b"answer")
    stream.write(b"head")
    for _ in range(3):
        stream.write(b"x" * GATHER)
    stream.write(b"end")
    assert list(map(len, wire.written)) == [GATHER + 4, GATHER, GATHER]
    stream.read(10)
    assert wire.written[-1] == b"end"


def test_what_was_gathered_is_not_sent_by_closing() -> None:
    stream, wire, _ = connection()
    stream.write(b"head")
    stream.close()
    assert wire.written == [b"closed"]


def test_every_wait_ends_with_the_operation() -> None:
    stream, wire, _ = connection(b"a", b"b")
    with deadline.within(2):
        stream.write(b"head", 30)
        stream.read(10, 30)
        stream.read(10, 0.5)
    assert wire.timeouts[0] is not None
    assert wire.timeouts[0] <= 2
    assert wire.timeouts[1] is not None
    assert wire.timeouts[1] <= 2
    assert wire.timeouts[2] == 0.5
    with deadline.within(0):
        with pytest.raises(httpcore.ReadTimeout):
            stream.read(10)
        with pytest.raises(httpcore.WriteTimeout):
            stream.write(b"x" * GATHER)


def test_an_upload_stops_at_an_early_answer() -> None:
    stream, wire, _ = connection(b"no")
    stream.write(b"x" * GATHER)
    wire.readable = True
    with pytest.raises(httpcore.WriteError):
        stream.write(b"x" * GATHER)
    assert stream.read(10) == b"no"
    assert len(wire.written) == 1


def test_an_end_before_the_answer_is_stale_only_on_a_used_connection() -> None:
    stream, _, _ = connection(b"")
    stream.write(b"one")
    assert stream.read(10) == b""
    stream, _, _ = connection(b"answer", b"")
    stream.write(b"one")
    stream.read(10)
    stream.write(b"two")
    with pytest.raises(StaleConnection):
        stream.read(10)
    stream, _, _ = connection(b"answer", b"half", b"")
    stream.write(b"one")
    stream.read(10)
    stream.write(b"two")
    stream.read(10)
    assert stream.read(10) == b""


@pytest.mark.parametrize("why", ["poisoned", "ended", "retired"])
def test_an_unfit_connection_takes_no_further_request(why: str) -> None:
    stream, wire, backend = connection(b"answer")
    stream.write(b"one")
    stream.read(10)
    assert not stream.get_extra_info("is_readable")
    if why == "poisoned":
        stream.poison()
    elif why == "ended":
        wire.readable = True
    else:
        backend.retire()
    assert stream.get_extra_info("is_readable")
    with pytest.raises(httpcore.ConnectionNotAvailable):
        stream.write(b"two")
    assert wire.written == [b"one"]


def test_a_connection_that_the_server_ends_is_left_to_it() -> None:
    stream, wire, _ = connection(b"answer")
    stream.write(b"request")
    stream.read(100)
    stream.poison()
    stream.close()
    assert wire.written[-1] == b"left to the peer"


def test_an_answer_that_is_given_up_is_closed_at_once() -> None:
    stream, wire, _ = connection(b"ans")
    stream.write(b"request")
    stream.read(100)
    stream.poison()
    stream.abort()
    stream.close()
    assert wire.written[-1] == b"closed"
