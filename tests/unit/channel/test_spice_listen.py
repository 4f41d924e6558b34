from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hvbridge.channel.spice_link import SpiceTransport, Timeouts
from hvbridge.channel.spice_listen import SpiceListenOpener
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout, ProtocolError, UsageError
from hvbridge.spice.endpoint import ACK_WINDOW, MAX_PAYLOAD
from tests.support import spice_peer as peer
from tests.support.certificates import Certificates, make_certificates
from tests.support.spice_peer import MAIN, WEBDAV, ClientEnd, SocketClient

QUICK = Timeouts(link=5, webdav=30, ping=10, silence=60, probe=5, guess=0.05)


@contextlib.contextmanager
def listening(timeouts: Timeouts = QUICK, **options: Any) -> Iterator[SpiceListenOpener]:
    opener = SpiceListenOpener("127.0.0.1", 0, timeouts=timeouts, **options)
    try:
        yield opener
    finally:
        opener.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


class Session:
    """A client of ours with both channels linked, and the transport that the opener gave for it."""

    def __init__(
        self,
        opener: SpiceListenOpener,
        stack: contextlib.ExitStack,
        *,
        password: bytes = b"",
        tls: ssl.SSLContext | None = None,
        acks: bool = True,
        pongs: bool = True,
    ) -> None:
        main = ClientEnd(MAIN, password=password, pongs=pongs)
        self.main = stack.enter_context(SocketClient(opener.port, main, tls=tls))
        self.main.until(lambda: main.session_id is not None)
        self.main_address = self.main.sock.getsockname()
        webdav = ClientEnd(WEBDAV, main.session_id or 0, password, acks=acks, pongs=pongs)
        self.webdav = stack.enter_context(SocketClient(opener.port, webdav, tls=tls))
        self.webdav.until(lambda: bool(webdav.messages) and webdav.messages[-1][0] == peer.PORT_INIT)
        self.transport: SpiceTransport = opener.open()
        stack.callback(self.transport.close)

    def hear(self, size: int, at_once: int = 1 << 16) -> tuple[bytes, int]:
        """``size`` bytes that the transport reads, and in how many reads; fewer at its end."""
        got, reads = b"", 0
        while len(got) < size and (data := self.transport.read(at_once)):
            assert len(data) <= at_once
            got += data
            reads += 1
        return got, reads

    def say(self, data: bytes) -> None:
        """Send it as the client, and see that the transport reads it."""
        self.send(data)
        assert self.hear(len(data))[0] == data

    def send(self, data: bytes) -> None:
        self.webdav.end.send(peer.C_DATA, data)
        self.webdav.flush()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as exits:
        yield exits


def link(opener: SpiceListenOpener, end: ClientEnd, tls: ssl.SSLContext | None = None) -> ClientEnd:
    """Run the link stage to its end, and hang up."""
    with SocketClient(opener.port, end, tls=tls) as client:
        client.until_result()
    return end


def eventually(done: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.005)


class TestTransport:
    def test_bytes_both_ways(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            session.say(b"ping")
            session.transport.write(b"pong", 5)
            session.webdav.until(lambda: session.webdav.end.data == b"pong")

    def test_it_says_who_is_there(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            host, port = session.webdav.sock.getsockname()
            assert session.transport.description == f"SPICE client {host}:{port}"

    @pytest.mark.parametrize(
        ("size", "messages"),
        [(1, [1]), (MAX_PAYLOAD, [MAX_PAYLOAD]), (2 * MAX_PAYLOAD + 3, [MAX_PAYLOAD, MAX_PAYLOAD, 3])],
    )
    def test_a_write_is_as_few_messages_as_can_be(
        self, stack: contextlib.ExitStack, size: int, messages: list[int]
    ) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            data = os.urandom(size)
            session.transport.write(data, 5)
            session.webdav.until(lambda: len(session.webdav.end.data) == size)
            received = [body for kind, body in session.webdav.end.messages if kind == peer.DATA]
            assert [len(body) for body in received] == messages
            assert b"".join(received) == data

    def test_many_messages_arrive_as_few_reads(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            for _ in range(1000):
                session.webdav.end.send(peer.C_DATA, b"0123456789")
            session.webdav.flush()
            data, reads = session.hear(10_000)
            assert data == b"0123456789" * 1000
            assert reads < 100

    def test_a_read_gives_no_more_than_asked(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            session.send(b"x" * 1000)
            assert session.hear(1000, at_once=100)[0] == b"x" * 1000

    def test_data_before_the_port_closes_are_not_lost(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            session.webdav.end.send(peer.C_DATA, b"last")
            session.webdav.end.send(peer.C_PORT_EVENT, b"\x01")
            session.webdav.flush()
            assert session.hear(100)[0] == b"last"

    @pytest.mark.parametrize("which", ["main", "webdav"])
    def test_it_ends_with_either_channel(
        self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor, which: str
    ) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            reading = pool.submit(session.transport.read, 100)
            getattr(session, which).sock.close()
            assert reading.result(5) == b""

    def test_close_wakes_the_reader_and_hangs_up(
        self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor
    ) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            reading = pool.submit(session.transport.read, 100)
            session.transport.close()
            session.transport.close()
            assert reading.result(5) == b""
            session.main.until_closed()
            session.webdav.until_closed()
            with pytest.raises(ChannelClosed):
                session.transport.write(b"x", 1)

    def test_a_broken_protocol_is_the_clients_fault(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            session.webdav.end.send(102, b"compressed")
            session.webdav.flush()
            with pytest.raises(ProtocolError, match="compressed"):
                session.transport.read(100)

    def test_a_client_that_takes_nothing(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)  # nobody reads its socket from here on
            with pytest.raises(ChannelTimeout):
                for _ in range(10_000):
                    session.transport.write(bytes(MAX_PAYLOAD), 0.2)

    def test_a_client_that_acknowledges_nothing(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack, acks=False)
            with pytest.raises(ChannelTimeout, match="acknowledged nothing"):
                for _ in range(2 * ACK_WINDOW):
                    session.transport.write(b"x", 0.2)

    def test_an_acknowledgement_lets_a_writer_go_on(
        self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor
    ) -> None:
        with listening() as opener:
            session = Session(opener, stack, acks=False)
            for _ in range(2 * ACK_WINDOW - 1):
                session.transport.write(b"x", 5)
            reading = pool.submit(session.transport.read, 100)
            writing = pool.submit(session.transport.write, b"x", 10)
            session.webdav.end.send(peer.C_ACK)
            session.webdav.flush()
            writing.result(5)
            session.transport.close()
            assert reading.result(5) == b""

    def test_a_blocked_writer_does_not_starve_the_reader(
        self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor
    ) -> None:
        with listening() as opener:
            session = Session(opener, stack)

            def fill() -> None:
                for _ in range(10_000):
                    session.transport.write(bytes(MAX_PAYLOAD), 60)

            writing = pool.submit(fill)
            for number in range(200):
                session.say(b"%04d" % number)
            assert not writing.done()
            session.transport.close()
            with pytest.raises(ChannelClosed):
                writing.result(5)


class TestPassword:
    def test_right_on_both_channels(self, stack: contextlib.ExitStack) -> None:
        with listening(password="secret") as opener:
            session = Session(opener, stack, password=b"secret")
            session.say(b"in")

    @pytest.mark.parametrize("given", [b"wrong", b""])
    def test_wrong(self, given: bytes) -> None:
        with listening(password="secret") as opener:
            assert link(opener, ClientEnd(MAIN, password=given)).result == 7
            assert link(opener, ClientEnd(MAIN, password=b"secret")).linked

    def test_the_webdav_channel_needs_it_too(self) -> None:
        with listening(password="secret") as opener:
            main = ClientEnd(MAIN, password=b"secret")
            with SocketClient(opener.port, main) as client:
                client.until(lambda: main.session_id is not None)
                assert link(opener, ClientEnd(WEBDAV, main.session_id or 0, b"guess")).result == 7

    def test_a_recorded_ticket_is_worth_nothing(self) -> None:
        with listening(password="secret") as opener:
            keys = {link(opener, ClientEnd(MAIN, password=b"x")).public_key for _ in range(3)}
            assert len(keys) == 3

    def test_guessing_is_slow(self) -> None:
        with listening(Timeouts(guess=0.3), password="secret") as opener:
            started = time.monotonic()
            link(opener, ClientEnd(MAIN, password=b"wrong"))
            assert time.monotonic() - started >= 0.3

    @pytest.mark.parametrize("password", ["", "x" * 61, "ü" * 31, "a\0b"])
    def test_passwords_that_spice_cannot_carry(self, password: str) -> None:
        with pytest.raises(UsageError, match="1 to 60 bytes"):
            SpiceListenOpener("127.0.0.1", 0, password=password)


class TestOneClient:
    def test_a_second_one_is_told(
        self, stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
    ) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            answering = threading.Thread(target=session.main.until_closed)
            answering.start()
            assert link(opener, ClientEnd(MAIN)).error == 9
            session.say(b"still here")
            session.transport.close()
            answering.join(5)
            host, port = session.main_address
            assert f"one client at a time, and {host}:{port} is connected" in caplog.text

    def test_the_next_is_taken_when_the_first_left(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            for number in range(3):
                with contextlib.ExitStack() as one:
                    session = Session(opener, one)
                    session.say(b"%d" % number)
                    session.main.sock.close()
                    assert session.transport.read(10) == b""

    def test_a_dead_first_one_makes_room(self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor) -> None:
        with listening(Timeouts(probe=0.2)) as opener:
            session = Session(opener, stack, pongs=False)
            reading = pool.submit(session.transport.read, 10)
            with contextlib.ExitStack() as other:
                successor = Session(opener, other)
                assert reading.result(5) == b""
                successor.say(b"me now")

    def test_a_stranger_cannot_take_a_frozen_clients_place(self, stack: contextlib.ExitStack) -> None:
        with listening(Timeouts(probe=0.1, guess=0), password="secret") as opener:
            session = Session(opener, stack, password=b"secret", pongs=False)
            assert link(opener, ClientEnd(MAIN, password=b"guess")).result == 7
            session.say(b"back again")
            assert link(opener, ClientEnd(MAIN, password=b"secret")).linked

    def test_two_that_come_at_once(self) -> None:
        with listening() as opener, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(SocketClient(opener.port, ClientEnd(MAIN))) for _ in range(2)]
            for client in clients:
                client.flush()
                while client.end.error is None:
                    client.end.receive(client.sock.recv(4096))
            for client in clients:  # both have their key before either sends its ticket
                client.until_result()
            assert [client.end.result for client in clients] == [0, 9]

    @pytest.mark.parametrize("connection_id", [0, 1, 2**32 - 1])
    def test_a_webdav_channel_without_a_session(self, connection_id: int) -> None:
        with listening() as opener:
            assert link(opener, ClientEnd(WEBDAV, connection_id)).error == 8

    def test_a_webdav_channel_of_another_session(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            assert link(opener, ClientEnd(WEBDAV, (session.main.end.session_id or 0) ^ 1)).error == 8

    def test_a_second_webdav_channel(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            assert link(opener, ClientEnd(WEBDAV, session.main.end.session_id or 0)).error == 9
            session.say(b"unharmed")

    @pytest.mark.parametrize("channel", [(2, 0), (10, 0), (11, 1), (1, 1), (255, 255)])
    def test_channels_that_there_are_not(self, channel: tuple[int, int]) -> None:
        with listening() as opener:
            assert link(opener, ClientEnd(channel)).error == 9

    def test_migration_is_refused(self) -> None:
        with listening() as opener:
            assert link(opener, ClientEnd(MAIN, connection_id=77)).error == 8


class TestTime:
    def test_the_link_stage_has_a_deadline(self) -> None:
        with listening(Timeouts(link=0.3)) as opener:
            silent = socket.create_connection(("127.0.0.1", opener.port), 5)
            trickling = socket.create_connection(("127.0.0.1", opener.port), 5)
            with silent, trickling:
                for byte in peer.link_request()[:20]:
                    with contextlib.suppress(OSError):
                        trickling.send(bytes([byte]))
                        trickling.settimeout(0.05)
                        trickling.recv(1)
                trickling.settimeout(5)
                assert silent.recv(1) == b""
                with contextlib.suppress(ConnectionResetError):
                    assert trickling.recv(1) == b""

    def test_strangers_are_limited_in_number(self) -> None:
        with listening(max_unauthenticated=3) as opener, contextlib.ExitStack() as stack:
            strangers = [
                stack.enter_context(socket.create_connection(("127.0.0.1", opener.port), 5)) for _ in range(3)
            ]
            with socket.create_connection(("127.0.0.1", opener.port), 5) as one_more:
                assert one_more.recv(1) == b""
            strangers[0].close()
            eventually(lambda: link_works(opener))

    def test_a_client_without_webdav_does_not_keep_the_place(self) -> None:
        with listening(Timeouts(webdav=0.2, ping=0.1)) as opener:
            main = ClientEnd(MAIN)
            with SocketClient(opener.port, main) as client:
                client.until(lambda: main.session_id is not None)
                client.until_closed()

    def test_silence_ends_a_session(self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor) -> None:
        with listening(Timeouts(ping=0.1, silence=0.4)) as opener:
            session = Session(opener, stack, pongs=False)
            reading = pool.submit(session.transport.read, 10)
            session.main.until_closed()
            assert peer.PING in [kind for kind, _ in session.main.end.messages]
            assert reading.result(5) == b""

    def test_pongs_keep_a_session(self, stack: contextlib.ExitStack, pool: ThreadPoolExecutor) -> None:
        with listening(Timeouts(ping=0.05, silence=0.6)) as opener:
            session = Session(opener, stack)
            reading: Future[bytes] = pool.submit(session.transport.read, 10)
            started = time.monotonic()
            answering = [pool.submit(channel.until_closed) for channel in (session.main, session.webdav)]
            for channel in (session.main, session.webdav):
                eventually(lambda end=channel.end: pings(end) > 8)  # type: ignore[misc]
            eventually(lambda: time.monotonic() - started > 0.8)
            assert not reading.done()
            session.transport.close()
            for future in answering:
                future.result(5)


def pings(end: ClientEnd) -> int:
    return sum(kind == peer.PING for kind, _ in end.messages)


def link_works(opener: SpiceListenOpener) -> bool:
    end = ClientEnd(MAIN)
    with SocketClient(opener.port, end) as client:
        try:
            client.until_result()
        except (AssertionError, ConnectionError):
            return False
    return end.linked


class TestTls:
    @pytest.fixture
    def trusting(self, certificates: Certificates) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=certificates.authority)

    @pytest.fixture
    def opener(self, certificates: Certificates) -> Iterator[SpiceListenOpener]:
        with listening(tls_cert=certificates.cert, tls_key=certificates.key) as opener:
            yield opener

    def test_bytes_both_ways_at_once(
        self,
        opener: SpiceListenOpener,
        trusting: ssl.SSLContext,
        stack: contextlib.ExitStack,
        pool: ThreadPoolExecutor,
    ) -> None:
        session = Session(opener, stack, tls=trusting)
        data = os.urandom(4 << 20)

        def read_all() -> bytes:
            got = bytearray()
            while len(got) < len(data):
                got += session.transport.read(1 << 18)
            return bytes(got)

        reading = pool.submit(read_all)
        for at in range(0, len(data), 1 << 16):
            session.webdav.end.send(peer.C_DATA, data[at : at + (1 << 16)])
        writing = pool.submit(session.transport.write, data, 10)
        session.webdav.until(lambda: len(session.webdav.end.data) == len(data))
        writing.result(10)
        assert session.webdav.end.data == data
        assert reading.result(10) == data

    def test_close_wakes_the_reader(
        self,
        opener: SpiceListenOpener,
        trusting: ssl.SSLContext,
        stack: contextlib.ExitStack,
        pool: ThreadPoolExecutor,
    ) -> None:
        session = Session(opener, stack, tls=trusting)
        reading = pool.submit(session.transport.read, 100)
        session.transport.close()
        assert reading.result(5) == b""

    def test_who_comes_without_it_is_sent_to_it(self, opener: SpiceListenOpener) -> None:
        assert link(opener, ClientEnd(MAIN)).error == 5

    def test_a_handshake_that_stalls_keeps_nobody_out(
        self, opener: SpiceListenOpener, trusting: ssl.SSLContext
    ) -> None:
        with socket.create_connection(("127.0.0.1", opener.port), 5) as stalled:
            stalled.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello
            assert link(opener, ClientEnd(MAIN), trusting).linked

    def test_a_handshake_has_a_deadline(self, certificates: Certificates) -> None:
        options = {"tls_cert": certificates.cert, "tls_key": certificates.key}
        with listening(Timeouts(link=0.2), **options) as opener:
            with socket.create_connection(("127.0.0.1", opener.port), 5) as stalled:
                stalled.sendall(b"\x16\x03\x01\x02\x00\x01")
                with contextlib.suppress(ConnectionResetError):
                    assert stalled.recv(100) == b""

    def test_nonsense_is_no_handshake(self, opener: SpiceListenOpener, trusting: ssl.SSLContext) -> None:
        with socket.create_connection(("127.0.0.1", opener.port), 5) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(1000):
                    pass
        assert link(opener, ClientEnd(MAIN), trusting).linked

    def test_both_files_are_needed(self, certificates: Certificates) -> None:
        with pytest.raises(UsageError, match="both"):
            SpiceListenOpener("127.0.0.1", 0, tls_cert=certificates.cert)

    def test_files_that_do_not_serve(self, certificates: Certificates, tmp_path: Path) -> None:
        for cert, key in [(certificates.authority, certificates.key), (tmp_path / "none", certificates.key)]:
            with pytest.raises(UsageError, match="cannot use the certificate"):
                SpiceListenOpener("127.0.0.1", 0, tls_cert=cert, tls_key=key)


class TestOpener:
    def test_the_real_port_is_known(self) -> None:
        with listening() as opener:
            assert opener.port != 0
            assert opener.url == f"spice-listen://127.0.0.1:{opener.port}"
            assert not opener.once

    def test_close_wakes_open(self, pool: ThreadPoolExecutor) -> None:
        with listening() as opener:
            opening = pool.submit(opener.open)
            opener.close()
            with pytest.raises(ChannelClosed):
                opening.result(5)
            with pytest.raises(ChannelClosed):
                opener.open()

    def test_close_hangs_up_and_frees_the_port(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            session = Session(opener, stack)
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", opener.port), 5))
            opener.close()
            assert session.transport.read(10) == b""
            session.main.until_closed()
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
            with contextlib.closing(SpiceListenOpener("127.0.0.1", opener.port)) as again:
                assert link(again, ClientEnd(MAIN)).linked

    def test_a_client_that_left_before_open_is_forgotten(self, pool: ThreadPoolExecutor) -> None:
        with listening() as opener:
            main = ClientEnd(MAIN)
            with SocketClient(opener.port, main) as one:
                one.until(lambda: main.session_id is not None)
                webdav = ClientEnd(WEBDAV, main.session_id or 0)
                with SocketClient(opener.port, webdav) as two:
                    two.until(lambda: bool(webdav.messages))
            eventually(lambda: opener._client is None)
            with contextlib.ExitStack() as stack:
                session = Session(opener, stack)
                session.say(b"alive")

    def test_a_taken_address(self) -> None:
        with listening() as opener, pytest.raises(ChannelError, match="already in use"):
            SpiceListenOpener("127.0.0.1", opener.port)

    def test_a_name_that_nobody_has(self) -> None:
        with pytest.raises(UsageError, match="cannot resolve"):
            SpiceListenOpener("no-such-host.invalid", 0)

    def test_it_warns_of_strangers(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            SpiceListenOpener("0.0.0.0", 0).close()
            assert "set a password" in caplog.text
            caplog.clear()
            SpiceListenOpener("127.0.0.1", 0).close()
            SpiceListenOpener("0.0.0.0", 0, password="secret").close()
            assert caplog.text == ""

    def test_it_leaves_no_threads(self, stack: contextlib.ExitStack) -> None:
        with listening() as opener:
            Session(opener, stack)
        eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("hvbridge-spice")])

    def test_ports_and_ids_are_not_guessable(self) -> None:
        with listening() as opener:
            ids = set()
            for _ in range(5):
                end = ClientEnd(MAIN)
                with SocketClient(opener.port, end) as client:
                    client.until(lambda end=end: end.session_id is not None)  # type: ignore[misc]
                ids.add(end.session_id)
                eventually(lambda: opener._client is None)
            assert len(ids) == 5
            assert 0 not in ids


def test_pings_carry_microseconds(stack: contextlib.ExitStack, pool: ThreadPoolExecutor) -> None:
    with listening(Timeouts(ping=0.05)) as opener:
        session = Session(opener, stack)
        before = time.monotonic_ns() // 1000
        session.main.until(lambda: pings(session.main.end) >= 1)
        (_, body) = next(message for message in session.main.end.messages if message[0] == peer.PING)
        _, stamp = struct.unpack("<IQ", body)
        assert before - 1_000_000 <= stamp <= time.monotonic_ns() // 1000
