"""The remote against a server that lies, stalls, cuts and floods."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterable

import pytest

from hvbridge import deadline
from hvbridge.config import KIB, Limits
from hvbridge.errors import (
    AccessDenied,
    Changed,
    ConnectionLost,
    Exists,
    FsError,
    IOFailed,
    IsDirectory,
    Locked,
    NoSpace,
    NotFound,
    Offline,
    TimedOut,
    TooLarge,
)
from hvbridge.webdav.remote import WebdavRemote
from tests.support.scripted_webdav import Hangup, Request, ScriptedServer, answer, entry, multistatus

LIMITS = dataclasses.replace(Limits(), request=3.0, silence=1.0, grace=0.5, operation=1.0)
PHODAV = "PhodavServer libsoup/3.2.3"


def xml(*entries: str, **headers: str) -> bytes:
    return answer(207, multistatus(*entries), content_type="application/xml", **headers)


def says(*pieces: bytes, hang_up: bool = False) -> ScriptedServer:
    """A server that answers everything alike."""

    def script(request: Request) -> Iterable[bytes]:
        yield from pieces
        if hang_up:
            raise Hangup

    return ScriptedServer(script)


def fails(server: ScriptedServer, error: type[FsError], call: Callable[[WebdavRemote], object]) -> FsError:
    with server.connected(LIMITS) as remote, pytest.raises(error) as caught:
        call(remote)
    return caught.value


def drained(remote: WebdavRemote, *part: int) -> bytes:
    return b"".join(remote.get("/f", *part))


# --- requests as they leave ---------------------------------------------


def test_a_small_put_is_one_frame_within_phodavs_first_read() -> None:
    server = says(answer(201, server=PHODAV))
    with server.connected(LIMITS) as remote:
        assert remote.atomic_put("/f") == 0  # nothing is known yet
        remote.put("/f", b"", 0)
        for path in ("/f", "/" + "\u00e9" * 127, "/" + "/".join(["%" * 255] * 5), "/a&b #?"):
            size = remote.atomic_put(path)
            remote.put(path, b"x" * size, size)
            last = server.requests[-1]
            assert len(last.frames) == 1
            assert last.frames[0] <= 8192
            assert len(last.body) == size > 3000
        assert remote.atomic_put("/" + "/".join(["\u00e9" * 127] * 15)) == 0


def test_a_request_is_lean() -> None:
    server = says(answer(201))
    with server.connected(LIMITS) as remote:
        remote.put("/a b%&#?;=", b"x", 1)
    put = server.requests[0]
    assert (put.method, put.target) == ("PUT", "/a%20b%25%26%23%3F;=")
    assert set(put.headers) == {"host", "user-agent", "accept-encoding", "content-length"}
    assert put.headers["accept-encoding"] == "identity"


def test_a_large_put_keeps_its_length_and_order() -> None:
    body = bytes(range(256)) * 3000
    server = says(answer(201))
    with server.connected(LIMITS) as remote:
        remote.put("/f", (body[at : at + 5000] for at in range(0, len(body), 5000)), len(body))
        remote.put("/f", body, len(body))
    for put in server.requests:
        assert put.body == body
        assert "transfer-encoding" not in put.headers
        assert "expect" not in put.headers


def test_depth_is_always_said_and_the_body_comes_with_the_head() -> None:
    server = ScriptedServer(lambda request: [xml(entry("/", extra="<D:getetag>e</D:getetag>"))])
    with server.connected(LIMITS) as remote:
        remote.list("/")
        remote.stat("/")
        remote.quota()
        remote.client.exists("/")
    assert [request.headers["depth"] for request in server.requests] == ["1", "0", "0", "0"]
    assert all(len(request.frames) == 1 for request in server.requests)
    assert b"allprop" not in server.requests[0].body


def test_no_cookie_is_kept_and_one_stream_serves_many_requests() -> None:
    server = says(xml(entry("/f", 1), set_cookie="id=1; Path=/"))
    with server.connected(LIMITS) as remote:
        for _ in range(5):
            remote.stat("/f")
        assert not remote.client.http.cookies
    assert all("cookie" not in request.headers for request in server.requests)
    assert len({request.stream for request in server.requests}) == 1


@pytest.mark.parametrize("reply", [answer(204), answer(201, server=PHODAV), answer(201, connection="close")])
def test_streams_that_must_not_be_used_again(reply: bytes) -> None:
    server = says(reply)
    with server.connected(LIMITS) as remote:
        for _ in range(3):
            remote.put("/f", b"x", 1)
    assert len({request.stream for request in server.requests}) == 3


# --- connections that end -----------------------------------------------


def dies_on_the_second(request_ok: bytes) -> ScriptedServer:
    """A server whose first stream ends at its second request, without an answer."""
    served: list[int] = []

    def script(request: Request) -> Iterable[bytes]:
        served.append(request.stream)
        if served.count(request.stream) == 2 and request.stream == served[0]:
            raise Hangup
        yield request_ok

    return ScriptedServer(script)


def test_a_stale_connection_is_tried_once_more_for_what_changes_nothing() -> None:
    server = dies_on_the_second(xml(entry("/f", 7)))
    with server.connected(LIMITS) as remote:
        assert [remote.stat("/f").size for _ in range(3)] == [7, 7, 7]
    assert len(server.requests) == 4


def test_a_stale_connection_is_not_tried_again_for_what_changes_something() -> None:
    server = dies_on_the_second(answer(201))
    with server.connected(LIMITS) as remote:
        remote.put("/f", b"1", 1)
        with pytest.raises(ConnectionLost):
            remote.put("/f", b"1", 1)
        remote.put("/f", b"1", 1)
    assert len(server.requests) == 3


def test_a_fresh_connection_that_dies_is_not_tried_again() -> None:
    server = says(hang_up=True)
    fails(server, ConnectionLost, lambda remote: remote.stat("/f"))
    assert len(server.requests) == 1


def test_nobody_there() -> None:
    server = says(xml(entry("/f", 1)))
    with server.connected(LIMITS) as remote:
        remote.stat("/f")
        server.hang_up()
        with pytest.raises((Offline, ConnectionLost)):
            remote.stat("/f")
        with pytest.raises(Offline):
            remote.stat("/f")


def test_the_port_closes_under_a_request() -> None:
    server: ScriptedServer

    def script(request: Request) -> Iterable[bytes]:
        yield answer(200, b"x" * 100)[:-50]
        server.hang_up()

    server = ScriptedServer(script)
    fails(server, ConnectionLost, drained)


# --- answers to GET -----------------------------------------------------


def test_a_download() -> None:
    server = says(answer(200, b"hello", etag='"e"', content_type="text/html"))
    with server.connected(LIMITS) as remote:
        download = remote.get("/f")
        assert (download.start, download.size, download.etag) == (0, 5, '"e"')
        assert b"".join(download) == b"hello"
        download.close()
        download.close()
    assert "range" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("part", "told", "header", "start", "size"),
    [
        ((2, 4), "bytes 2-3/10", "bytes=2-3", 2, 10),
        ((2,), "bytes 2-9/10", "bytes=2-", 2, 10),
        ((8, 40), "bytes 8-9/10", "bytes=8-39", 8, 10),
        ((2, 4), "bytes 2-3/*", "bytes=2-3", 2, None),
        ((0, 4), "bytes 0-3/10", "bytes=0-3", 0, 10),
    ],
)
def test_a_part(part: tuple[int, ...], told: str, header: str, start: int, size: int | None) -> None:
    length = int(told.split("-")[1].split("/")[0]) - start + 1
    server = says(answer(206, b"x" * length, content_range=told))
    with server.connected(LIMITS) as remote:
        download = remote.get("/f", *part)
        assert (download.start, download.size) == (start, size)
        assert b"".join(download) == b"x" * length
    assert server.requests[0].headers["range"] == header


def test_a_server_that_ignores_the_range() -> None:
    server = says(answer(200, b"0123456789"))
    with server.connected(LIMITS) as remote:
        download = remote.get("/f", 4, 6)
        assert (download.start, download.size) == (0, 10)
        assert b"".join(download) == b"0123456789"


@pytest.mark.parametrize(
    "told",
    [
        "bytes 3-4/10",
        "bytes 2-4/10",
        "bytes 2-2/10",
        "bytes 2-3",
        "bytes */10",
        "",
        "items 2-3/10",
        "bytes 2-3/3x",
    ],
)
def test_a_part_that_was_not_asked_for(told: str) -> None:
    error = fails(
        says(answer(206, b"xx", content_range=told)), IOFailed, lambda remote: drained(remote, 2, 4)
    )
    assert error.path == "/f"


def test_answers_that_do_not_fit() -> None:
    part = answer(206, b"xx", content_range="bytes 0-1/2")
    fails(says(part), IOFailed, drained)
    fails(says(answer(206, b"xxx", content_range="bytes 2-3/10")), IOFailed, lambda r: drained(r, 2, 4))
    fails(says(answer(200, b"x", content_encoding="gzip")), IOFailed, drained)
    fails(says(b"HTTP/1.1 200 OK\r\n\r\nxyz", hang_up=True), IOFailed, drained)
    fails(says(answer(416)), Changed, lambda remote: drained(remote, 20, 30))
    fails(says(answer(404)), NotFound, drained)
    fails(says(b"SSH-2.0-OpenSSH\r\n\r\n"), IOFailed, drained)
    fails(says(answer(302, location="http://elsewhere/")), IOFailed, drained)


def test_a_short_body_is_an_error_wherever_it_is_cut() -> None:
    whole = answer(200, b"0123456789")
    for cut in (1, 20, len(whole) - 10, len(whole) - 1):
        fails(says(whole[:cut], hang_up=True), IOFailed, drained)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    fails(says(chunked, hang_up=True), ConnectionLost, drained)
    with says(chunked + b"0\r\n\r\n").connected(LIMITS) as remote:
        assert drained(remote) == b"abc"


def test_a_folders_page_is_no_file() -> None:
    def script(request: Request) -> Iterable[bytes]:
        folder = request.target == "/folder"
        if request.method == "PROPFIND":
            yield xml(entry(request.target, None if folder else 4))
        else:
            yield answer(200, b"page", content_type="text/html")

    with ScriptedServer(script).connected(LIMITS) as remote:
        with pytest.raises(IsDirectory):
            remote.get("/folder")
        assert b"".join(remote.get("/page.html")) == b"page"


def test_closing_early_cancels_and_wakes_a_reader() -> None:
    server = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
    with server.connected(LIMITS) as remote:
        download = remote.get("/f")
        pieces = iter(download)
        assert next(pieces) == b"first"
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                next(pieces)
            except BaseException as exc:
                raised.append(exc)

        reader = threading.Thread(target=wait)
        reader.start()
        download.close()
        reader.join(5)
        assert not reader.is_alive()
        assert isinstance(raised[0], ConnectionLost)
        assert server.closed.wait(5)


# --- silence, floods ----------------------------------------------------


def trickle(first: bytes, piece: bytes = b"x") -> ScriptedServer:
    """A server that goes on for ever, ten bytes a second."""

    def script(request: Request) -> Iterable[bytes]:
        yield first
        for _ in itertools.count():
            time.sleep(0.1)
            yield piece

    return ScriptedServer(script)


def test_silence_ends_a_wait() -> None:
    for server in (says(), says(b"HTTP/1.1 207"), says(answer(200, b"x" * 10)[:-5])):
        began = time.monotonic()
        fails(server, TimedOut, drained)
        assert time.monotonic() - began < 3


def test_an_operations_deadline_holds_against_a_trickle() -> None:
    for server in (
        trickle(b"HTTP/1.1 207 x\r\nA: "),
        trickle(b"HTTP/1.1 207 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ):
        began = time.monotonic()
        with server.connected(LIMITS) as remote, deadline.within(0.4), pytest.raises(FsError):
            remote.stat("/f")
        assert time.monotonic() - began < 2


def test_a_requests_own_limit_holds_without_a_deadline() -> None:
    limits = dataclasses.replace(LIMITS, request=0.4)
    with trickle(b"HTTP/1.1 207 x\r\nA: ").connected(limits) as remote, pytest.raises(TimedOut):
        remote.list("/")


def test_a_transfer_below_the_minimum_rate_ends() -> None:
    limits = dataclasses.replace(LIMITS, operation=0.5)
    server = trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    with server.connected(limits) as remote, pytest.raises(TimedOut, match="less than"):
        drained(remote)


def test_waiting_for_a_free_stream_ends() -> None:
    limits = dataclasses.replace(LIMITS, streams=1)
    server = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with server.connected(limits) as remote:
        held = remote.get("/f")
        with deadline.within(0.2), pytest.raises(TimedOut):
            remote.stat("/f")
        held.close()


def test_floods_end() -> None:
    endless = [b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * 200_000]
    fails(says(*endless), IOFailed, drained)
    limits = dataclasses.replace(LIMITS, listing_bytes=50_000)
    with says(xml(*[entry("/x", 1)] * 1000)).connected(limits) as remote, pytest.raises(TooLarge):
        remote.list("/")
    big = answer(500, b"x" * (LIMITS.error_body + 64 * KIB))
    server = says(big)
    with server.connected(LIMITS) as remote:
        for _ in range(2):
            with pytest.raises(IOFailed):
                remote.stat("/f")
    assert len({request.stream for request in server.requests}) == 2


def test_a_listing_that_is_cut_or_no_listing() -> None:
    whole = multistatus(entry("/"), entry("/a", 1), entry("/b", 2))
    for cut in (whole[:-1], whole[: whole.index(b"/b")], b""):
        fails(says(answer(207, cut)), IOFailed, lambda remote: remote.list("/"))
    fails(says(answer(200, whole)), IOFailed, lambda remote: remote.list("/"))
    fails(says(answer(207, whole, content_encoding="gzip")), IOFailed, lambda remote: remote.list("/"))
    fails(says(answer(207, b"<!DOCTYPE x>" + whole)), IOFailed, lambda remote: remote.list("/"))
    fails(says(answer(301, location="/other/")), IOFailed, lambda remote: remote.list("/f"))


def test_only_a_slash_is_added_for_a_redirect() -> None:
    def script(request: Request) -> Iterable[bytes]:
        if request.target.endswith("/"):
            yield xml(entry("/f/"))
        else:
            yield answer(301, location="http://elsewhere.example/f/")

    server = ScriptedServer(script)
    with server.connected(LIMITS) as remote:
        assert remote.stat("/f").is_dir
    assert [request.target for request in server.requests] == ["/f", "/f/"]


# --- changes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AccessDenied),
        (403, AccessDenied),
        (413, TooLarge),
        (423, Locked),
        (507, NoSpace),
        (503, IOFailed),
    ],
)
def test_statuses_of_put(status: int, error: type[FsError]) -> None:
    assert type(fails(says(answer(status)), error, lambda remote: remote.put("/f", b"x", 1))) is error


def test_a_refusal_is_read_before_the_whole_file_is_sent() -> None:
    taken: list[int] = []
    refused = threading.Event()

    class Early(ScriptedServer):
        def _receive(self, stream: object) -> Request | None:
            data = stream.read(1 << 20, 5)  # type: ignore[attr-defined]
            if not data:
                return None
            stream.write(answer(403))  # type: ignore[attr-defined]
            refused.set()
            raise Hangup

    def body() -> Iterable[bytes]:
        for at in range(100):
            taken.append(at)
            yield b"x" * 100_000
            refused.wait(5)

    with Early(lambda request: []).connected(LIMITS) as remote, pytest.raises(AccessDenied):
        remote.put("/f", body(), 10_000_000)
    assert len(taken) < 10


def test_put_says_what_stands_in_the_way() -> None:
    known = {"/": None, "/file": 3, "/folder": None}

    def script(request: Request) -> Iterable[bytes]:
        if request.method == "PUT":
            yield answer(500)
        elif b"quota" in request.body:
            yield xml(entry("/", extra="<D:quota-available-bytes>10</D:quota-available-bytes>"))
        elif request.target in known:
            yield xml(entry(request.target, known[request.target]))
        else:
            yield answer(404)

    with ScriptedServer(script).connected(LIMITS) as remote:
        for path, size, error in (
            ("/folder", 1, "IsDirectory"),
            ("/no/f", 1, "NotFound"),
            ("/file/f", 1, "NotDirectory"),
            ("/new", 11, "NoSpace"),
            ("/new", 1, "IOFailed"),
        ):
            with pytest.raises(FsError) as caught:
                remote.put(path, b"x" * size, size)
            assert (type(caught.value).__name__, caught.value.path) == (error, path)


def test_412_of_a_move_is_looked_into() -> None:
    there = {"/": None, "/dst": 1}

    def script(request: Request) -> Iterable[bytes]:
        if request.method == "MOVE":
            yield answer(412)
        else:
            yield (
                xml(entry(request.target, there[request.target])) if request.target in there else answer(404)
            )

    with ScriptedServer(script).connected(LIMITS) as remote:
        with pytest.raises(Exists):
            remote.move("/src", "/dst", overwrite=False)
        with pytest.raises(IOFailed, match="could not"):
            remote.move("/src", "/other", overwrite=False)
        with pytest.raises(IOFailed, match="could not"):
            remote.move("/src", "/dst", overwrite=True)


def test_a_207_tells_what_failed() -> None:
    body = multistatus("<D:response><D:href>/f/x</D:href><D:status>HTTP/1.1 423 L</D:status></D:response>")

    def script(request: Request) -> Iterable[bytes]:
        yield answer(207, body) if request.method == "DELETE" else xml(entry("/"))

    fails(ScriptedServer(script), Locked, lambda remote: remote.delete("/f"))


def test_a_strange_success_of_mkcol_is_none() -> None:
    for status, error in ((202, IOFailed), (405, Exists), (409, NotFound)):

        def script(request: Request, status: int = status) -> Iterable[bytes]:
            yield answer(status if request.method == "MKCOL" else 404)

        fails(ScriptedServer(script), error, lambda remote: remote.mkdir("/f"))


def properties(works: bool, tells: bool = True) -> ScriptedServer:
    """A server with one file, whose PROPPATCH has an effect or only says so."""
    flag = ["F"]

    def script(request: Request) -> Iterable[bytes]:
        prop = f'<x:executable xmlns:x="http://apache.org/dav/props/">{flag[0]}</x:executable>'
        if request.method == "PROPPATCH":
            if works:
                flag[0] = "T" if b">T<" in request.body else "F"
            yield xml(entry("/f", 1, prop)) if tells else answer(405)
        else:
            yield xml(entry(request.target, 1, prop))

    return ScriptedServer(script)


@pytest.mark.parametrize(("works", "tells"), [(True, True), (False, True), (False, False)])
def test_the_exec_bit_is_believed_once_it_was_seen(works: bool, tells: bool) -> None:
    server = properties(works, tells)
    with server.connected(LIMITS) as remote:
        assert remote.set_executable("/f", True) is works
        before = len(server.requests)
        assert remote.set_executable("/f", False) is works
        assert len(server.requests) - before == (1 if works else 0)


def test_what_was_learnt_is_forgotten_with_the_session() -> None:
    server = says(xml(entry("/f", 1), server=PHODAV))
    with server.connected(LIMITS) as remote:
        remote.stat("/f")
        assert remote.traits.server == PHODAV
        assert remote.traits.ranges is False
        assert remote.atomic_put("/f") > 0
        assert remote._channel is not None
        remote._channel.sessions += 1
        assert remote.traits.server == ""
        assert remote.traits.ranges is None
        assert remote.atomic_put("/f") == 0


def test_many_threads_share_the_streams() -> None:
    busy = threading.Semaphore(3)

    def script(request: Request) -> Iterable[bytes]:
        assert busy.acquire(blocking=False)
        time.sleep(0.005)
        busy.release()
        yield xml(entry(request.target, int(request.target[1:])))

    limits = dataclasses.replace(LIMITS, streams=3)
    server = ScriptedServer(script)
    wrong: list[object] = []

    def ask(remote: WebdavRemote, first: int) -> None:
        for number in range(first, first + 10):
            size = remote.stat(f"/{number}").size
            if size != number:
                wrong.append(size)

    with server.connected(limits) as remote:
        threads = [threading.Thread(target=ask, args=(remote, first)) for first in range(0, 120, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert wrong == []
    assert len(server.requests) == 120
    assert len({request.stream for request in server.requests}) == 3
