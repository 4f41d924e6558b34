"""Channels over ptys, pipes and inherited descriptors."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvbridge.channel.base import Transport
from hvbridge.channel.files import FileTransport, _end
from hvbridge.channel.opening import open_channel
from hvbridge.channel.session import Session, spawn
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout, UsageError
from hvbridge.spice.mux import Role
from tests.support.pipes import eventually

T = 10.0
EVERY_BYTE = bytes(range(256))


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The master's descriptor, and the slave's path, with nobody on the slave."""
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    yield master, path
    with contextlib.suppress(OSError):  # a test may have closed it
        os.close(master)


def read_exactly(transport: Transport, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = transport.read(1 << 20)
        assert piece
        data += piece
    return data


def pull(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


# --- character devices --------------------------------------------------


def test_a_pty_is_raw_all_bytes_pass(terminal: tuple[int, str]) -> None:
    master, path = terminal
    transport = open_channel(f"chardev://{path}").open()
    os.write(master, EVERY_BYTE)
    assert read_exactly(transport, 256) == EVERY_BYTE
    transport.write(EVERY_BYTE, T)
    assert pull(master, 256) == EVERY_BYTE  # and nothing was echoed in between
    assert termios.tcgetattr(master)[3] & (termios.ECHO | termios.ICANON) == 0
    transport.close()


def test_the_masters_end_is_the_end(terminal: tuple[int, str]) -> None:
    master, path = terminal
    transport = open_channel(f"chardev://{path}").open()
    os.write(master, b"last")
    assert transport.read(100) == b"last"
    os.close(master)
    assert transport.read(100) == b""
    with pytest.raises(ChannelClosed):
        transport.write(b"x", T)
    transport.close()


def test_a_device_is_opened_again_after_its_end(terminal: tuple[int, str]) -> None:
    master, path = terminal
    opener = open_channel(f"chardev://{path}")
    assert not opener.once
    for word in (b"one", b"two"):
        transport = opener.open()
        os.write(master, word)
        assert transport.read(10) == word
        transport.close()
    opener.close()
    with pytest.raises(ChannelClosed):
        opener.open()


def test_close_wakes_a_read_of_a_device(terminal: tuple[int, str]) -> None:
    _master, path = terminal
    transport = open_channel(f"chardev://{path}").open()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(transport.read(10)))
    reader.start()
    transport.close()
    transport.close()
    reader.join(T)
    assert got == [b""]
    assert transport.read(10) == b""
    with pytest.raises(ChannelClosed):
        transport.write(b"x", T)


def test_a_device_that_takes_nothing_times_out(terminal: tuple[int, str]) -> None:
    _master, path = terminal
    transport = open_channel(f"chardev://{path}").open()
    with pytest.raises(ChannelTimeout, match="took nothing"):
        transport.write(bytes(1 << 20), 0.1)
    transport.close()


def test_a_whole_mux_over_a_pty(terminal: tuple[int, str]) -> None:
    """The other end is QEMU's side: here a session on the master."""
    master, path = terminal
    host = Session(open_channel(f"chardev://{path}").open(), Role.HOST)
    far = FileTransport(_end(os.dup(master), writing=False), _end(os.dup(master), writing=True), "master")
    share = Session(far, Role.SHARE)
    spawn("test", host.run)
    spawn("test", share.run)
    stream = host.open_stream()
    payload = os.urandom(200_000)
    spawn("test", lambda: stream.write(payload))
    other = share.accept()
    assert other is not None
    data = b""
    while len(data) < len(payload):
        data += other.read(1 << 20, T)
    assert data == payload
    host.close()
    share.close()


def test_what_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="cannot open"):
        open_channel(f"chardev://{tmp_path}/missing").open()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ChannelError, match="no character device"):
        open_channel(f"chardev://{tmp_path}/file").open()


# --- inherited descriptors ----------------------------------------------


def test_an_inherited_socket() -> None:
    ours, theirs = socket.socketpair()
    opener = open_channel(f"fd:{theirs.detach()}")
    assert opener.once
    transport = opener.open()
    ours.sendall(b"hello")
    assert transport.read(100) == b"hello"
    payload = os.urandom(2 << 20)
    writer = threading.Thread(target=transport.write, args=(payload, T))
    writer.start()
    data = b""
    while len(data) < len(payload):
        data += ours.recv(1 << 20)
    assert data == payload
    writer.join(T)
    with pytest.raises(ChannelClosed):
        opener.open()
    ours.close()
    assert transport.read(100) == b""
    transport.close()


def test_the_flags_of_an_inherited_socket_stay() -> None:
    ours, theirs = socket.socketpair()
    shared = theirs.dup()
    transport = open_channel(f"fd:{theirs.detach()}").open()
    with pytest.raises(ChannelTimeout):
        transport.write(bytes(16 << 20), 0.05)
    assert os.get_blocking(shared.fileno())
    assert not os.get_inheritable(shared.fileno())
    transport.close()
    ours.close()
    shared.close()


def test_an_opener_that_was_closed_opens_nothing() -> None:
    ours, theirs = socket.socketpair()
    opener = open_channel(f"fd:{theirs.fileno()}")
    opener.close()
    with pytest.raises(ChannelClosed):
        opener.open()
    ours.close()
    theirs.close()


def test_descriptors_of_no_use(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(UsageError, match="one way only"):
        open_channel(f"fd:{reading}")
    os.close(reading)
    os.close(writing)
    with pytest.raises(UsageError, match="not open"):
        open_channel(f"fd:{reading}")
    with pytest.raises(UsageError, match="write stdio:"):
        open_channel("fd:1")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(UsageError, match="file on disk"):
        open_channel(f"fd:{fd}")
    os.close(fd)


@pytest.mark.parametrize("renewed", [True, False])
def test_pipes_in_both_directions(renewed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With descriptors of our own, and where /proc gives none, without blocking in a shared one."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    if not renewed:
        opened = os.open

        def no_proc(path: str, flags: int, mode: int = 0o777) -> int:
            if str(path).startswith("/proc"):
                raise PermissionError
            return opened(path, flags, mode)

        monkeypatch.setattr(os, "open", no_proc)
    transport = FileTransport(_end(in_read, writing=False), _end(out_write, writing=True), "pipes")
    payload = os.urandom(3 << 20)
    writer = threading.Thread(target=transport.write, args=(payload, T))
    writer.start()
    assert pull(out_read, len(payload)) == payload
    writer.join(T)
    with pytest.raises(ChannelTimeout):
        transport.write(bytes(4 << 20), 0.1)
    os.write(in_write, b"in")
    assert transport.read(10) == b"in"
    os.close(in_write)
    assert transport.read(10) == b""
    os.close(out_read)
    with pytest.raises(ChannelClosed):
        transport.write(b"x", T)
    transport.close()


# --- stdio --------------------------------------------------------------

ECHO = """
import os, sys
from hvbridge.channel.opening import open_channel
opener = open_channel("stdio:")
print("a stray line")
os.system("echo a stray child; cat")  # inherits fd 0 and 1
transport = opener.open()
while data := transport.read(65536):
    transport.write(data, 10)
print("the end", file=sys.stderr)
"""


def test_stdio_belongs_to_the_channel_alone() -> None:
    payload = os.urandom(1 << 20)
    done = subprocess.run(
        [sys.executable, "-c", ECHO], input=payload, capture_output=True, timeout=30, check=True
    )
    assert done.stdout == payload
    assert b"a stray line" in done.stderr
    assert b"a stray child" in done.stderr
    assert b"the end" in done.stderr


def test_stdio_over_a_socket_as_sshd_gives_it() -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE
    ) as process:
        theirs.close()
        payload = os.urandom(1 << 20)
        spawn("test", lambda: ours.sendall(payload))
        data = b""
        while len(data) < len(payload):
            data += ours.recv(1 << 20)
        assert data == payload
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        assert process.wait(T) == 0
    ours.close()


def test_stdio_is_not_for_terminals() -> None:
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", ECHO], stdin=slave, stdout=slave, stderr=subprocess.PIPE, timeout=30
    )
    os.close(master)
    os.close(slave)
    assert done.returncode != 0
    assert b"standard input is a terminal: connect stdio: by a pipe" in done.stderr


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_all_descriptors_are_released() -> None:
    before = open_descriptors()
    for _ in range(20):
        ours, theirs = socket.socketpair()
        transport = open_channel(f"fd:{theirs.detach()}").open()
        transport.close()
        ours.close()
    del transport
    eventually(lambda: open_descriptors() <= before)
