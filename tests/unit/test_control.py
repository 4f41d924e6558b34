"""The control socket, against a bridge that is not one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvbridge import control
from hvbridge.control import ControlServer, NoBridge, ask_status, ask_stop, socket_path
from hvbridge.errors import HvbridgeError, UsageError


class FakeBridge:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {"mountpoint": "/mnt", "state": "open"}
        self.clean = True
        self.error: HvbridgeError | None = None
        self.steps = 3
        self.pace = 0.0
        self.deadlines: list[float] = []
        self.stopped = threading.Event()

    def status(self) -> dict[str, Any]:
        return self.answer

    def stop(self, *, deadline: float, progress: control.Progress | None = None) -> bool:
        self.deadlines.append(deadline)
        if self.error is not None:
            raise self.error
        for left in range(self.steps, 0, -1):
            time.sleep(self.pace)
            if progress is not None:
                progress({"pending": [{"path": "a", "size": left}]})
        self.stopped.set()
        return self.clean


@pytest.fixture
def bridge() -> FakeBridge:
    return FakeBridge()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return socket_path(tmp_path / "run", Path("/srv/client"))


@pytest.fixture
def server(path: Path, bridge: FakeBridge) -> Iterator[ControlServer]:
    server = ControlServer(path)
    server.claim()
    server.start(bridge)
    yield server
    server.close()


def raw(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Send bytes, read all events until the server closes."""
    with socket.socket(socket.AF_UNIX) as sock, control._reachable(path) as name:
        sock.settimeout(10)
        sock.connect(name)
        sock.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):  # closed without having read all of ours
            while piece := sock.recv(65536):
                received += piece
    return [json.loads(line) for line in received.splitlines()]


# --- status and stop ------------------------------------------------------


def test_status(server: ControlServer, bridge: FakeBridge) -> None:
    bridge.answer = {"mountpoint": "/mnt", "pending": [{"path": "ä\n"}] * 3000}
    assert ask_status(server.path) == bridge.answer


def test_stop_passes_progress_and_the_result_on(server: ControlServer, bridge: FakeBridge) -> None:
    seen: list[dict[str, Any]] = []
    bridge.pace = control.PROGRESS_EVERY * 1.1
    assert ask_stop(server.path, deadline=7.5, progress=seen.append)
    assert bridge.deadlines == [7.5]
    assert [event["pending"][0]["size"] for event in seen] == [3, 2, 1]


def test_stop_that_left_something(server: ControlServer, bridge: FakeBridge) -> None:
    bridge.clean = False
    assert not ask_stop(server.path, deadline=0)


def test_progress_is_thinned_out(server: ControlServer, bridge: FakeBridge) -> None:
    bridge.steps = 10_000
    seen: list[dict[str, Any]] = []
    started = time.monotonic()
    assert ask_stop(server.path, deadline=1, progress=seen.append)
    most = (time.monotonic() - started) / control.PROGRESS_EVERY + 1
    assert 1 <= len(seen) <= most


def test_error_of_the_bridge_reaches_the_operator(server: ControlServer, bridge: FakeBridge) -> None:
    bridge.error = HvbridgeError("/mnt is busy: files are open")
    with pytest.raises(HvbridgeError, match="/mnt is busy: files are open"):
        ask_stop(server.path, deadline=1)


def test_a_client_that_leaves_does_not_stop_the_stop(server: ControlServer, bridge: FakeBridge) -> None:
    bridge.steps, bridge.pace = 5, control.PROGRESS_EVERY
    with socket.socket(socket.AF_UNIX) as sock, control._reachable(server.path) as name:
        sock.connect(name)
        sock.sendall(b'{"request": "stop", "deadline": 1}\n')
        sock.settimeout(10)
        assert sock.recv(10)
    assert bridge.stopped.wait(10)


def test_many_ask_at_once(server: ControlServer) -> None:
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(ask_status(server.path)["state"])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == ["open"] * 8


# --- what it refuses ------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"status\n",
        b"[]\n",
        b"{}\n",
        b"\xff\xfe\n",
        b'{"request": "format"}\n',
        b'{"request": ["status"]}\n',
        b'{"request": "stop"}\n',
        b'{"request": "stop", "deadline": -1}\n',
        b'{"request": "stop", "deadline": true}\n',
        b'{"request": "stop", "deadline": NaN}\n',
        b'{"request": "stop", "deadline": Infinity}\n',
        b'{"request": "stop", "deadline": "9"}\n',
        b"[" * 4000 + b"\n",
    ],
)
def test_nonsense_is_answered_with_an_error(server: ControlServer, bridge: FakeBridge, line: bytes) -> None:
    (event,) = raw(server.path, line)
    assert event["event"] == "error"
    assert bridge.deadlines == []
    assert ask_status(server.path)["state"] == "open"


def test_a_line_without_end_is_cut_off(server: ControlServer) -> None:
    (event,) = raw(server.path, b"x" * (control.MAX_REQUEST + 1))
    assert "too long" in event["error"]


def test_a_silent_client_is_dropped(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.1)
    (event,) = raw(server.path, b'{"request"')
    assert "no whole line" in event["error"]


def test_too_many_clients_are_turned_away(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 1)
    with socket.socket(socket.AF_UNIX) as idle, control._reachable(server.path) as name:
        idle.connect(name)
        with pytest.raises(HvbridgeError, match=r"ended without|control socket failed|cannot talk") as caught:
            ask_status(server.path)
        assert not isinstance(caught.value, NoBridge)


def test_another_user_is_refused(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_uid", lambda sock: os.geteuid() + 1)
    (event,) = raw(server.path, b'{"request": "status"}\n')
    assert "only the user of this mount" in event["error"]


def test_the_kernel_names_the_peer() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert control.peer_uid(left) == os.geteuid()


def test_a_bridge_that_floods_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_EVENT", 1000)
    server = ControlServer(path)
    server.claim()
    bridge = FakeBridge()
    bridge.answer = {"x": "y" * 200_000}
    server.start(bridge)
    with pytest.raises(HvbridgeError, match="too long"):
        ask_status(path)
    server.close()


def test_a_bridge_that_hangs_is_given_up(path: Path) -> None:
    server = ControlServer(path)
    server.claim()  # listens, and nobody answers
    with pytest.raises(HvbridgeError, match="no whole line"):
        ask_status(path, timeout=0.1)
    server.close()


# --- names and locks ------------------------------------------------------


def test_nobody_there(path: Path) -> None:
    with pytest.raises(NoBridge):
        ask_status(path)


def test_one_bridge_a_mountpoint(server: ControlServer) -> None:
    with pytest.raises(UsageError, match="another hvbridge"):
        ControlServer(server.path).claim()
    assert ask_status(server.path)["state"] == "open"


def test_the_name_is_free_after_close(path: Path, bridge: FakeBridge) -> None:
    for _ in range(2):
        server = ControlServer(path)
        server.claim()
        server.start(bridge)
        assert ask_status(path)
        server.close()
        server.close()
        assert not path.exists()


def test_a_crashed_bridge_leaves_a_socket_that_the_next_replaces(path: Path, bridge: FakeBridge) -> None:
    control.private_directory(path.parent)
    with socket.socket(socket.AF_UNIX) as old, control._reachable(path) as name:
        old.bind(name)
    with pytest.raises(NoBridge):
        ask_status(path)
    server = ControlServer(path)
    server.claim()
    server.start(bridge)
    assert ask_status(path)
    server.close()


def test_remove_stale(path: Path) -> None:
    control.private_directory(path.parent)
    path.touch()
    control.remove_stale(path)
    assert not path.exists()


def test_remove_stale_leaves_a_live_one(server: ControlServer) -> None:
    control.remove_stale(server.path)
    assert ask_status(server.path)


def test_a_folder_name_longer_than_a_socket_address(tmp_path: Path, bridge: FakeBridge) -> None:
    path = socket_path(tmp_path / ("x" * 120), Path("/mnt"))
    server = ControlServer(path)
    server.claim()
    server.start(bridge)
    assert ask_status(path)
    server.close()


def test_names_differ_and_are_found(tmp_path: Path) -> None:
    one, two = (socket_path(tmp_path, Path(name)) for name in ("/mnt/a", "/mnt/b"))
    assert one != two
    assert control.sockets(tmp_path / "none") == []
    one.touch()
    two.touch()
    one.with_suffix(".lock").touch()
    assert control.sockets(tmp_path) == sorted([one, two])


def test_private_directory(tmp_path: Path) -> None:
    made = control.private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o770)
    with pytest.raises(HvbridgeError, match="other users"):
        control.private_directory(made)
    with pytest.raises(HvbridgeError, match="cannot create"):
        control.private_directory(Path("/dev/null/x"))


def test_private_directory_in_a_folder_of_strangers(tmp_path: Path) -> None:
    """Others could rename it away and put their own in its place, but for the sticky bit."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(HvbridgeError, match="other users"):
        control.private_directory(shared / "run")
    shared.chmod(0o1777)
    control.private_directory(shared / "run")
