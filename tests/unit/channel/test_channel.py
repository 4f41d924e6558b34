"""A channel that comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hvbridge.channel.base import Transport
from hvbridge.channel.channel import BACKOFF, Channel, State
from hvbridge.channel.session import Session, spawn
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout
from hvbridge.spice.mux import Role
from tests.support.pipes import QueueOpener, eventually, pair

T = 10.0


class Life:
    """A host's channel under test, and its peers as they come."""

    def __init__(self, *, once: bool = False) -> None:
        self.opener = QueueOpener(once=once)
        self.states: list[State] = []
        self.channel = Channel(self.opener, Role.HOST, on_state=self.states.append)

    def peer(self) -> Session:
        """A share connects."""
        near, far = pair()
        share = Session(far, Role.SHARE)
        spawn("test-share", share.run)
        self.opener.put(near)
        return share


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life()
    life.channel.start()
    yield life
    life.channel.close()


def test_it_waits_opens_and_closes(life: Life) -> None:
    assert life.channel.wait_state(State.WAITING, 0)
    with pytest.raises(ChannelTimeout, match="no client on test:"):
        life.channel.session(0.01)
    life.peer()
    assert not life.channel.session(T).over
    assert life.channel.wait_state(State.OPEN, T)
    life.channel.close()
    assert life.channel.state is State.CLOSED
    with pytest.raises(ChannelClosed, match="test: is closed"):
        life.channel.session(T)
    assert life.states[0] is State.OPEN
    assert life.states[-1] is State.CLOSED


def test_a_returning_peer_is_a_new_session_and_ids_go_on(life: Life) -> None:
    seen: list[int] = []
    sessions: list[Session] = []
    for _ in range(3):
        share = life.peer()
        assert life.channel.wait_state(State.OPEN, T)
        session = life.channel.session(T)
        sessions.append(session)
        for _ in range(2):
            stream = session.open_stream()
            stream.write(b"x")
            seen.append(stream.id)
        share.close()
        with pytest.raises(ChannelClosed):
            stream.read(1, T)
        eventually(lambda session=session: life.channel.current is not session)  # type: ignore[misc]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert len({id(session) for session in sessions}) == 3
    assert life.channel.sessions == 3


def test_a_failed_attempt_is_told_once_and_tried_again(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        life.opener.put(ChannelError("nobody there"))
    eventually(lambda: life.channel.last_error == "nobody there")
    life.peer()
    life.channel.session(T)
    assert life.opener.opened == 4
    assert caplog.text.count("nobody there") == 1
    assert life.channel.last_error is None
    assert sum(BACKOFF[:3]) < T


def test_close_ends_the_streams_of_the_session(life: Life) -> None:
    life.peer()
    stream = life.channel.session(T).open_stream()
    threading.Timer(0.02, life.channel.close).start()
    with pytest.raises(ChannelClosed):
        stream.read(1, T)


def test_close_wakes_who_waits_for_a_session(life: Life) -> None:
    threading.Timer(0.02, life.channel.close).start()
    with pytest.raises(ChannelClosed):
        life.channel.session(T)


def test_what_comes_once_ends_the_channel() -> None:
    life = Life(once=True)
    share = life.peer()
    life.channel.start()
    life.channel.session(T)
    share.close()
    assert life.channel.wait_state(State.CLOSED, T)
    assert life.states == [State.OPEN, State.CLOSED]
    assert life.opener.opened == 1


def test_a_session_that_opens_during_close_does_not_outlive_it() -> None:
    """The transport is there, the session not yet, when close() looks for one."""
    near, far = pair()
    opening, closing = threading.Event(), threading.Event()

    class Late(QueueOpener):
        def open(self) -> Transport:
            if self.opened:
                return super().open()
            self.opened += 1
            opening.set()
            assert closing.wait(T)
            return near

        def close(self) -> None:
            closing.set()
            super().close()

    channel = Channel(Late(), Role.HOST)
    channel.start()
    assert opening.wait(T)
    channel.close()
    assert far.read(1) == b""  # the peer sees the end: nobody keeps the session
    eventually(lambda: channel.state is State.CLOSED and channel.current is None)
    far.close()
