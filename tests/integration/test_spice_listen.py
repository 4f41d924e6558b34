"""``spice-listen://`` and the real client: spice-gtk, serving a folder with its phodav."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hvbridge.channel.channel import Channel, State
from hvbridge.channel.session import Session, Stream, spawn
from hvbridge.channel.spice_link import SpiceTransport, Timeouts
from hvbridge.channel.spice_listen import SpiceListenOpener
from hvbridge.spice.mux import Role
from tests.support import spice_gtk
from tests.support.certificates import Certificates, make_certificates
from tests.support.spice_gtk import SpiceClient

pytestmark = pytest.mark.peers

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture(scope="module", autouse=True)
def _real_client() -> None:
    spice_gtk.require()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "hello.txt").write_bytes(b"hello from the client\n")
    return tmp_path / "shared"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def opener() -> Iterator[SpiceListenOpener]:
    with contextlib.closing(SpiceListenOpener("127.0.0.1", 0)) as listening:
        yield listening


def listening_with_tls(
    certificates: Certificates, password: str | None = None
) -> contextlib.closing[SpiceListenOpener]:
    return contextlib.closing(
        SpiceListenOpener(
            "127.0.0.1", 0, password=password, tls_cert=certificates.cert, tls_key=certificates.key
        )
    )


def uri(opener: SpiceListenOpener) -> str:
    return f"spice://127.0.0.1:{opener.port}"


def open_soon(opener: SpiceListenOpener, timeout: float = 20.0) -> SpiceTransport:
    """``opener.open()`` with an end."""
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(opener.open)
        try:
            return opening.result(timeout)
        except TimeoutError:
            opener.close()
            raise AssertionError(f"no client's port within {timeout:g} s") from None


@contextlib.contextmanager
def session_on(transport: SpiceTransport) -> Iterator[Session]:
    session = Session(transport, Role.HOST)
    thread = spawn("test-session", session.run)
    try:
        yield session
    finally:
        session.close()
        thread.join(10)


class Http:
    """Just enough HTTP over one stream to see that bytes pass unharmed."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._kept = b""

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: share", f"Content-Length: {len(body)}", *headers, "", ""]
        self.stream.write("\r\n".join(lines).encode() + body, 30)
        head = self._until(b"\r\n\r\n").decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), self._exactly(int(fields.get("content-length", 0)))

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._kept:
            self._more()
        head, _, self._kept = self._kept.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        chunks, have = [self._kept[:size]], len(self._kept[:size])
        self._kept = self._kept[size:]
        while have < size:
            chunks.append(self.stream.read(size - have, 30))
            assert chunks[-1], f"the stream ended {size - have} bytes early"
            have += len(chunks[-1])
        return b"".join(chunks)

    def _more(self) -> None:
        data = self.stream.read(1 << 16, 30)
        assert data, "the stream ended within a head"
        self._kept += data


def get(session: Session, path: str) -> tuple[int, bytes]:
    with contextlib.closing(session.open_stream()) as stream:
        return Http(stream).request("GET", path)


def both_ways(session: Session, folder: Path, data: bytes) -> tuple[float, float]:
    """Upload and download ``data``, unharmed; MiB/s of each."""
    with contextlib.closing(session.open_stream()) as stream:
        started = time.monotonic()
        status, _ = Http(stream).request("PUT", "/big.bin", data)
        put = time.monotonic() - started
    assert status == 201
    # phodav answers just before the new content is in place.
    until(lambda: (folder / "big.bin").exists() and (folder / "big.bin").stat().st_size == len(data))
    assert (folder / "big.bin").read_bytes() == data
    started = time.monotonic()
    status, body = get(session, "/big.bin")
    got = time.monotonic() - started
    assert status == 200
    assert body == data
    return len(data) / put / MIB, len(data) / got / MIB


def until(done: Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


def assert_serves(opener: SpiceListenOpener, client: SpiceClient) -> None:
    """The client's folder can be read through the port that it opened."""
    transport = open_soon(opener)
    client.wait_port_open()
    with session_on(transport) as session:
        assert get(session, "/hello.txt") == (200, b"hello from the client\n")


class TestFolder:
    def test_it_is_served(self, opener: SpiceListenOpener, folder: Path) -> None:
        with SpiceClient(uri(opener), folder) as client:
            assert_serves(opener, client)

    def test_it_speaks_webdav(self, opener: SpiceListenOpener, folder: Path) -> None:
        with SpiceClient(uri(opener), folder), session_on(open_soon(opener)) as session:
            with contextlib.closing(session.open_stream()) as stream:
                assert Http(stream).request("OPTIONS", "/")[0] == 200
            with contextlib.closing(session.open_stream()) as stream:  # phodav has closed the first
                status, body = Http(stream).request("PROPFIND", "/", b"", "Depth: 1")
                assert status == 207
                assert b"hello.txt" in body

    def test_read_only(self, opener: SpiceListenOpener, folder: Path) -> None:
        with SpiceClient(uri(opener), folder, read_only=True), session_on(open_soon(opener)) as session:
            with contextlib.closing(session.open_stream()) as stream:
                assert Http(stream).request("PUT", "/new.txt", b"data")[0] == 403
            assert get(session, "/hello.txt")[0] == 200
        assert not (folder / "new.txt").exists()

    def test_64_mib_both_ways(
        self, opener: SpiceListenOpener, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = os.urandom(SIZE)
        with SpiceClient(uri(opener), folder), session_on(open_soon(opener)) as session:
            put, got = both_ways(session, folder, data)
        with capsys.disabled():
            print(f"\n  spice-listen: PUT {put:.0f} MiB/s, GET {got:.0f} MiB/s")

    def test_a_dozen_streams_at_once(self, opener: SpiceListenOpener, folder: Path) -> None:
        contents = {f"/{number}.bin": os.urandom(MIB + number) for number in range(12)}
        for name, data in contents.items():
            (folder / name[1:]).write_bytes(data)
        with SpiceClient(uri(opener), folder), session_on(open_soon(opener)) as session:
            with ThreadPoolExecutor(12) as pool:
                answers = dict(
                    zip(contents, pool.map(lambda name: get(session, name), contents), strict=True)
                )
            assert answers == {name: (200, data) for name, data in contents.items()}

    def test_reading_and_writing_at_once(self, opener: SpiceListenOpener, folder: Path) -> None:
        up, down = os.urandom(16 * MIB), os.urandom(16 * MIB)
        (folder / "down.bin").write_bytes(down)
        with SpiceClient(uri(opener), folder), session_on(open_soon(opener)) as session:
            with contextlib.closing(session.open_stream()) as stream, ThreadPoolExecutor(1) as pool:
                uploading = pool.submit(Http(stream).request, "PUT", "/up.bin", up)
                for _ in range(3):
                    assert get(session, "/down.bin") == (200, down)
                assert uploading.result(30)[0] == 201
            until(lambda: (folder / "up.bin").exists() and (folder / "up.bin").read_bytes() == up)


class TestAuthentication:
    def test_right_password(self, folder: Path) -> None:
        with contextlib.closing(SpiceListenOpener("127.0.0.1", 0, password="sésame")) as opener:
            with SpiceClient(uri(opener), folder, password="sésame") as client:
                assert_serves(opener, client)

    @pytest.mark.parametrize("given", ["wrong", None])
    def test_wrong_password(self, folder: Path, given: str | None, caplog: pytest.LogCaptureFixture) -> None:
        with contextlib.closing(SpiceListenOpener("127.0.0.1", 0, password="secret")) as opener:
            with SpiceClient(uri(opener), folder, password=given) as client:
                client.wait_channel_event("main", "error-auth")
            assert "password" in caplog.text
            # and the place is still free
            with SpiceClient(uri(opener), folder, password="secret") as client:
                assert_serves(opener, client)

    def test_tls(self, folder: Path, certificates: Certificates) -> None:
        with listening_with_tls(certificates, password="secret") as opener:
            with SpiceClient(
                uri(opener), folder, password="secret", ca_file=certificates.authority
            ) as client:
                client.wait_port_open(5)  # not only after the first ping
                assert_serves(opener, client)

    def test_a_client_does_not_talk_to_an_unknown_authority(
        self, folder: Path, certificates: Certificates, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        other = make_certificates(tmp_path / "other")
        with listening_with_tls(certificates) as opener:
            with SpiceClient(uri(opener), folder, ca_file=other.authority) as client:
                client.wait_channel_event("main", "error-tls")

    def test_a_client_that_knows_no_tls_port(self, folder: Path, certificates: Certificates) -> None:
        with listening_with_tls(certificates) as opener:
            with SpiceClient(uri(opener), folder) as client:
                client.wait_for(
                    lambda event: event["event"] == "channel-event" and event["what"].startswith("error")
                )

    def test_tls_carries_64_mib_both_ways(
        self, folder: Path, certificates: Certificates, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = os.urandom(SIZE)
        with listening_with_tls(certificates) as opener:
            with SpiceClient(uri(opener), folder, ca_file=certificates.authority):
                with session_on(open_soon(opener)) as session:
                    put, got = both_ways(session, folder, data)
        with capsys.disabled():
            print(f"\n  spice-listen with TLS: PUT {put:.0f} MiB/s, GET {got:.0f} MiB/s")


class TestComingAndGoing:
    def test_a_second_client_is_told(
        self, opener: SpiceListenOpener, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with SpiceClient(uri(opener), folder), session_on(open_soon(opener)) as session:
            with SpiceClient(uri(opener), folder) as second:
                second.wait_channel_event("main", "error-link")
            assert "one client at a time" in caplog.text
            assert get(session, "/hello.txt")[0] == 200

    def test_when_the_first_leaves_the_next_is_taken(self, opener: SpiceListenOpener, folder: Path) -> None:
        for _ in range(2):
            with SpiceClient(uri(opener), folder) as client:
                transport = open_soon(opener)
                client.wait_port_open()
                with session_on(transport) as session:
                    assert get(session, "/hello.txt")[0] == 200
                    client.leave()
                    until(lambda session=session: session.over)  # type: ignore[misc]

    def test_a_killed_client_ends_the_transport(self, opener: SpiceListenOpener, folder: Path) -> None:
        with SpiceClient(uri(opener), folder) as client, session_on(open_soon(opener)) as session:
            client.wait_port_open()
            client.kill()
            until(lambda: session.over, 5)

    def test_a_channel_reconnects(self, opener: SpiceListenOpener, folder: Path) -> None:
        channel = Channel(opener, Role.HOST)
        channel.start()
        try:
            for number in range(1, 4):
                with SpiceClient(uri(opener), folder) as client:
                    assert channel.wait_state(State.OPEN, 20)
                    assert get(channel.session(5), "/hello.txt") == (200, b"hello from the client\n")
                    assert channel.sessions == number
                    client.kill()
                    assert channel.wait_state(State.WAITING, 10)
        finally:
            channel.close()

    def test_a_client_that_idles_stays(self, folder: Path) -> None:
        with contextlib.closing(
            SpiceListenOpener("127.0.0.1", 0, timeouts=Timeouts(ping=0.1, silence=1.0))
        ) as opener:
            with SpiceClient(uri(opener), folder), session_on(open_soon(opener)) as session:
                started = time.monotonic()
                until(lambda: time.monotonic() - started > 2.0)  # twice the silence: only pongs explain it
                assert not session.over
                assert get(session, "/hello.txt")[0] == 200

    def test_a_frozen_client_is_found(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        with contextlib.closing(
            SpiceListenOpener("127.0.0.1", 0, timeouts=Timeouts(ping=0.1, silence=0.5))
        ) as opener:
            with SpiceClient(uri(opener), folder) as client, session_on(open_soon(opener)) as session:
                client.wait_port_open()
                os.kill(client.pid, signal.SIGSTOP)
                until(lambda: session.over, 5)
                client.kill()
            until(lambda: "no sign of life" in caplog.text)

    def test_a_frozen_client_makes_room(self, folder: Path) -> None:
        with contextlib.closing(SpiceListenOpener("127.0.0.1", 0, timeouts=Timeouts(probe=0.5))) as opener:
            with SpiceClient(uri(opener), folder) as frozen, session_on(open_soon(opener)) as session:
                frozen.wait_port_open()
                os.kill(frozen.pid, signal.SIGSTOP)
                with SpiceClient(uri(opener), folder) as client:
                    assert_serves(opener, client)
                    assert session.over
                frozen.kill()

    def test_closing_ends_the_client(self, opener: SpiceListenOpener, folder: Path) -> None:
        with SpiceClient(uri(opener), folder) as client, session_on(open_soon(opener)) as session:
            client.wait_port_open()
            opener.close()
            until(lambda: session.over, 5)
            client.wait_channel_event("main", "closed")
            client.wait_channel_event("webdav", "closed")
