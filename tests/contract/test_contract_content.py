"""Open modes, reading, writing, truncating: what POSIX says, on every kind of filesystem."""

from __future__ import annotations

import errno
import os
import random
import threading
from functools import partial

import pytest

from tests.contract.expecting import fails
from tests.support.fsops import ClientSide, FsOps
from tests.support.pipes import eventually

BIG = random.Random(1).randbytes(700 * 1024)
"""More than is cached in memory, more than one request of FUSE, no round number of blocks."""


# --- reading and writing whole files ---------------------------------------


@pytest.mark.parametrize(
    "data", [b"x", b"hello\n", bytes(4096), BIG[:4097], BIG[: 128 * 1024], BIG], ids=lambda d: str(len(d))
)
def test_what_is_written_reads_back_and_is_on_the_client(fs: FsOps, client: ClientSide, data: bytes) -> None:
    fs.write_file("f", data)
    assert client.has("f", data)
    assert fs.stat("f").size == len(data)
    assert fs.read_file("f") == data
    assert client.names() == ["f"], "nothing of our own is left beside it"


def test_an_empty_file_reaches_the_client(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("empty", b"")
    eventually(lambda: "empty" in client.names())
    assert client.has("empty", b"")
    assert fs.stat("empty").size == 0
    assert fs.read_file("empty") == b""


def test_what_the_client_has_is_read(fs: FsOps, client: ClientSide) -> None:
    client.write("small", b"from the client")
    client.write("big", BIG)
    assert fs.read_file("small") == b"from the client"
    assert fs.read_file("big") == BIG
    fd = fs.open("big")
    assert fs.pread(fd, 100, len(BIG) - 50) == BIG[-50:]
    assert fs.pread(fd, 100, len(BIG)) == b""
    assert fs.pread(fd, 100, len(BIG) + 10**6) == b""
    fs.close(fd)


def test_replacing_content_by_shorter_and_longer(fs: FsOps, client: ClientSide) -> None:
    for data in (b"first version", b"2nd", BIG, b"", b"last"):
        fs.write_file("f", data)
        eventually(partial(client.has, "f", data))
        assert fs.read_file("f") == data


# --- open modes --------------------------------------------------------------


def test_opening_what_is_not_there(fs: FsOps) -> None:
    with fails(errno.ENOENT):
        fs.open("none")
    with fails(errno.ENOENT):
        fs.open("none", os.O_RDWR)
    with fails(errno.ENOENT):
        fs.open("no/parent", os.O_WRONLY | os.O_CREAT)
    assert fs.listdir() == []


def test_o_excl(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    fs.pwrite(fd, b"mine", 0)
    with fails(errno.EEXIST):
        fs.open("f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    fs.close(fd)
    with fails(errno.EEXIST):
        fs.open("f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert client.has("f", b"mine")


def test_o_trunc_empties_an_existing_file(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("f", b"old content")
    fd = fs.open("f", os.O_WRONLY | os.O_TRUNC)
    assert fs.fstat(fd).size == 0
    fs.close(fd)
    eventually(lambda: client.has("f", b""))
    assert fs.stat("f").size == 0


def test_the_client_never_sees_a_file_emptied_before_it_is_written(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("f", b"old content")
    fd = fs.open("f", os.O_WRONLY | os.O_TRUNC)
    assert client.has("f", b"old content")
    fs.pwrite(fd, b"new", 0)
    assert client.has("f", b"old content")
    fs.close(fd)
    assert client.has("f", b"new")


@pytest.mark.parametrize("size", [20, len(BIG)])
def test_write_within_an_existing_file(fs: FsOps, client: ClientSide, size: int) -> None:
    data = BIG[:size]
    client.write("f", data)
    fd = fs.open("f", os.O_RDWR)
    assert fs.pwrite(fd, b"***", size // 2) == 3
    expected = data[: size // 2] + b"***" + data[size // 2 + 3 :]
    assert fs.read_all(fd) == expected
    fs.close(fd)
    assert client.has("f", expected)
    assert fs.read_file("f") == expected


def test_write_only_within_an_existing_file_keeps_the_rest(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"0123456789")
    fd = fs.open("f", os.O_WRONLY)
    fs.pwrite(fd, b"ab", 4)
    with fails(errno.EBADF):
        fs.pread(fd, 1, 0)
    fs.close(fd)
    assert client.has("f", b"0123ab6789")


def test_read_only_descriptors_do_not_write(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"0123456789")
    fd = fs.open("f", os.O_RDONLY)
    with fails(errno.EBADF):
        fs.pwrite(fd, b"x", 0)
    fs.close(fd)
    assert client.has("f", b"0123456789")


def test_append(fs: FsOps, client: ClientSide) -> None:
    client.write("log", b"one\n")
    for line in (b"two\n", b"three\n"):
        fd = fs.open("log", os.O_WRONLY | os.O_APPEND)
        fs.append(fd, line)
        fs.append(fd, line.upper())
        fs.close(fd)
    assert client.has("log", b"one\ntwo\nTWO\nthree\nTHREE\n")
    fd = fs.open("new", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    fs.append(fd, b"x")
    fs.close(fd)
    assert client.has("new", b"x")


def test_opening_and_closing_for_writing_changes_nothing(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"as it is")
    before = fs.stat("f")
    fs.close(fs.open("f", os.O_RDWR))
    assert client.has("f", b"as it is")
    assert fs.stat("f") == before


# --- positions and sizes -----------------------------------------------------


def test_writes_anywhere_and_holes(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"end", 300_000)
    fs.pwrite(fd, b"start", 0)
    fs.pwrite(fd, b"middle", 150_000)
    expected = bytearray(300_003)
    expected[:5] = b"start"
    expected[150_000:150_006] = b"middle"
    expected[300_000:] = b"end"
    assert fs.fstat(fd).size == 300_003
    assert fs.read_all(fd) == expected
    fs.close(fd)
    assert client.has("f", expected)


def test_a_hole_behind_the_old_end_of_a_file(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"abc")
    fd = fs.open("f", os.O_RDWR)
    fs.pwrite(fd, b"z", 10)
    assert fs.read_all(fd) == b"abc" + bytes(7) + b"z"
    fs.close(fd)
    assert client.has("f", b"abc" + bytes(7) + b"z")


@pytest.mark.parametrize("size", [10, len(BIG)])
def test_truncate_down_then_up_leaves_zeros(fs: FsOps, client: ClientSide, size: int) -> None:
    data = BIG[:size]
    client.write("f", data)
    fd = fs.open("f", os.O_RDWR)
    fs.ftruncate(fd, 4)
    assert fs.read_all(fd) == data[:4]
    fs.ftruncate(fd, size)
    assert fs.read_all(fd) == data[:4] + bytes(size - 4)
    fs.pwrite(fd, b"!", 6)
    fs.close(fd)
    expected = data[:4] + b"\0\0!" + bytes(size - 7)
    assert client.has("f", expected)
    assert fs.read_file("f") == expected


@pytest.mark.parametrize("to", [0, 1, 999, 1000, 1001, 200_000])
def test_truncate_by_path_is_on_the_client_at_return(fs: FsOps, client: ClientSide, to: int) -> None:
    data = BIG[:1000]
    client.write("f", data)
    fs.truncate("f", to)
    assert client.has("f", data[:to] + bytes(max(0, to - 1000)))
    assert fs.stat("f").size == to


def test_truncate_refuses(fs: FsOps) -> None:
    fs.mkdir("folder")
    with fails(errno.EISDIR):
        fs.truncate("folder", 0)
    with fails(errno.ENOENT):
        fs.truncate("none", 0)


def test_sizes_beyond_four_gib(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    far = (4 << 30) + 5
    fs.pwrite(fd, b"far", far)
    assert fs.fstat(fd).size == far + 3
    assert fs.pread(fd, 10, far - 2) == b"\0\0far"
    assert fs.pread(fd, 4, 2 << 30) == bytes(4)
    fs.ftruncate(fd, 10)
    assert fs.fstat(fd).size == 10
    fs.pwrite(fd, b"x", 0)
    fs.close(fd)  # only now does it travel
    assert client.has("f", b"x" + bytes(9))


# --- several handles ---------------------------------------------------------


def test_two_handles_are_one_file(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"0123456789")
    writer, reader = fs.open("f", os.O_RDWR), fs.open("f", os.O_RDONLY)
    fs.pwrite(writer, b"AB", 2)
    assert fs.fstat(writer).size == 10
    late = fs.open("f", os.O_RDONLY)
    assert fs.pread(late, 10, 0) == b"01AB456789"
    fs.ftruncate(writer, 4)
    assert fs.fstat(late).size == 4
    fs.close(writer)
    assert client.has("f", b"01AB")
    fs.close(reader)
    fs.close(late)
    assert fs.read_file("f") == b"01AB"


def test_a_reader_that_was_there_first_sees_what_is_written(fs: FsOps, client: ClientSide) -> None:
    client.write("f", BIG)
    reader = fs.open("f", os.O_RDONLY)
    assert fs.pread(reader, 4, 0) == BIG[:4]
    writer = fs.open("f", os.O_WRONLY)
    fs.pwrite(writer, b"####", 0)
    assert fs.pread(reader, 4, 0) == b"####"
    fs.close(writer)
    fs.close(reader)
    assert client.has("f", b"####" + BIG[4:])


def test_fsync_brings_it_to_the_client(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"first", 0)
    fs.fsync(fd)
    assert client.has("f", b"first")
    fs.pwrite(fd, b"second", 5)
    assert client.has("f", b"first")
    fs.fsync(fd)
    assert client.has("f", b"firstsecond")
    fs.ftruncate(fd, 3)
    fs.fsync(fd)
    assert client.has("f", b"fir")
    fs.close(fd)
    assert client.has("f", b"fir")


def test_fsync_of_a_new_empty_file(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_WRONLY | os.O_CREAT)
    fs.fsync(fd)
    assert client.has("f", b"")
    fs.close(fd)


def test_fsync_of_a_hole(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    fs.ftruncate(fd, 200_000)
    fs.fsync(fd)
    assert client.has("f", bytes(200_000))
    assert fs.read_all(fd) == bytes(200_000)
    fs.close(fd)


def test_readers_and_writers_of_different_files_at_once(fs: FsOps, client: ClientSide) -> None:
    client.write("shared", BIG)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for size in (10, 5000, 200_000 + number):
                fs.write_file(f"w{number}", BIG[number : number + size])
        except BaseException as exc:
            errors.append(exc)

    def read(number: int) -> None:
        try:
            fd = fs.open("shared")
            for at in range(number * 1000, len(BIG), 150_000):
                assert fs.pread(fd, 1000, at) == BIG[at : at + 1000]
            fs.close(fd)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4) for work in (write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    for n in range(4):
        assert client.has(f"w{n}", BIG[n : n + 200_000 + n])
    assert client.names() == ["shared", "w0", "w1", "w2", "w3"]
