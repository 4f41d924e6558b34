"""The life of a share, and the plain HTTP one."""

from __future__ import annotations

import http.client
import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hvbridge.channel.opening import open_channel
from hvbridge.channel.session import Session, spawn
from hvbridge.errors import UsageError
from hvbridge.share.server import HttpShare, Share
from hvbridge.spice.mux import Role
from tests.support.dav import Dav
from tests.support.pipes import QueueOpener, eventually, pair

T = 10.0


def test_hosts_come_and_go_until_it_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    events: list[str] = []
    listener = open_channel(f"unix-listen://{tmp_path}/s")
    share = Share(folder, listener, on_event=events.append)
    running = spawn("test-share", share.run)
    connector = open_channel(f"unix://{tmp_path}/s")
    for i in range(3):
        session = Session(connector.open(), Role.HOST)
        spawn("test-host", session.run)
        dav = Dav(session)
        assert dav.put(f"/f{i}", b"x") == 201
        assert len(dav.names("/")) == i + 1
        session.close()
        eventually(lambda i=i: share.channel.sessions == i + 1 and share.channel.current is None)  # type: ignore[misc]
    share.close()
    running.join(T)
    assert not running.is_alive()
    assert sum(text.startswith("connected: ") for text in events) == 3
    assert "PUT '/f0': 201 Created" in events
    assert events[-1].startswith("closed: ")
    assert not (tmp_path / "s").exists()


def test_what_comes_once_ends_it(tmp_path: Path) -> None:
    near, far = pair()
    opener = QueueOpener(once=True)
    opener.put(far)
    share = Share(tmp_path, opener)
    running = spawn("test-share", share.run)
    near.close()
    running.join(T)
    assert not running.is_alive()


def test_no_thread_and_no_descriptor_stays(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))

    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def once() -> None:
        near, far = pair()
        opener = QueueOpener(once=True)
        opener.put(far)
        running = spawn("test-share", Share(tmp_path, opener).run)
        session = Session(near, Role.HOST)
        reading = spawn("test-host", session.run)
        streams = [session.open_stream() for _ in range(20)]
        for stream in streams:
            stream.write(b"GET /f HTTP/1.1\r\nHost: x\r\n\r\n")
            assert stream.read(10, T)
        session.close()
        running.join(T)
        reading.join(T)

    once()  # imports and caches
    before = threading.active_count(), open_files()
    once()
    eventually(lambda: threading.active_count() <= before[0] and open_files() <= before[1])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        Share(tmp_path / "none", QueueOpener())
    with pytest.raises(UsageError, match="is no folder"):
        HttpShare(tmp_path / "none")


def test_plain_http(tmp_path: Path) -> None:
    body = os.urandom(1 << 20)
    with HttpShare(tmp_path) as share:
        where = urlsplit(share.url)
        assert where.hostname == "127.0.0.1"
        client = http.client.HTTPConnection("127.0.0.1", where.port or 0, timeout=T)
        client.request("PUT", "/f", body)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (201, b"")
        client.request("GET", "/f")
        assert client.getresponse().read() == body
        client.request("MOVE", "/f", headers={"Destination": f"{share.url}g%3F"})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (201, b"")
        client.close()
    assert (tmp_path / "g?").read_bytes() == body
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", where.port or 0, timeout=T).request("GET", "/")


def test_plain_http_read_only(tmp_path: Path) -> None:
    with HttpShare(tmp_path, read_only=True) as share:
        client = http.client.HTTPConnection("127.0.0.1", urlsplit(share.url).port or 0, timeout=T)
        client.request("PUT", "/f", b"x")
        assert client.getresponse().status == 403
        client.close()
    assert list(tmp_path.iterdir()) == []
