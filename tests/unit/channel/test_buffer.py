"""The byte queue between the channel's reader and one consumer."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvbridge.channel.buffer import Overflow, SpillBuffer
from hvbridge.errors import ChannelClosed


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 50), st.integers(1, 60))
def test_what_goes_in_comes_out_in_order_spilled_or_not(pieces: list[bytes], step: int, memory: int) -> None:
    buffer = SpillBuffer(memory=memory, patience=0)
    for piece in filter(None, pieces):
        buffer.put(piece)
    buffer.end()
    out = bytearray()
    while data := buffer.get(step, 0):
        assert len(data) <= step
        out += data
    assert bytes(out) == b"".join(pieces)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.integers(0, 40)), max_size=30))
def test_order_holds_with_a_consumer_in_between(steps: list[tuple[bytes, int]]) -> None:
    buffer = SpillBuffer(memory=16, patience=0)
    sent, got = bytearray(), bytearray()
    for data, take in steps:
        buffer.put(data)
        sent += data
        if take:
            got += buffer.get(take, 0) if buffer.ready else b""
    buffer.end()
    while data := buffer.get(7, 0):
        got += data
    assert got == sent


def test_a_reader_waits_for_the_first_byte() -> None:
    buffer = SpillBuffer()
    threading.Timer(0.02, buffer.put, [b"late"]).start()
    assert buffer.get(100, 10) == b"late"


def test_no_data_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        SpillBuffer().get(1, 0.02)
    assert time.monotonic() - started >= 0.02
    with pytest.raises(TimeoutError):
        SpillBuffer().get(1, 0)


def test_the_end_wakes_a_reader() -> None:
    buffer = SpillBuffer()
    threading.Timer(0.02, buffer.end).start()
    assert buffer.get(1, 10) == b""


def test_an_error_comes_after_the_data_before_it() -> None:
    buffer = SpillBuffer()
    buffer.put(b"rest")
    buffer.end(ChannelClosed("gone"))
    assert buffer.get(10, 0) == b"rest"
    for _ in range(2):
        with pytest.raises(ChannelClosed, match="gone"):
            buffer.get(10, 0)


def test_the_first_end_counts() -> None:
    buffer = SpillBuffer()
    buffer.end()
    buffer.end(ChannelClosed("later"))
    buffer.put(b"too late")
    assert buffer.get(10, 0) == b""


def test_a_writer_waits_no_longer_than_its_patience() -> None:
    buffer = SpillBuffer(memory=10, patience=0.05)
    buffer.put(b"x" * 10)
    started = time.monotonic()
    buffer.put(b"y" * 10)
    assert 0.04 <= time.monotonic() - started < 5
    started = time.monotonic()
    for _ in range(100):
        buffer.put(b"z" * 10)  # once it spills it does not wait again
    assert time.monotonic() - started < 1


def test_beyond_the_disk_limit_the_stream_is_given_up() -> None:
    buffer = SpillBuffer(memory=10, disk=100, patience=0)
    buffer.put(b"m" * 10)
    for _ in range(10):
        buffer.put(b"d" * 10)
    with pytest.raises(Overflow):
        buffer.put(b"!")


def test_discard_drops_all_and_lets_a_waiting_writer_go() -> None:
    buffer = SpillBuffer(memory=1, patience=30)
    buffer.put(b"x")
    writer = threading.Thread(target=buffer.put, args=(b"y",))
    writer.start()
    buffer.discard()
    writer.join(5)
    assert not writer.is_alive()
    assert buffer.get(10, 0) == b""


def test_a_consumer_that_stays_behind_does_not_grow_the_file_for_ever() -> None:
    buffer = SpillBuffer(memory=1 << 10, disk=1 << 20, patience=0, segment=256 << 10)
    piece = b"x" * (64 << 10)
    for _ in range(4):
        buffer.put(piece)
    for _ in range(256):  # 16 MiB pass while 256 KiB are behind
        buffer.put(piece)
        taken = 0
        while taken < len(piece):
            taken += len(buffer.get(len(piece) - taken, 0))
    assert 0 < buffer.disk_bytes <= 1 << 20
