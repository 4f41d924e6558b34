"""Two sessions against each other over a socketpair."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hvbridge.channel.session import Session, Stream, spawn
from hvbridge.channel.sockets import SocketTransport
from hvbridge.errors import ChannelClosed, ChannelTimeout, ProtocolError
from hvbridge.spice.mux import HEADER, MAX_DATA, MAX_STREAMS, Role
from tests.support.pipes import eventually, pair, sessions

T = 10.0
"""Seconds that anything here may take."""

Pair = tuple[Session, Session]


@pytest.fixture
def both() -> Iterator[Pair]:
    host, share = sessions()
    yield host, share
    host.close()
    share.close()


def read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := stream.read(1 << 20, T):
        data += piece
    return bytes(data)


def accepted(share: Session) -> Stream:
    stream = share.accept()
    assert stream is not None
    return stream


def each_accepted(share: Session, serve: Callable[[Stream], None]) -> None:
    def accept() -> None:
        while (stream := share.accept()) is not None:
            spawn("test-serve", functools.partial(serve, stream))

    spawn("test-accept", accept)


def test_a_stream_carries_bytes_both_ways(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"request")
    far = accepted(share)
    assert far.id == near.id
    assert far.read(100, T) == b"request"
    far.write(b"answer")
    assert near.read(3, T) == b"ans"
    assert near.read(100, T) == b"wer"
    assert (host.open_streams, share.open_streams) == (1, 1)


def test_the_peers_close_is_the_end_after_the_data(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"x")
    far = accepted(share)
    far.write(b"last words")
    far.close()
    assert near.read(100, T) == b"last words"
    assert near.read(100, T) == b""
    assert near.read(100, T) == b""
    assert not near.reusable
    with pytest.raises(ChannelClosed, match="peer closed"):
        near.write(b"too late")


def test_closing_here_ends_the_stream_there_and_frees_it(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"x")
    far = accepted(share)
    near.close()
    near.close()
    assert read_all(far) == b"x"
    eventually(lambda: share.open_streams == 0)
    assert host.open_streams == 0
    assert share.counters.dropped == 0  # one close frame, not two


def test_a_stream_that_sent_nothing_is_unknown_to_the_peer(both: Pair) -> None:
    host, share = both
    host.open_stream().close()
    other = host.open_stream()
    other.write(b"x")
    assert accepted(share).id == other.id
    assert share.counters.frames_in == 1


def test_readable_tells_an_idle_stream_that_is_over(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"x")
    far = accepted(share)
    assert not near.readable
    far.close()
    eventually(lambda: near.readable)


def test_a_silent_peer_times_out_and_the_stream_lives(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"x")
    with pytest.raises(ChannelTimeout, match="no answer"):
        near.read(1, 0.02)
    accepted(share).write(b"late")
    assert near.read(10, T) == b"late"


def test_the_closed_port_ends_every_stream_with_an_error(both: Pair) -> None:
    host, share = both
    streams = [host.open_stream() for _ in range(5)]
    for stream in streams:
        stream.write(b"x")
    far = [accepted(share) for _ in streams]
    share.close()
    for stream in streams:
        with pytest.raises(ChannelClosed):
            stream.read(1, T)
    for stream in far:
        assert stream.read(10, T) == b"x"
        with pytest.raises(ChannelClosed):
            stream.read(1, T)
    eventually(lambda: host.over)
    with pytest.raises(ChannelClosed):
        host.open_stream()
    with pytest.raises(ChannelClosed):
        streams[0].write(b"x")
    for stream in streams + far:
        stream.close()  # never raises
    assert (host.open_streams, share.open_streams) == (0, 0)


def test_accept_ends_with_the_port_for_everyone_who_asks(both: Pair) -> None:
    host, share = both
    host.close()
    assert share.accept() is None
    assert share.accept() is None


@pytest.mark.parametrize("end", ["host", "share"])
def test_close_from_another_thread_wakes_a_read(both: Pair, end: str) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"x")
    threading.Timer(0.02, (host if end == "host" else share).close).start()
    with pytest.raises(ChannelClosed):
        near.read(1, T)


def test_a_host_gets_no_more_streams_than_allowed(both: Pair) -> None:
    host, share = both
    for _ in range(MAX_STREAMS + 1):
        host.open_stream().write(b"x")
    eventually(lambda: share.over and host.over)
    count = 0
    while share.accept() is not None:
        count += 1
    assert count <= MAX_STREAMS


def test_frames_for_ids_that_are_not_open_are_dropped() -> None:
    left, right = pair()
    host = Session(left, Role.HOST)
    spawn("test", host.run)
    stream = host.open_stream()
    stream.write(b"x")
    right.write(HEADER.pack(4711, 3) + b"abc" + HEADER.pack(-1, 0) + HEADER.pack(stream.id, 2) + b"ok", T)
    assert stream.read(10, T) == b"ok"
    assert host.counters.dropped == 2
    host.close()
    right.close()


def test_up_to_65535_bytes_leave_as_one_frame() -> None:
    left, right = pair()
    host = Session(left, Role.HOST)
    stream = host.open_stream()
    stream.write(b"a" * MAX_DATA)
    assert host.counters.frames_out == 1
    stream.write(b"b" * (MAX_DATA + 1))
    assert host.counters.frames_out == 3
    host.close()
    right.close()


class Stuck:
    """A transport whose peer takes nothing."""

    description = "stuck"

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.timeouts: list[float] = []

    def read(self, max_bytes: int) -> bytes:
        self.closed.wait(T)
        return b""

    def write(self, data: bytes, timeout: float) -> None:
        self.timeouts.append(timeout)
        raise ChannelTimeout("took nothing")

    def close(self) -> None:
        self.closed.set()


def test_a_write_that_stalls_ends_the_whole_session() -> None:
    transport = Stuck()
    host = Session(transport, Role.HOST)
    host.stall = 0.5
    reading = spawn("test", host.run)
    one, other = host.open_stream(), host.open_stream()
    with pytest.raises(ChannelTimeout):
        one.write(b"x")
    reading.join(T)
    assert transport.timeouts == [0.5]
    assert host.over
    with pytest.raises(ChannelClosed):
        other.read(1, T)


def test_a_stalled_socket_ends_the_session_too() -> None:
    left, right = socket.socketpair()
    host = Session(SocketTransport(left, "left"), Role.HOST)
    host.stall = 0.05
    reading = spawn("test", host.run)
    stream = host.open_stream()
    with pytest.raises(ChannelTimeout, match="took nothing"):
        stream.write(bytes(64 << 20))
    reading.join(T)
    assert host.over
    right.close()


def test_who_waits_for_a_busy_channel_has_a_deadline() -> None:
    left, right = socket.socketpair()
    host = Session(SocketTransport(left, "left"), Role.HOST)
    one, other = host.open_stream(), host.open_stream()
    spawn("test", host.run)

    def fill() -> None:
        with pytest.raises(ChannelClosed):
            one.write(bytes(64 << 20))

    filling = threading.Thread(target=fill)
    filling.start()
    eventually(host._writing.locked)
    with pytest.raises(ChannelTimeout, match="busy"):
        while True:  # until the socket is full, which takes a moment
            other.write(b"x", 0.02)
    assert not host.over
    host.close()
    filling.join(T)
    assert not filling.is_alive()
    right.close()


def test_a_slow_consumer_does_not_hold_up_the_others(both: Pair) -> None:
    """It costs the channel one moment of patience; then its data goes to disk, and is all there."""
    host, share = both
    size = 32 << 20
    digest = hashlib.sha256()

    def serve(stream: Stream) -> None:
        request = stream.read(100, T)
        if request == b"big":
            block = os.urandom(1 << 20)
            for _ in range(size >> 20):
                digest.update(block)
                stream.write(block)
            stream.close()
        else:
            stream.write(request)

    each_accepted(share, serve)
    slow = host.open_stream()
    slow.write(b"big")
    eventually(lambda: slow._buffer.disk_bytes > 1 << 20)
    quick = host.open_stream()
    started = time.monotonic()
    quick.write(b"ping")
    assert quick.read(10, T) == b"ping"
    assert time.monotonic() - started < 4  # 32 MiB are in the way, at a busy machine's speed
    data = read_all(slow)
    assert len(data) == size
    assert hashlib.sha256(data).digest() == digest.digest()


def test_a_stream_nobody_reads_is_given_up_at_its_limit_alone(both: Pair) -> None:
    host, share = both
    greedy, modest = host.open_stream(), host.open_stream()
    greedy._buffer._memory, greedy._buffer._disk, greedy._buffer._patience = 1 << 10, 1 << 20, 0.0
    for stream in (greedy, modest):
        stream.write(b"x")
    flood, other = accepted(share), accepted(share)
    with pytest.raises(ChannelClosed, match="peer closed"):
        for _ in range(1000):
            flood.write(bytes(64 << 10))
    with pytest.raises(ChannelClosed, match="behind"):
        while greedy.read(1 << 20, T):
            pass
    other.write(b"fine")
    assert modest.read(10, T) == b"fine"


def test_a_peer_that_breaks_the_protocol_ends_the_session() -> None:
    class Broken(Stuck):
        def read(self, max_bytes: int) -> bytes:
            raise ProtocolError("nonsense")

    host = Session(Broken(), Role.HOST)
    stream = host.open_stream()
    host.run()
    with pytest.raises(ChannelClosed, match="nonsense"):
        stream.read(1, T)


EXCHANGED = 2 << 20


def seeded(seed: int) -> bytes:
    return random.Random(seed).randbytes(EXCHANGED)


def receive(stream: Stream) -> str:
    """The hash of what comes, read in pieces of any size."""
    came = hashlib.sha256()
    left = EXCHANGED
    while left:
        data = stream.read(random.randint(1, 200_000), T)
        assert data
        came.update(data)
        left -= len(data)
    return came.hexdigest()


def exchange(stream: Stream, seed: int) -> str:
    """Send seeded data in pieces of any size while another thread receives."""
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append(receive(stream)))
    reader.start()
    data, at, rng = seeded(seed), 0, random.Random(seed)
    while at < EXCHANGED:
        step = rng.randint(1, 150_000)
        stream.write(data[at : at + step])
        at += step
    reader.join(60)
    return came[0]


def test_sixteen_streams_at_once_keep_their_bytes_apart(both: Pair) -> None:
    """Random data both ways, compared by hash."""
    host, share = both
    came: dict[tuple[str, int], str] = {}

    def far(stream: Stream) -> None:
        came["share", stream.id] = exchange(stream, 1000 + stream.id)

    def near() -> None:
        stream = host.open_stream()
        came["host", stream.id] = exchange(stream, 2000 + stream.id)

    each_accepted(share, far)
    threads = [spawn("test-near", near) for _ in range(16)]
    for thread in threads:
        thread.join(60)
    eventually(lambda: len(came) == 32)
    for sid in range(1, 17):
        assert came["share", sid] == hashlib.sha256(seeded(2000 + sid)).hexdigest()
        assert came["host", sid] == hashlib.sha256(seeded(1000 + sid)).hexdigest()


def test_ids_come_from_the_iterator_that_was_given() -> None:
    left, right = pair()
    host = Session(left, Role.HOST, ids=itertools.count(77))
    assert [host.open_stream().id for _ in range(3)] == [77, 78, 79]
    host.close()
    right.close()


def raw_answering_peer() -> tuple[Session, socket.socket]:
    """A host session, and the bare socket of its peer."""
    ours, theirs = socket.socketpair()
    session = Session(SocketTransport(ours, "peer"), Role.HOST)
    spawn("test-host", session.run)
    theirs.settimeout(T)
    return session, theirs


def test_a_lingering_stream_leaves_the_close_to_the_peer() -> None:
    session, peer = raw_answering_peer()
    stream = session.open_stream()
    stream.write(b"request")
    assert peer.recv(100) == HEADER.pack(stream.id, 7) + b"request"
    stream.linger()
    stream.close()  # too late to be told
    peer.sendall(HEADER.pack(stream.id, 0))
    eventually(lambda: session.open_streams == 0)
    following = session.open_stream()
    following.write(b"next")
    # Nothing came between: no close for an id that the peer has forgotten.
    assert peer.recv(100) == HEADER.pack(following.id, 4) + b"next"
    session.close()
    peer.close()


def test_a_peer_that_does_not_close_a_lingering_stream_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvbridge.channel.session.LINGER", -1.0)
    session, peer = raw_answering_peer()
    stream = session.open_stream()
    stream.write(b"request")
    stream.linger()
    session.open_stream()
    expected = HEADER.pack(stream.id, 7) + b"request" + HEADER.pack(stream.id, 0)
    assert peer.recv(len(expected), socket.MSG_WAITALL) == expected
    session.close()
    peer.close()


def test_what_nobody_asked_for_ends_the_stream(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"request")
    far = accepted(share)
    far.write(b"answer")
    assert near.read(100, T) == b"answer"
    near.idle()
    far.write(b"more")
    with pytest.raises(ChannelClosed, match="nobody asked"):
        near.read(100, T)
    eventually(lambda: host.open_streams == 0)


def test_a_stream_that_asks_again_is_answered_again(both: Pair) -> None:
    host, share = both
    near = host.open_stream()
    near.write(b"one")
    far = accepted(share)
    near.idle()
    near.write(b"two")
    far.write(b"answer")
    assert near.read(100, T) == b"answer"
