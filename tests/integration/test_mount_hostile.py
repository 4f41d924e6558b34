"""Versions that change under a reader, and a flood, seen from a real mount.

The sharing side is scripted, answer by answer, behind a real mux. Whatever it does,
operations end with a plain errno within their limits, what was read is never wrong,
the bridge's memory stays bounded, and honest answers work again afterwards.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvbridge.channel.channel import Channel, State
from hvbridge.channel.opening import open_channel
from hvbridge.channel.session import Session, Stream, spawn
from hvbridge.errors import ChannelError
from hvbridge.spice.mux import Role
from tests.support.mounted import Mounted, mounted, names_in, outcome, until

pytestmark = pytest.mark.peers("fuse")

LIMIT = 3.0
"""``-o timeout``: also what the client may be silent for."""

SLACK = 4.0
ACTIMEO = 0.3
MEMORY = 300 << 20

Send = Callable[[bytes], None]
Script = Callable[[str, str, dict[str, str], Send], None]


class HostileShare:
    """Answers requests on ``socket`` by ``script(method, path, headers, send)``, one a stream."""

    def __init__(self, socket: Path) -> None:
        self.script: Script = honest
        self.session: Session | None = None
        self._channel = Channel(open_channel(f"unix-listen://{socket}"), Role.SHARE, on_state=self._state)
        self._channel.start()

    def _state(self, state: State) -> None:
        if state is State.OPEN:
            self.session = session = self._channel.session(0)
            spawn("hostile-accept", lambda: self._accept(session))

    def _accept(self, session: Session) -> None:
        while (stream := session.accept()) is not None:
            spawn("hostile", lambda stream=stream: self._serve(stream))  # type: ignore[misc]

    def _serve(self, stream: Stream) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                if not (piece := stream.read(1 << 20, 30)):
                    return
                data += piece
            first, *lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            method, target, _ = first.split(" ")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
            self.script(method, target, headers, lambda piece: stream.write(piece, 30))
        except ChannelError:
            pass
        finally:
            stream.close()

    def close(self) -> None:
        self._channel.close()


def head(status: int, length: int, *extra: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Server: Hostile/1", f"Content-Length: {length}", *extra]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def entry(href: str, size: int | None = None, etag: str = '"1"') -> str:
    kind = "<D:resourcetype><D:collection/></D:resourcetype>"
    if size is not None:
        kind = (
            f"<D:resourcetype/><D:getcontentlength>{size}</D:getcontentlength><D:getetag>{etag}</D:getetag>"
        )
    return (
        f"<D:response><D:href>{href}</D:href><D:propstat><D:prop>{kind}</D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )


def listing(*entries: str) -> bytes:
    xml = ('<D:multistatus xmlns:D="DAV:">' + "".join(entries) + "</D:multistatus>").encode()
    return head(207, len(xml), "Content-Type: application/xml") + xml


SMALL, BIG = 1000, 4 << 20
CONTENT = {"/small": os.urandom(SMALL), "/big": os.urandom(BIG)}


def honest(method: str, path: str, headers: dict[str, str], send: Send) -> None:
    """A plain read-only server of two files."""
    if method == "PROPFIND" and path == "/":
        send(listing(entry("/"), *(entry(p, len(c)) for p, c in CONTENT.items())))
    elif path not in CONTENT:
        send(head(404, 0))
    elif method == "PROPFIND":
        send(listing(entry(path, len(CONTENT[path]))))
    elif method == "GET":
        send(head(200, len(CONTENT[path]), 'ETag: "1"') + CONTENT[path])
    else:
        send(head(403, 0))


def on(method: str, lie: Script) -> Script:
    """Lie to one method, be honest to the others."""

    def script(asked: str, path: str, headers: dict[str, str], send: Send) -> None:
        (lie if asked == method else honest)(asked, path, headers, send)

    return script


Both = tuple[Mounted, HostileShare]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    work = tmp_path_factory.mktemp("hostile")
    share = HostileShare(work / "sock")
    options = ("-o", f"timeout={LIMIT:g},grace=2,actimeo={ACTIMEO:g}")
    with mounted(work, *options, client=False, channel=f"unix://{work / 'sock'}", watchdog=600) as mount:
        yield mount, share
    share.close()


@pytest.fixture(autouse=True)
def honest_afterwards(both: Both) -> Iterator[None]:
    mount, share = both
    share.script = honest
    until(lambda: outcome(lambda: (mount.path / "small").read_bytes()) == 0, "an honest answer", 20)
    forget_listing(mount)
    yield
    share.script = honest
    for name in ("small", "big"):
        until(lambda name=name: outcome(lambda: (mount.path / name).read_bytes()) == 0, "honesty again", 20)  # type: ignore[misc]
        assert (mount.path / name).read_bytes() == CONTENT[f"/{name}"]
    assert mount.process.poll() is None
    assert mount.peak_memory() < MEMORY


def forget_listing(mount: Mounted) -> None:
    """Let what was listed grow old, so that the next operation asks again."""
    time.sleep(ACTIMEO + 0.1)


def ends(operation: Callable[[], object], limit: float = 2 * LIMIT) -> int:
    began = time.monotonic()
    result = outcome(operation)
    assert time.monotonic() - began < limit + SLACK
    return result


def test_an_etag_that_changes_in_the_middle_ends_that_version(both: Both) -> None:
    mount, share = both
    other = bytes(BIG)
    asked = threading.Event()

    def script(method: str, path: str, headers: dict[str, str], send: Send) -> None:
        if method == "PROPFIND":
            found = [entry("/big", BIG, "&quot;m1&quot;")]
            send(listing(*([entry("/")] if path == "/" else []), *found))
        elif method == "GET" and not asked.is_set():
            asked.set()
            send(head(200, BIG, 'ETag: "m1"') + CONTENT["/big"][:60_000])
        elif method == "GET":
            send(head(200, BIG, 'ETag: "m2"') + other)

    share.script = script
    with (mount.path / "big").open("rb", buffering=0) as file:
        begin = os.pread(file.fileno(), 4096, 0)
        assert begin == CONTENT["/big"][:4096]
        assert ends(lambda: os.pread(file.fileno(), 4096, BIG - 4096)) == errno.EIO
        assert ends(lambda: os.pread(file.fileno(), 4096, BIG // 2)) == errno.EIO


def test_another_version_of_the_same_size_and_time_is_not_served_from_the_kernels_pages(both: Both) -> None:
    mount, share = both
    other = bytes(BIG)
    assert (mount.path / "big").read_bytes() == CONTENT["/big"]

    def script(method: str, path: str, headers: dict[str, str], send: Send) -> None:
        if method == "PROPFIND":
            found = [entry("/big", BIG, "&quot;other&quot;")]
            send(listing(*([entry("/")] if path == "/" else []), *found))
        elif method == "GET":
            send(head(200, BIG, 'ETag: "other"') + other)

    share.script = script
    until(lambda: (mount.path / "big").read_bytes() == other, "the other version", 10)


def test_a_flood_that_nobody_reads_stops_nobody_else(both: Both) -> None:
    mount, share = both

    def flood(method: str, path: str, headers: dict[str, str], send: Send) -> None:
        send(head(200, 1 << 40, 'ETag: "flood"'))
        ends_at = time.monotonic() + 4
        while time.monotonic() < ends_at:
            send(bytes(60_000))

    def script(method: str, path: str, headers: dict[str, str], send: Send) -> None:
        if method == "PROPFIND" and path == "/":
            send(
                listing(entry("/"), entry("/flood", 1 << 40), *(entry(p, len(c)) for p, c in CONTENT.items()))
            )
        else:
            (flood if path == "/flood" else honest)(method, path, headers, send)

    share.script = script
    with (mount.path / "flood").open("rb", buffering=0) as file:
        assert len(file.read(4096)) == 4096
        assert ends(lambda: (mount.path / "small").read_bytes()) == 0
    assert "small" in names_in(mount.path)
