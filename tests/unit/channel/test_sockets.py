"""Channels over unix and TCP sockets."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvbridge.channel.base import Opener, Transport
from hvbridge.channel.opening import open_channel, read_password
from hvbridge.channel.url import TcpListenURL, parse
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout, UsageError
from tests.support.pipes import pair

T = 10.0


@pytest.fixture(params=["unix", "tcp", "tcp6"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Opener, Opener]]:
    """A listening opener, and one that connects to it."""
    if request.param == "unix":
        listener = open_channel(f"unix-listen://{tmp_path}/s")
    else:
        host = "127.0.0.1" if request.param == "tcp" else "[::1]"
        try:
            listener = open_channel(f"tcp-listen://{host}:0")
        except ChannelError:
            pytest.skip("no IPv6 on this machine")
    connector = open_channel(listener.url.replace("-listen", ""))
    yield listener, connector
    connector.close()
    listener.close()


def connected(ends: tuple[Opener, Opener]) -> tuple[Transport, Transport]:
    listener, connector = ends
    near = connector.open()
    return near, listener.open()


def read_exactly(transport: Transport, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = transport.read(1 << 20)
        assert piece
        data += piece
    return data


def test_bytes_pass_both_ways(ends: tuple[Opener, Opener]) -> None:
    near, far = connected(ends)
    payload = os.urandom(4 << 20)
    writer = threading.Thread(target=near.write, args=(payload, T))
    writer.start()
    assert read_exactly(far, len(payload)) == payload
    writer.join(T)
    far.write(b"back", T)
    assert near.read(100) == b"back"
    near.close()
    far.close()


def test_the_end_of_the_peer_is_an_empty_read(ends: tuple[Opener, Opener]) -> None:
    near, far = connected(ends)
    near.close()
    near.close()
    assert far.read(100) == b""
    with pytest.raises(ChannelClosed):
        for _ in range(100):
            far.write(b"x" * 65536, T)
    assert near.read(1) == b""
    with pytest.raises(ChannelClosed):
        near.write(b"x", T)
    far.close()


def test_close_from_another_thread_wakes_a_read(ends: tuple[Opener, Opener]) -> None:
    near, far = connected(ends)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(near.read(100)))
    reader.start()
    near.close()
    reader.join(T)
    assert got == [b""]
    far.close()


def test_a_peer_that_takes_nothing_times_out(ends: tuple[Opener, Opener]) -> None:
    near, far = connected(ends)
    with pytest.raises(ChannelTimeout, match="took nothing for"):
        near.write(bytes(64 << 20), 0.1)
    near.close()
    far.close()


def test_the_timeout_counts_without_progress_only() -> None:
    near, far = pair()
    size = 24 << 20
    done = threading.Event()

    def trickle() -> None:
        left = size
        while left:
            left -= len(far.read(256 << 10))
            done.wait(0.01)  # 96 pieces: a second in all, ten times the timeout

    reader = threading.Thread(target=trickle)
    reader.start()
    near.write(bytes(size), 0.2)
    done.set()
    reader.join(T)
    near.close()
    far.close()


def test_close_from_another_thread_wakes_a_write() -> None:
    near, far = pair()
    threading.Timer(0.05, near.close).start()
    with pytest.raises(ChannelClosed):
        near.write(bytes(64 << 20), T)
    far.close()


def test_a_second_peer_is_turned_away_and_the_next_one_taken(
    ends: tuple[Opener, Opener], caplog: pytest.LogCaptureFixture
) -> None:
    listener, connector = ends
    near, far = connected(ends)
    second = connector.open()
    assert second.read(1) == b""
    assert "turned away" in caplog.text
    second.close()
    near.write(b"still here", T)
    assert far.read(100) == b"still here"
    near.close()
    third = connector.open()  # the listener's side has not noticed the end yet
    again = listener.open()
    third.write(b"me", T)
    assert again.read(10) == b"me"
    for transport in (far, third, again):
        transport.close()


def test_a_peer_that_gave_up_waiting_gives_its_place_away(ends: tuple[Opener, Opener]) -> None:
    listener, connector = ends
    near, far = connected(ends)
    far.close()
    near.close()
    connector.open().close()  # waits for the next open(), and leaves
    patient = connector.open()
    taken: list[bytes] = []

    def serve() -> None:
        while not taken:
            if data := listener.open().read(10):
                taken.append(data)

    server = threading.Thread(target=serve)
    server.start()
    try:
        patient.write(b"here", T)
    except ChannelClosed:  # came before the first one's end was seen
        patient = connector.open()
        patient.write(b"here", T)
    server.join(T)
    assert taken == [b"here"]
    patient.close()


def test_close_wakes_open(ends: tuple[Opener, Opener]) -> None:
    listener, connector = ends
    threading.Timer(0.02, listener.close).start()
    with pytest.raises(ChannelClosed):
        listener.open()
    with pytest.raises(ChannelClosed):
        listener.open()
    listener.close()
    connector.close()
    with pytest.raises(ChannelClosed):
        connector.open()


def test_nobody_listens(ends: tuple[Opener, Opener]) -> None:
    listener, connector = ends
    listener.close()
    with pytest.raises(ChannelError, match="cannot connect to"):
        connector.open()
    assert not connector.once


def test_a_peer_may_come_before_open_and_speak(ends: tuple[Opener, Opener]) -> None:
    listener, connector = ends
    near = connector.open()
    near.write(b"early", T)
    far = listener.open()
    assert far.read(10) == b"early"
    near.close()
    far.close()


# --- unix ---------------------------------------------------------------


def test_the_socket_has_its_mode_and_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = open_channel(f"unix-listen://{path}?mode=0660")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    listener.close()
    assert not path.exists()
    listener.close()


def test_a_private_mode_is_the_default(tmp_path: Path) -> None:
    listener = open_channel(f"unix-listen://{tmp_path}/s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    listener.close()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    listener = open_channel(f"unix-listen://{path}")
    near, far = connected((listener, open_channel(f"unix://{path}")))
    near.close()
    far.close()
    listener.close()


def test_a_living_socket_is_not(tmp_path: Path) -> None:
    first = open_channel(f"unix-listen://{tmp_path}/s")
    with pytest.raises(ChannelError, match="somebody listens"):
        open_channel(f"unix-listen://{tmp_path}/s")
    near = open_channel(f"unix://{tmp_path}/s").open()
    near.close()
    first.close()


def test_anothers_socket_is_left_at_the_close(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = open_channel(f"unix-listen://{path}")
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.read_text() == "somebody else's"


def test_paths_that_cannot_be_listened_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no socket: choose another"):
        open_channel(f"unix-listen://{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(UsageError, match="create the folder"):
        open_channel(f"unix-listen://{tmp_path}/missing/s")


def test_the_description_tells_who_connected(tmp_path: Path) -> None:
    listener = open_channel(f"unix-listen://{tmp_path}/s")
    near, far = connected((listener, open_channel(f"unix://{tmp_path}/s")))
    assert f"pid {os.getpid()}, uid {os.getuid()}" in far.description
    near.close()
    far.close()
    listener.close()


# --- tcp ----------------------------------------------------------------


def test_port_0_becomes_a_real_one() -> None:
    listener = open_channel(TcpListenURL("127.0.0.1", 0))
    url = parse(listener.url)
    assert isinstance(url, TcpListenURL)
    assert url.port > 0
    with pytest.raises(ChannelError, match="choose another address or port"):
        open_channel(url)
    listener.close()
    open_channel(url).close()  # free again at once


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(ChannelError, match="cannot find nobody\\.invalid"):
        open_channel("tcp://nobody.invalid:1").open()


def test_tcp_sends_at_once_and_notices_a_dead_peer() -> None:
    listener = open_channel("tcp-listen://127.0.0.1:0")
    near, far = connected((listener, open_channel(listener.url.replace("-listen", ""))))
    for transport in (near, far):
        sock = transport._sock  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
        transport.close()
    listener.close()


# --- opening ------------------------------------------------------------


def test_plain_http_is_no_channel() -> None:
    with pytest.raises(UsageError, match="no mux"):
        open_channel("http://127.0.0.1/")


def test_password_files(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(UsageError, match="cannot read"):
        read_password(path)
    path.write_text("wörd\nmore\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_password(path)
    path.chmod(0o600)
    assert read_password(path) == "wörd"
    path.write_bytes(b"dos\r\n")
    assert read_password(path) == "dos"
    path.write_bytes(b"\n")
    with pytest.raises(UsageError, match="empty"):
        read_password(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match="UTF-8"):
        read_password(path)


def test_missing_certificates_are_named(tmp_path: Path) -> None:
    url = f"spice-listen://127.0.0.1:0?tls-cert={tmp_path}/c&tls-key={tmp_path}/k"
    with pytest.raises(UsageError, match=f"{tmp_path}/c"):
        open_channel(url)


def test_spice_listen_opens() -> None:
    opener = open_channel("spice-listen://127.0.0.1:0")
    try:
        assert opener.url.startswith("spice-listen://127.0.0.1:")
        assert not opener.once
    finally:
        opener.close()
