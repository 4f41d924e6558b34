"""Uploads: whole or not at all, whatever is lost on the way."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvbridge.config import Limits
from hvbridge.errors import AccessDenied, ConnectionLost, NoSpace
from hvbridge.vfs import names, upload
from hvbridge.vfs.filesystem import Filesystem, Settings
from hvbridge.vfs.memory import MemoryRemote
from tests.support.fsops import FilesystemOps
from tests.support.pipes import eventually

ATOMIC = 1000
SMALL = b"small content"
LARGE = random.Random(9).randbytes(600 * 1024)


class Sessions:
    """A channel whose clients come when the test says so."""

    sessions = 1


class Case:
    """A filesystem over memory; ``log``: the requests since :meth:`begin`."""

    def __init__(self, home: Path, fresh: float = 0.0) -> None:
        self.remote = MemoryRemote(ranges=False, atomic=ATOMIC)
        self.connection = Sessions()
        self.fs = Filesystem(
            self.remote,
            home,
            limits=Limits(fresh=fresh),
            settings=Settings(mountpoint="/mnt"),
            connection=self.connection,
        )
        self.ops = FilesystemOps(self.fs)
        self.log: list[str] = []
        self.spool = home / "spool" / "unnamed"

    def begin(self) -> None:
        """From now on, requests that change something are logged."""
        self.log.clear()
        self.remote.before = lambda method, path: self._note(method, path)

    def _note(self, method: str, path: str) -> None:
        if method not in ("list", "stat", "get", "quota"):
            hidden = names.is_hidden(names.split(path)[1])
            self.log.append(f"{method} {'part' if hidden else path}")

    def on_client(self) -> dict[str, bytes | None]:
        return self.remote.tree()

    def hidden(self) -> list[str]:
        return [path for path in self.remote.tree() if names.is_hidden(names.split(path)[1])]

    def spooled(self) -> list[bytes]:
        return [path.read_bytes() for path in self.spool.glob("*.data")]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


# --- what is sent ----------------------------------------------------------------


def test_a_small_file_is_one_request(case: Case) -> None:
    case.begin()
    case.ops.write_file("f", SMALL)
    assert case.log == ["put /f"]
    case.ops.write_file("f", SMALL + SMALL)
    assert case.log == ["put /f"] * 2


def test_a_large_file_is_put_beside_and_moved_over(case: Case) -> None:
    case.begin()
    case.ops.write_file("f", LARGE)
    assert case.log == ["put part", "move part"]
    case.begin()
    case.ops.write_file("f", LARGE[1:])
    assert case.log == ["copy /f", "put part", "move part"], "the copy brings the mode"
    assert case.on_client() == {"/f": LARGE[1:]}


def test_the_mode_of_a_replaced_file_stays(case: Case) -> None:
    case.remote.write("/f", b"old")
    case.remote.set_executable("/f", True)
    case.ops.write_file("f", LARGE)
    assert case.remote.stat("/f").executable


def test_a_file_that_went_away_on_the_client_is_made_anew(case: Case) -> None:
    case.remote.write("/f", b"old")
    fd = case.ops.open("f", os.O_WRONLY)
    case.ops.pwrite(fd, LARGE, 0)
    case.remote.delete("/f")
    case.ops.close(fd)
    assert case.on_client() == {"/f": LARGE}


def test_only_changes_are_sent(case: Case) -> None:
    case.ops.write_file("f", SMALL)
    case.begin()
    fd = case.ops.open("f", os.O_RDWR)
    case.ops.pread(fd, 5, 0)
    case.ops.fsync(fd)
    case.ops.close(fd)
    assert case.log == []


def test_a_shells_redirection_is_one_upload(case: Case) -> None:
    """The shell opens with O_TRUNC, and closes a duplicate before the program writes."""
    case.remote.write("/f", b"old")
    case.begin()
    fd = case.ops.open("f", os.O_WRONLY | os.O_TRUNC)
    case.fs.flush(case.ops._open[fd].fh)
    assert case.log == []
    case.ops.pwrite(fd, SMALL, 0)
    case.ops.close(fd)
    assert case.log == ["put /f"]


# --- what gets lost ----------------------------------------------------------------

Cut = Callable[[str, str], None]


def lose(case: Case, number: int, *, for_ever: bool, answer: bool) -> list[int]:
    """Lose the connection at the ``number``-th request (or its answer), and perhaps at all after it.

    The result counts the requests.
    """
    count = [0]

    def cut(method: str, path: str) -> None:
        count[0] += 1
        if count[0] == number or (for_ever and count[0] > number):
            raise ConnectionLost(f"cut at {method}")

    if answer:
        case.remote.after = cut
    else:
        case.remote.before = cut
    return count


@pytest.mark.parametrize("answer", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("old", [None, b"old", LARGE[::-1]], ids=["new", "small", "large"])
@pytest.mark.parametrize("new", [SMALL, LARGE], ids=["to small", "to large"])
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_a_connection_lost_at_each_request(
    tmp_path: Path, old: bytes | None, new: bytes, for_ever: bool, answer: bool
) -> None:
    number = count = 1
    while number <= count:
        case = Case(tmp_path / str(number))
        if old is not None:
            case.remote.write("/f", old)
        fd = case.ops.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        case.ops.pwrite(fd, new, 0)
        counter = lose(case, number, for_ever=for_ever, answer=answer)
        failed = False
        try:
            case.ops.close(fd)
        except OSError:
            failed = True
        count = counter[0]
        case.remote.before = case.remote.after = lambda method, path: None
        content = case.on_client().get("/f")
        if failed:
            assert content in (old, new)
            assert case.spooled() == [new]
            (note,) = case.fs.failed()
            assert (note["path"], note["state"]) == ("/f", "failed")
            assert "cut" in str(note["error"])
        else:
            assert content == new
            assert case.spooled() == []
        assert failed <= for_ever, "lost once, an upload begins anew"
        number += 1
    assert number > 1


@pytest.mark.parametrize("at", [0, 1, 300_000, 512 * 1024])
def test_a_body_that_is_cut(case: Case, at: int) -> None:
    case.remote.write("/f", b"old")

    def cut(offset: int) -> None:
        if offset >= at:
            raise ConnectionLost("cut")

    case.remote.on_piece = cut
    fd = case.ops.open("f", os.O_WRONLY)
    case.ops.pwrite(fd, LARGE, 0)
    with pytest.raises(OSError):
        case.ops.fsync(fd)
    assert case.on_client()["/f"] == b"old"
    case.remote.on_piece = lambda offset: None
    case.ops.fsync(fd)
    assert case.on_client()["/f"] == LARGE
    case.ops.close(fd)
    case.fs.uploader.sweep()
    assert case.hidden() == []


def test_a_refused_upload_is_an_error_and_stays_in_the_spool(case: Case) -> None:
    def refuse(method: str, path: str) -> None:
        if method == "put":
            raise NoSpace("the client's disk is full")

    case.remote.before = refuse
    fd = case.ops.open("f", os.O_WRONLY | os.O_CREAT)
    case.ops.pwrite(fd, LARGE, 0)
    with pytest.raises(OSError, match="No space"):
        case.ops.fsync(fd)
    (note,) = case.fs.pending()
    assert (note["path"], note["state"], note["size"]) == ("/f", "failed", len(LARGE))
    with pytest.raises(OSError, match="No space"):
        case.ops.close(fd)
    assert case.spooled() == [LARGE]
    assert not case.fs.drain(1.0)
    assert case.on_client() == {}


def test_hidden_files_that_were_left_are_swept_when_the_client_is_back(case: Case) -> None:
    def cut(method: str, path: str) -> None:
        if method in ("move", "delete"):
            raise ConnectionLost("cut")

    case.remote.before = cut
    with pytest.raises(OSError):
        case.ops.write_file("f", LARGE)
    assert case.hidden() != []
    case.remote.before = lambda method, path: None
    case.connection.sessions += 1
    assert case.ops.listdir() == []
    assert case.hidden() == []


def test_a_failed_upload_that_left_something_removes_it_at_once_where_it_can(case: Case) -> None:
    def refuse(method: str, path: str) -> None:
        if method == "move":
            raise AccessDenied("no")

    case.remote.before = refuse
    with pytest.raises(OSError):
        case.ops.write_file("f", LARGE)
    assert case.on_client() == {}


# --- another share, other writers -----------------------------------------------------


def test_nothing_is_sent_to_another_share(case: Case) -> None:
    for number in range(4):
        case.remote.write(f"/{number}", b"of the first share")
    assert len(case.ops.listdir()) == 4
    fd = case.ops.open("secret", os.O_RDWR | os.O_CREAT)
    case.ops.pwrite(fd, b"SECRET", 0)
    for number in range(4):
        case.remote.delete(f"/{number}")
    case.remote.write("/0", b"another's file")
    case.remote.write("/x", b"another's file")
    case.connection.sessions += 1
    case.begin()
    with pytest.raises(OSError):
        case.ops.close(fd)
    assert case.log == []
    assert case.on_client() == {"/0": b"another's file", "/x": b"another's file"}
    assert case.spooled() == [b"SECRET"]
    assert case.fs.failed()[0]["path"] == "/secret"


def test_the_same_share_that_came_back_gets_it(tmp_path: Path) -> None:
    """Also if it has nothing but what was written from here, since it was last listed."""
    case = Case(tmp_path, fresh=1000.0)
    case.ops.write_file("first", LARGE)
    fd = case.ops.open("second", os.O_WRONLY | os.O_CREAT)
    case.ops.pwrite(fd, SMALL, 0)
    case.connection.sessions += 1
    case.ops.close(fd)
    assert case.on_client() == {"/first": LARGE, "/second": SMALL}


def test_a_file_that_is_written_while_it_is_sent_is_sent_again(case: Case) -> None:
    fd = case.ops.open("f", os.O_RDWR | os.O_CREAT)
    case.ops.pwrite(fd, LARGE, 0)
    torn = [True]

    def write_once(at: int) -> None:
        if at > 300_000 and torn:
            torn.clear()
            case.ops.pwrite(fd, b"changed", 10)

    case.remote.on_piece = write_once
    case.ops.fsync(fd)
    expected = LARGE[:10] + b"changed" + LARGE[17:]
    assert case.on_client() == {"/f": expected}
    case.ops.close(fd)
    assert case.on_client() == {"/f": expected}


def test_a_file_that_is_truncated_while_it_is_sent(case: Case) -> None:
    fd = case.ops.open("f", os.O_RDWR | os.O_CREAT)
    case.ops.pwrite(fd, LARGE, 0)
    torn = [True]

    def cut_once(at: int) -> None:
        if at > 300_000 and torn:
            torn.clear()
            case.ops.ftruncate(fd, 100)

    case.remote.on_piece = cut_once
    case.ops.fsync(fd)
    assert case.on_client() == {"/f": LARGE[:100]}
    case.ops.close(fd)


def test_a_file_that_is_rewritten_all_the_time_is_sent_at_last(case: Case) -> None:
    fd = case.ops.open("f", os.O_RDWR | os.O_CREAT)
    case.ops.pwrite(fd, LARGE, 0)
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            case.ops.pwrite(fd, b"%8d" % number, 0)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        case.ops.fsync(fd)
        content = case.on_client()["/f"]
        assert content is not None
        assert content[8:] == LARGE[8:]
    finally:
        stop.set()
        writer.join(10)
    case.ops.close(fd)
    assert case.hidden() == []


def test_an_unlink_waits_for_the_upload_and_then_deletes(case: Case) -> None:
    begun, go = threading.Event(), threading.Event()

    def hold(at: int) -> None:
        begun.set()
        assert go.wait(10)

    fd = case.ops.open("f", os.O_RDWR | os.O_CREAT)
    case.ops.pwrite(fd, LARGE, 0)
    case.remote.on_piece = hold
    sender = threading.Thread(target=case.ops.fsync, args=(fd,))
    sender.start()
    assert begun.wait(10)
    remover = threading.Thread(target=case.ops.unlink, args=("f",))
    remover.start()
    go.set()
    for thread in (sender, remover):
        thread.join(10)
        assert not thread.is_alive()
    assert case.on_client() == {}
    case.ops.close(fd)
    assert case.on_client() == {}


def test_drain_uploads_what_is_open(case: Case) -> None:
    fd = case.ops.open("f", os.O_RDWR | os.O_CREAT)
    case.ops.pwrite(fd, SMALL, 0)
    seen: list[tuple[str, int]] = []
    assert case.fs.drain(5.0, lambda path, size: seen.append((path, size)))
    assert seen == [("/f", len(SMALL))]
    assert case.on_client() == {"/f": SMALL}
    case.ops.close(fd)


def test_uploads_at_once_are_bounded(case: Case) -> None:
    going: set[int] = set()
    most, lock = [0], threading.Lock()
    go = threading.Event()

    def hold(at: int) -> None:
        with lock:
            going.add(threading.get_ident())
            most[0] = max(most[0], len(going))
        assert go.wait(10)
        with lock:
            going.discard(threading.get_ident())

    case.remote.on_piece = hold
    threads = [
        threading.Thread(target=case.ops.write_file, args=(f"f{number}", SMALL)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: most[0] == upload.PARALLEL)
    go.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert most[0] == upload.PARALLEL
    assert len(case.on_client()) == 8
