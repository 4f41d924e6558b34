"""Versions of files: how they are fetched, that they are never mixed, and what they cost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hvbridge.config import KIB, MIB, Limits
from hvbridge.errors import Changed, ConnectionLost, FsError, IOFailed, NotFound, TimedOut
from hvbridge.vfs import content as module
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.remote import Entry
from tests.support.pipes import eventually

PIECE = 64 * KIB
"""Bytes a memory download comes in."""

LIMITS = Limits(small_file=4 * KIB, memory_cache=16 * KIB, silence=0.5, operation=2.0)
BIG = random.Random(7).randbytes(2 * MIB)


class Case:
    """A cache over one file ``/f`` in memory."""

    def __init__(self, folder: Path, data: bytes, *, ranges: bool = False, limit: int = 64 * MIB) -> None:
        self.remote = MemoryRemote(ranges=ranges)
        self.remote.write("/f", data)
        self.cache = ContentCache(self.remote, folder, LIMITS, limit)

    @property
    def entry(self) -> Entry:
        return self.remote.list("/").entries[0]

    @property
    def gets(self) -> int:
        return self.remote.requests["get"]


@pytest.fixture
def big(tmp_path: Path) -> Case:
    return Case(tmp_path, BIG)


@pytest.fixture
def ranged(tmp_path: Path) -> Case:
    return Case(tmp_path, BIG, ranges=True)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Set at the end, so that no thread of a test stays behind."""
    event = threading.Event()
    yield event
    event.set()


def hold_at(remote: MemoryRemote, offset: int, gate: threading.Event) -> threading.Event:
    """Bodies stop before ``offset`` until ``gate`` is set; the result is set once one does."""
    stopped = threading.Event()

    def wait(at: int) -> None:
        if at >= offset:
            stopped.set()
            assert gate.wait(20)

    remote.on_piece = wait
    return stopped


# --- reading ---------------------------------------------------------------


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("size", [0, 1, 4 * KIB, 4 * KIB + 1, PIECE, PIECE + 1, len(BIG)])
def test_reads_give_the_files_bytes(tmp_path: Path, size: int, ranges: bool) -> None:
    case = Case(tmp_path, BIG[:size], ranges=ranges)
    content = case.cache.open("/f", case.entry)
    for offset in (0, 1, size // 2, max(0, size - 3), size, size + 10):
        assert content.read(offset, 5000) == BIG[:size][offset : offset + 5000]
    assert content.read(0, size + 1) == BIG[:size]
    content.release()


def test_without_cheap_ranges_a_file_is_one_whole_stream(big: Case) -> None:
    content = big.cache.open("/f", big.entry)
    for offset in (1_500_000, 10, 2_000_000, 0):
        assert content.read(offset, 1000) == BIG[offset : offset + 1000]
    content.read(0, len(BIG))
    assert big.gets == 1
    assert content.complete


def test_a_read_does_not_wait_for_the_whole_file(big: Case, gate: threading.Event) -> None:
    stopped = hold_at(big.remote, 4 * PIECE, gate)
    content = big.cache.open("/f", big.entry)
    assert content.read(PIECE, 1000) == BIG[PIECE : PIECE + 1000]
    assert stopped.wait(10)
    assert not content.complete
    assert content.read(3 * PIECE, 1000) == BIG[3 * PIECE : 3 * PIECE + 1000]
    gate.set()
    assert content.read(0, len(BIG)) == BIG


def test_with_cheap_ranges_a_jump_does_not_wait_for_what_lies_before(
    ranged: Case, gate: threading.Event
) -> None:
    content = ranged.cache.open("/f", ranged.entry)
    asked: list[str] = []
    ranged.remote.before = lambda method, path: asked.append(method)
    offset = len(BIG) - 100_000
    assert content.read(offset, 10) == BIG[offset : offset + 10]
    assert content.cached_bytes <= module.RANGE
    assert asked == ["get"]


def test_a_small_file_is_one_request_for_all_readers(tmp_path: Path, gate: threading.Event) -> None:
    case = Case(tmp_path, b"small")
    content = case.cache.open("/f", case.entry)
    stopped = hold_at(case.remote, 0, gate)
    with ThreadPoolExecutor(5) as pool:
        reads = [pool.submit(content.read, 0, 10) for _ in range(5)]
        assert stopped.wait(10)
        gate.set()
        assert [read.result(10) for read in reads] == [b"small"] * 5
    assert case.gets == 1


def test_another_handle_of_the_same_version_asks_nothing(big: Case) -> None:
    entry = big.entry
    for _ in range(3):
        content = big.cache.open("/f", entry)
        assert content.read(0, len(BIG)) == BIG
        content.release()
    assert big.gets == 1


def test_begin_takes_the_version_that_the_client_has_now(big: Case) -> None:
    old = big.entry
    big.remote.write("/f", b"newer")
    content = big.cache.begin("/f", old)
    assert (content.size, content.etag) == (5, big.entry.etag)
    assert content.read(0, 10) == b"newer"
    assert big.gets == 1


# --- versions are never mixed --------------------------------------------------


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("new", [bytes(len(BIG)), BIG[:-1], b"tiny"], ids=["etag", "size", "small"])
def test_a_file_that_changes_in_the_middle(tmp_path: Path, ranges: bool, new: bytes) -> None:
    case = Case(tmp_path, BIG, ranges=ranges)
    cut = [True]

    def lose_once(at: int) -> None:
        if at >= 8 * PIECE and cut:
            cut.clear()
            case.remote.write("/f", new)
            raise ConnectionLost("cut")

    case.remote.on_piece = lose_once
    content = case.cache.open("/f", case.entry)
    assert content.read(0, 1000) == BIG[:1000]
    with pytest.raises(Changed):
        content.read(0, len(BIG))
    with pytest.raises(Changed):
        content.read(len(BIG) - 10, 10)
    newer = case.cache.open("/f", case.entry)
    assert newer is not content
    assert newer.read(0, len(BIG)) == new


class _Body:
    """A download that lies about its length."""

    etag = None
    start = 0

    def __init__(self, size: int, pieces: list[bytes]) -> None:
        self.size: int | None = size
        self._pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("extra", [-1, 1], ids=["short", "long"])
def test_bodies_of_another_length_than_announced(
    big: Case, size: int, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = _Body(size, [bytes(50), bytes(size + extra - 50)])
    monkeypatch.setattr(big.remote, "get", lambda path, start=0, end=None: body)
    content = big.cache.open("/f", Entry("f", False, size, etag='"x"'))
    with pytest.raises(IOFailed, match=r"sent (less|more) than it announced"):
        content.read(0, size)
    assert body.closed


def test_a_range_that_begins_after_what_was_asked_for(ranged: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    body = _Body(len(BIG), [BIG])
    body.start = 1 * MIB
    monkeypatch.setattr(ranged.remote, "get", lambda path, start=0, end=None: body)
    content = ranged.cache.open("/f", ranged.entry)
    with pytest.raises(IOFailed, match="another range"):
        content.read(0, 10)


def test_a_server_that_ignores_ranges_is_used_from_its_start(
    ranged: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ranged.remote.get
    monkeypatch.setattr(ranged.remote, "get", lambda path, start=0, end=None: original(path))
    content = ranged.cache.open("/f", ranged.entry)
    assert content.read(300_000, 1000) == BIG[300_000:301_000]


# --- failures ------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [False, True])
def test_a_connection_lost_in_the_middle_is_tried_again(tmp_path: Path, ranges: bool) -> None:
    case = Case(tmp_path, BIG, ranges=ranges)
    losses = [5 * PIECE, 9 * PIECE]

    def lose(at: int) -> None:
        if losses and at >= losses[0]:
            losses.pop(0)
            raise ConnectionLost("cut")

    case.remote.on_piece = lose
    content = case.cache.open("/f", case.entry)
    assert content.read(0, len(BIG)) == BIG


@pytest.mark.parametrize("size", [100, len(BIG)])
def test_a_connection_that_is_lost_again_and_again(tmp_path: Path, size: int) -> None:
    case = Case(tmp_path, BIG[:size])

    def lose(at: int) -> None:
        raise ConnectionLost("cut")

    case.remote.on_piece = lose
    content = case.cache.open("/f", case.entry)
    with pytest.raises(ConnectionLost):
        content.read(0, 10)
    assert case.gets == module.RETRIES + 1
    case.remote.on_piece = lambda at: None
    assert content.read(0, 10) == BIG[:10]


def test_a_failure_that_nobody_waited_for_is_not_the_next_readers(big: Case, gate: threading.Event) -> None:
    stopped = threading.Event()

    def fail(at: int) -> None:
        if at >= 2 * PIECE:
            stopped.set()
            assert gate.wait(10)
            raise TimedOut("the client was silent")

    big.remote.on_piece = fail
    content = big.cache.open("/f", big.entry)
    content.read(0, 10)
    assert stopped.wait(10)
    content.release()  # it has so little to go that it is not cancelled
    (stream,) = content._streams
    gate.set()
    eventually(lambda: stream.over)
    big.remote.on_piece = lambda at: None
    again = big.cache.open("/f", big.entry)
    assert again.read(0, len(BIG)) == BIG


def test_a_silent_client_is_given_up(big: Case, gate: threading.Event) -> None:
    hold_at(big.remote, 2 * PIECE, gate)
    content = big.cache.open("/f", big.entry)
    began = time.monotonic()
    with pytest.raises(TimedOut):
        content.read(10 * PIECE, 10)
    assert time.monotonic() - began < 5
    assert content.read(0, 10) == BIG[:10]  # what came is there


def test_a_file_that_is_gone(big: Case) -> None:
    content = big.cache.open("/f", big.entry)
    big.remote.delete("/f")
    with pytest.raises(NotFound):
        content.read(0, 10)


def test_a_bug_in_a_stream_wakes_its_readers(big: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, start: int = 0, end: int | None = None) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(big.remote, "get", broken)
    content = big.cache.open("/f", big.entry)
    with pytest.raises(FsError, match="internal error"):
        content.read(0, 10)


# --- life and room -----------------------------------------------------------


def test_the_last_close_cancels_a_download_that_has_far_to_go(tmp_path: Path, gate: threading.Event) -> None:
    case = Case(tmp_path, bytes(16 * MIB))
    stopped = hold_at(case.remote, 2 * PIECE, gate)
    content = case.cache.open("/f", case.entry)
    content.read(0, 10)
    assert stopped.wait(10)
    (stream,) = content._streams
    content.release()
    gate.set()
    eventually(lambda: stream.over)
    assert content.cached_bytes <= 3 * PIECE


def test_unused_content_makes_room(tmp_path: Path) -> None:
    case = Case(tmp_path, b"", limit=5 * MIB)
    for number in range(4):
        case.remote.write(f"/{number}", BIG)
    for number in range(4):
        content = case.cache.open(f"/{number}", case.remote.stat(f"/{number}"))
        assert content.read(0, len(BIG)) == BIG
        content.release()
        eventually(lambda: case.cache.usage()[0] <= 5 * MIB)
    assert case.gets == 4
    newest = case.cache.open("/3", case.remote.stat("/3"))
    assert newest.read(0, len(BIG)) == BIG
    assert case.gets == 4


@pytest.mark.parametrize("ranges", [False, True])
def test_a_file_larger_than_the_cache(tmp_path: Path, ranges: bool) -> None:
    case = Case(tmp_path, BIG, ranges=ranges, limit=512 * KIB)
    content = case.cache.open("/f", case.entry)
    for offset in range(0, len(BIG), PIECE):
        assert content.read(offset, PIECE) == BIG[offset : offset + PIECE]
        assert content.cached_bytes <= 512 * KIB + PIECE
    assert content.read(1000, 1000) == BIG[1000:2000]


def test_small_content_in_memory_is_bounded(tmp_path: Path) -> None:
    case = Case(tmp_path, b"")
    for number in range(8):
        case.remote.write(f"/{number}", BIG[: 4 * KIB])
        content = case.cache.open(f"/{number}", case.remote.stat(f"/{number}"))
        content.read(0, 10)
        content.release()
    assert case.cache.usage()[0] <= LIMITS.memory_cache


def test_a_renamed_file_stays_cached(big: Case) -> None:
    content = big.cache.open("/f", big.entry)
    content.read(0, len(BIG))
    big.remote.move("/f", "/g", overwrite=False)
    big.cache.moved("/f", "/g")
    again = big.cache.open("/g", big.remote.stat("/g"))
    assert again is content
    assert big.gets == 1


def test_another_client_ends_what_is_held(big: Case, gate: threading.Event) -> None:
    stopped = hold_at(big.remote, 2 * PIECE, gate)
    content = big.cache.open("/f", big.entry)
    assert content.read(0, 10) == BIG[:10]
    assert stopped.wait(10)
    big.cache.forget()
    big.remote.write("/f", bytes(len(BIG)))
    with pytest.raises(Changed):
        content.read(len(BIG) - 10, 10)
    content.release()
    assert big.cache.usage() == (0, 0)
