"""A share that lies, stalls and floods, mounted: clean errors in time, bounded memory, no wrong bytes.

The bridge runs as always, in its own process; the other end of its channel is a script.
One mount serves all tests, since each must leave it working.
"""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from hvbridge.channel.channel import Channel
from hvbridge.channel.sockets import unix_opener
from tests.support.mounted import Mounted, mounted, names_in, outcome, until
from tests.support.scripted_webdav import Answer, Hangup, Request, ScriptedServer, answer, entry, multistatus

pytestmark = pytest.mark.peers("fuse")

KIB, MIB = 1 << 10, 1 << 20
TIMEOUT, GRACE = 2.0, 1.0
SLACK = 4.0
"""Seconds beyond its limit that an operation may take on a busy machine."""

MEMORY = 300 * MIB
"""What the bridge may come to hold, whatever it is sent."""

GOOD = b"good\n"
SLOW = errno.ETIMEDOUT

# --- answers ---------------------------------------------------------------


def head(status: int, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def short(announced: int, sent: int) -> Answer:
    """A body that ends before it should."""
    yield head(200, ETag='"1"', Content_Length=announced)
    yield bytes(sent)
    raise Hangup


def trickle(first: bytes, forever: bytes) -> Answer:
    """A byte now and then, so that no single wait is ever long."""
    yield first
    for byte in itertools.cycle(forever):
        time.sleep(0.1)
        yield bytes([byte])


def endless(first: bytes, piece: bytes) -> Answer:
    yield first
    while True:
        yield piece


def silence() -> Answer:
    """The request is taken, and nothing comes."""
    time.sleep(3600)
    return ()


def hang_up() -> Answer:
    raise Hangup


def zipped(size: int) -> bytes:
    body = gzip.compress(bytes(size), 1)
    return head(200, ETag='"1"', Content_Encoding="gzip", Content_Length=len(body)) + body


def xml(text: str | bytes) -> Answer:
    body = text if isinstance(text, bytes) else text.encode()
    return [answer(207, body, content_type="application/xml")]


class Turns:
    """Answers that follow one another, the last one again and again."""

    def __init__(self, *answers: Callable[[], Answer]) -> None:
        self._answers = list(answers)

    def __call__(self) -> Answer:
        return (self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])()


def torn_body() -> Answer:
    """Half of a version; of another one later, in another answer."""
    yield head(200, ETag='"1"', Content_Length=MIB)
    yield b"a" * (MIB // 2)
    raise Hangup


def other_version() -> Answer:
    return [head(200, ETag='"2"', Content_Length=MIB) + b"b" * MIB]


# --- the lies ---------------------------------------------------------------


@dataclass(frozen=True)
class Lie:
    """What GET of a file, or PROPFIND of a folder, is answered with, and what that may lead to."""

    says: Callable[[], Answer]
    errnos: tuple[int, ...] = (errno.EIO,)
    size: int = 1000
    """As the listing has it."""


FILES: dict[str, Lie] = {
    "short": Lie(lambda: short(1000, 500)),
    "short and large": Lie(lambda: short(MIB, MIB // 2), size=MIB),
    "longer": Lie(lambda: [head(200, ETag='"1"', Transfer_Encoding="chunked"), *[chunk(bytes(600))] * 2]),
    "endless": Lie(lambda: endless(head(200, Transfer_Encoding="chunked"), chunk(bytes(60_000)))),
    "endless and large": Lie(
        lambda: endless(head(200, Transfer_Encoding="chunked"), chunk(bytes(60_000))), size=MIB
    ),
    "another version in the middle": Lie(Turns(torn_body, other_version), size=MIB),
    "without an end": Lie(lambda: endless(head(200), bytes(60_000))),
    "a part": Lie(lambda: [head(206, Content_Range="bytes 0-999/1000", Content_Length=1000) + bytes(1000)]),
    "negative": Lie(lambda: [head(200, Content_Length=-5) + bytes(1000)]),
    "bad chunks": Lie(lambda: [head(200, Transfer_Encoding="chunked") + b"zz\r\nno\r\n"]),
    "zipped": Lie(lambda: [zipped(MIB)]),
    "a bomb": Lie(lambda: [zipped(500 * MIB)]),
    "a redirect": Lie(lambda: [answer(302, location="http://127.0.0.1:1/secret")]),
    "not HTTP": Lie(lambda: [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"]),
    "noise": Lie(lambda: [os.urandom(10_000)], (errno.EIO, SLOW)),
    "an endless head": Lie(lambda: endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 1000)),
    "an endless line": Lie(lambda: endless(b"HTTP/1.1 200 OK\r\nX: ", bytes(b"x" * 60_000))),
    "closed": Lie(hang_up),
    "a slow head": Lie(lambda: trickle(b"HTTP/1.1 200 OK\r\nX: ", b"x"), (SLOW,)),
    "a slow body": Lie(lambda: trickle(head(200, Content_Length=1000), b"x"), (SLOW,)),
    "a slow large body": Lie(lambda: trickle(head(200, Content_Length=MIB), b"x"), (SLOW,), size=MIB),
    "not yet, for ever": Lie(lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500), (SLOW, errno.EIO)),
    "silence": Lie(silence, (SLOW,)),
    "silence in the middle": Lie(
        lambda: itertools.chain([head(200, Content_Length=MIB) + bytes(9000)], silence()), (SLOW,), size=MIB
    ),
}


BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{}]>
<D:multistatus xmlns:D="DAV:"><D:response><D:href>&z;</D:href></D:response></D:multistatus>""".format(
    "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in itertools.pairwise("abcdefghijklmnopqrstuvwxyz"))
)
FILE_ENTITY = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>
<D:multistatus xmlns:D="DAV:"><D:response><D:href>&e;</D:href></D:response></D:multistatus>"""
OPEN = b'<D:multistatus xmlns:D="DAV:">'
FOLDER = entry("/lies/{}/")
CHUNKED = head(207, Content_Type="application/xml", Transfer_Encoding="chunked")


def many_entries(name: str) -> Answer:
    """Ten million files."""
    yield CHUNKED + chunk(OPEN + FOLDER.format(name).encode())
    for first in range(0, 10_000_000, 200):
        yield chunk("".join(entry(f"/lies/{name}/{n}", n) for n in range(first, first + 200)).encode())
    yield chunk(b"</D:multistatus>") + chunk(b"")


def of(text: str | bytes) -> Callable[[], Answer]:
    return lambda: xml(text)


FOLDERS: dict[str, Lie] = {
    "ten million": Lie(lambda: many_entries("ten million"), (errno.EFBIG, SLOW)),
    "deep": Lie(of(OPEN + b"<D:response>" * 200_000)),
    "an entity bomb": Lie(of(BOMB)),
    "an external entity": Lie(of(FILE_ENTITY)),
    "a long text": Lie(
        lambda: endless(CHUNKED + chunk(OPEN + b"<D:response><D:href>"), chunk(b"x" * 60_000))
    ),
    "long attributes": Lie(lambda: endless(CHUNKED + chunk(OPEN), chunk(b"<D:a " + b' x="y"' * 9000))),
    "empty elements": Lie(
        lambda: endless(CHUNKED + chunk(OPEN), chunk(b"<D:a/>" * 9000)), (errno.EFBIG, SLOW)
    ),
    "comments": Lie(
        lambda: endless(CHUNKED + chunk(OPEN), chunk(b"<!--" + b"x" * 50_000 + b"-->")), (errno.EFBIG, SLOW)
    ),
    "slow XML": Lie(lambda: trickle(head(207, Content_Length=10**6) + OPEN, b" "), (SLOW,)),
    "cut XML": Lie(of(multistatus(FOLDER.format("cut XML"), entry("/lies/cut XML/a", 1))[:-20])),
    "a page": Lie(lambda: [answer(200, b"<html><body>Welcome</body></html>", content_type="text/html")]),
    "a page for XML": Lie(of("<html><body>Welcome</body></html>")),
    "another folder": Lie(of(multistatus(entry("/elsewhere/"), entry("/elsewhere/a", 1)))),
    "zipped XML": Lie(
        lambda: [head(207, Content_Encoding="gzip", Content_Length=100_000) + gzip.compress(bytes(50 * MIB))]
    ),
    "no answer": Lie(silence, (SLOW,)),
}

SPARE = [f"spare {number}" for number in range(20)]
"""Folders for what a test says itself: each is used once, since listings are believed for a while."""


# --- the share ---------------------------------------------------------------


class Liar:
    """The script: ``/good.txt`` is honest, ``/lies`` has :data:`FILES` and :data:`FOLDERS`."""

    def __init__(self) -> None:
        self.special: dict[tuple[str, str], Callable[[Request], Answer]] = {}
        """By method and path (``*``: any), before anything else."""
        self.spare = iter(SPARE)

    def __call__(self, request: Request) -> Answer:
        path = unquote(request.target).rstrip("/") or "/"
        for key in ((request.method, path), (request.method, "*")):
            if (says := self.special.get(key)) is not None:
                return says(request)
        if request.method == "PROPFIND":
            return self._propfind(path, request.headers["depth"] == "1")
        if request.method == "GET" and path == "/good.txt":
            return [answer(200, GOOD, etag='"good"')]
        if request.method == "GET" and path.removeprefix("/lies/") in FILES:
            return FILES[path.removeprefix("/lies/")].says()
        return [answer(404)]

    def _propfind(self, path: str, members: bool) -> Answer:
        folder, _, name = path.rpartition("/")
        if path == "/":
            return xml(multistatus(entry("/"), *[entry("/good.txt", 5), entry("/lies/")] * members))
        if path == "/lies":
            listed = [self._file(name) for name in FILES]
            listed += [entry(f"/lies/{name}/") for name in (*FOLDERS, *SPARE)]
            return xml(multistatus(entry("/lies/"), *listed * members))
        if path == "/good.txt":
            return xml(multistatus(entry(path, 5)))
        if folder == "/lies" and name in FILES:
            return xml(multistatus(self._file(name)))
        if folder == "/lies" and name in FOLDERS:
            return FOLDERS[name].says() if members else xml(multistatus(entry(path + "/")))
        return [answer(404)]

    @staticmethod
    def _file(name: str) -> str:
        return entry(f"/lies/{name}", FILES[name].size, '<D:getetag>"1"</D:getetag>')


@dataclass(frozen=True)
class Scene:
    """The mount, the script at its other end, and the channel between them."""

    mount: Mounted
    liar: Liar
    channel: Channel

    @property
    def lies(self) -> Path:
        return self.mount.path / "lies"

    def send(self, frames: bytes) -> None:
        """Bytes on the channel as they are, between the frames of answers."""
        session = self.channel.session(5)
        with session._writing:
            session.transport.write(frames, 5)

    def folder_with(self, *responses: str) -> Path:
        """A folder whose listing has these; ``{}`` in them is its path on the share."""
        path = f"/lies/{next(self.liar.spare)}"
        body = multistatus(entry(path + "/"), *[told.replace("{}", path) for told in responses])
        self.liar.special["PROPFIND", path] = lambda request: xml(body)
        return self.mount.path / path[1:]

    def timed(self, operation: Callable[[], object], limit: float = TIMEOUT) -> int:
        """The errno of an operation, which ends in time."""
        began = time.monotonic()
        result = outcome(operation)
        took = time.monotonic() - began
        assert took < limit + SLACK, f"it took {took:.1f} s"
        return result


@pytest.fixture(scope="module")
def whole_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    work = tmp_path_factory.mktemp("hostile")
    socket = work / "channel.sock"
    options = f"timeout={TIMEOUT:g},grace={GRACE:g}"
    with mounted(work, "-o", options, client=False, channel=f"unix-listen://{socket}", watchdog=280) as mount:
        liar = Liar()
        server = ScriptedServer(liar, unix_opener(f"unix://{socket}", socket))
        with server.serving() as channel:
            mount.wait_state("open")
            yield Scene(mount, liar, channel)
            print(f"\n  the bridge's memory peaked at {mount.peak_memory() >> 20} MiB")


@pytest.fixture
def scene(whole_scene: Scene) -> Iterator[Scene]:
    """Each test leaves a mount that works, in memory that is not large."""
    yield whole_scene
    whole_scene.liar.special.clear()
    good = whole_scene.mount.path / "good.txt"
    assert whole_scene.timed(lambda: names_in(whole_scene.mount.path)) == 0
    assert good.read_bytes() == GOOD
    assert whole_scene.mount.peak_memory() < MEMORY


# --- tests -------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_reading(scene: Scene, name: str) -> None:
    """An error, and before it at most bytes that are right."""
    assert scene.timed((scene.lies / name).read_bytes, TIMEOUT + FILES[name].size / (32 * KIB)) in (
        FILES[name].errnos
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_listing(scene: Scene, name: str) -> None:
    assert scene.timed(lambda: names_in(scene.lies / name)) in FOLDERS[name].errnos


def test_hrefs_that_lead_elsewhere(scene: Scene) -> None:
    bad = ["{}/../../etc", "{}/..", "{}/.", "/etc/passwd", "http://evil/lies/other/x", "{}/a%2Fb", "{}/a%00b"]
    bad += ["{}/%FF", "{}//x", "{}/a/b", "", "{}/" + "x" * 256, "{}/.hvbridge-0123456789abcdef.part"]
    good = ["{}/fine", "http://evil{}/also%20fine", "{}/fine"]
    folder = scene.folder_with(*[entry(href, 5) for href in bad + good])
    assert names_in(folder) == ["also fine", "fine"]
    assert (folder / "fine").stat().st_size == 5


@pytest.mark.parametrize("size", ["-1", str(1 << 63), str(1 << 64), "9" * 5000, "1e9", "ten", ""])
def test_impossible_sizes(scene: Scene, size: str) -> None:
    told = entry("{}/file", 77).replace("77", size)
    folder = scene.folder_with(told, entry("{}/other", 5))
    assert names_in(folder) == ["file", "other"]
    assert (folder / "file").stat().st_size == 0
    assert (folder / "other").stat().st_size == 5


@pytest.mark.parametrize(
    "date", ["9999-12-31T23:59:59Z", "99999999999", "0000-00-00", "Thu, 01 Jan 1 00:00:00 GMT", "x" * 50_000]
)
def test_impossible_times(scene: Scene, date: str) -> None:
    told = entry("{}/file", 1, f"<D:getlastmodified>{date}</D:getlastmodified>")
    folder = scene.folder_with(told, entry("{}/other", 5))
    assert names_in(folder) == ["file", "other"]
    assert (folder / "file").stat().st_size == 1


@pytest.mark.parametrize(
    ("says", "errnos"),
    [
        (silence, (SLOW,)),
        (hang_up, (errno.EIO,)),
        (lambda: [answer(500)], (errno.EIO,)),
        (lambda: [answer(507)], (errno.ENOSPC,)),
        (lambda: [answer(302, location="/elsewhere")], (errno.EIO,)),
        (lambda: trickle(b"HTTP/1.1 201 Created\r\nX: ", b"x"), (SLOW,)),
    ],
    ids=["silence", "closed", "500", "507", "redirect", "slow"],
)
def test_uploading(scene: Scene, says: Callable[[], Answer], errnos: tuple[int, ...]) -> None:
    """The error is told, and the content kept."""
    path, content = scene.mount.path / "new.bin", os.urandom(200_000)
    scene.liar.special["PUT", "*"] = lambda request: says()
    limit = 2 * (TIMEOUT + len(content) / (32 * KIB)) + GRACE
    assert scene.timed(lambda: path.write_bytes(content), limit) in errnos

    def spools() -> list[Path]:
        failed = scene.mount.status()["failed"]
        return [Path(item["spool"]) for item in failed if item["path"] == "/new.bin"]

    until(lambda: any(spool.read_bytes() == content for spool in spools()), "the content is in the spool")


FRAME = struct.Struct("<qH")


def test_frames_for_unknown_streams(scene: Scene) -> None:
    sessions = scene.channel.sessions
    for sid in [0, -1, 1 << 62, *range(1_000_000, 1_020_000)]:
        scene.send(FRAME.pack(sid, 20) + b"HTTP/1.1 200 OK\r\n\r\n0")
        scene.send(FRAME.pack(sid, 0))
    assert (scene.mount.path / "good.txt").read_bytes() == GOOD
    assert scene.channel.sessions == sessions


def test_a_flood_on_a_stream_that_was_given_up(scene: Scene) -> None:
    """The body goes on for 300 MiB after the reader has left."""
    over = threading.Event()

    def flood() -> Answer:
        yield head(200, ETag='"1"', Content_Length=1 << 40)
        for _ in range(5000):  # also when the host has closed the stream
            scene.send(FRAME.pack(stream[0], 60_000) + bytes(60_000))
        over.set()

    def get(request: Request) -> Answer:
        stream.append(request.stream)
        return flood()

    stream: list[int] = []
    folder = scene.folder_with(entry("{}/flood", 1 << 40, '<D:getetag>"1"</D:getetag>'))
    scene.liar.special["GET", f"/lies/{folder.name}/flood"] = get
    with (folder / "flood").open("rb", buffering=0) as file:
        assert file.read(4096) == bytes(4096)
    assert (scene.mount.path / "good.txt").read_bytes() == GOOD
    assert over.wait(60)


def test_a_channel_out_of_step(scene: Scene) -> None:
    """A frame that lacks its content takes it from those that follow; the next connection begins anew."""
    session = scene.channel.session(5)
    sessions = scene.channel.sessions
    scene.send(FRAME.pack(1, 0xFFFF))
    until(lambda: outcome(lambda: names_in(scene.mount.path)) == SLOW, "an error")
    session.close()
    until(lambda: scene.channel.sessions > sessions, "the next session")
    scene.mount.wait_state("open")
    assert (scene.mount.path / "good.txt").read_bytes() == GOOD


def test_a_client_that_comes_and_goes_at_once(scene: Scene) -> None:
    for _ in range(20):
        scene.channel.session(5).close()
    until(lambda: outcome((scene.mount.path / "good.txt").read_bytes) == 0, "the file is read")
