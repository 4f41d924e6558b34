"""The control socket of a mount: ``hvbridge status`` and ``hvbridge umount`` talk to the bridge.

One unix socket a mount in :attr:`Paths.runtime`, named by a hash of the
mountpoint, so that it can be found without touching the mount. A lock file
beside it is held for as long as the bridge lives: who gets the lock owns the
name, and a socket without a locked file is a leftover.

Protocol: JSON lines. The client sends one request and reads events until the
last one, after which the server closes::

    {"request": "status"}                   → {"event": "status", "status": {…}}
    {"request": "stop", "deadline": 60.0}   → {"event": "progress", …}, as often as there is any
                                            → {"event": "stopped", "clean": true}
    anything else, or a failure             → {"event": "error", "error": "one line"}

Only the bridge's own user and root are answered (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from hvbridge.config import KIB, MIB
from hvbridge.errors import HvbridgeError, UsageError

log = logging.getLogger(__name__)

MAX_REQUEST = 4 * KIB
"""Bytes of one request line; real ones have 40."""

MAX_EVENT = 16 * MIB
"""Bytes of one answer line: a status that names some 50,000 pending files."""

REQUEST_SECONDS = 5.0
"""From accepting a connection to its whole request, and for each line sent to it."""

MAX_CLIENTS = 16
"""Connections served at once; more are closed unanswered."""

PROGRESS_EVERY = 0.1
"""Seconds between two progress events: a person cannot read faster."""

CLOSE_SECONDS = 2.0
"""How long the end of a bridge waits for answers under way."""

UCRED = struct.Struct("3i")
"""``struct ucred`` of unix(7): pid, uid, gid."""

Progress = Callable[[dict[str, Any]], None]


class NoBridge(HvbridgeError):
    """Nobody answers for this mountpoint."""


class Controlled(Protocol):
    """What the socket gives access to; :class:`hvbridge.bridge.Bridge` is one."""

    def status(self) -> dict[str, Any]:
        """The state of the mount, JSON-able."""
        ...

    def stop(self, *, deadline: float, progress: Progress | None = None) -> bool:
        """Finish uploads for at most ``deadline`` seconds, unmount; true if nothing was left."""
        ...


# --- where sockets are ----------------------------------------------------


def socket_path(runtime: Path, mountpoint: Path) -> Path:
    """The control socket for a mountpoint, which must be canonical."""
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return runtime / f"{digest}.sock"


def sockets(runtime: Path) -> list[Path]:
    """All control sockets there, dead ones too; none if there is no such folder."""
    return sorted(runtime.glob("*.sock")) if runtime.is_dir() else []


def remove_stale(path: Path) -> None:
    """Remove the socket that a crashed bridge left at ``path``; does nothing while one is alive."""
    with contextlib.suppress(HvbridgeError):
        lock = _take_lock(path.with_suffix(".lock"))
        path.unlink(missing_ok=True)
        os.close(lock)


def private_directory(path: Path) -> Path:
    """Create ``path`` with mode 0700, or check that nobody else could have put something there.

    Raises :class:`HvbridgeError` for a folder of another user, or one that others
    may write to or replace.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        safe = _only_ours(path.stat()) and _cannot_be_replaced(path.resolve().parent.stat())
    except OSError as exc:
        raise HvbridgeError(f"cannot create {path}: {exc.strerror}; set HVBRIDGE_RUNTIME_DIR") from exc
    if not safe:
        raise HvbridgeError(
            f"{path} can be changed by other users: remove it, or set HVBRIDGE_RUNTIME_DIR to your own folder"
        )
    return path


def _only_ours(folder: os.stat_result) -> bool:
    return folder.st_uid == os.geteuid() and not folder.st_mode & 0o022


def _cannot_be_replaced(parent: os.stat_result) -> bool:
    """Whether only we and root may rename what is in it; in a sticky folder, others may not either."""
    trusted = parent.st_uid in (0, os.geteuid())
    return trusted and (not parent.st_mode & 0o022 or bool(parent.st_mode & stat.S_ISVTX))


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for ``path`` short enough for ``sockaddr_un`` (108 bytes), whatever the folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


# --- lines ----------------------------------------------------------------


class _Lines:
    """JSON objects as lines over a socket, bounded in size and in time."""

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._sock, self._limit = sock, limit
        self._buffer = bytearray()

    def read(self, seconds: float) -> dict[str, Any] | None:
        """The next object; ``None`` at the end. Raises :class:`HvbridgeError` on anything else."""
        ends_at = time.monotonic() + seconds
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > self._limit:
                raise HvbridgeError("a line on the control socket is too long")
            left = ends_at - time.monotonic()
            if left <= 0:
                raise HvbridgeError(f"no whole line within {seconds:g} s")
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(64 * KIB)
            except TimeoutError:
                continue
            except OSError as exc:
                raise HvbridgeError(f"the control socket failed: {exc.strerror}") from exc
            if not data:
                return None
            self._buffer += data
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return _decode(line)

    def write(self, event: dict[str, Any], seconds: float = REQUEST_SECONDS) -> None:
        """Send one object. Raises :class:`OSError`."""
        self._sock.settimeout(seconds)
        self._sock.sendall(json.dumps(event).encode() + b"\n")


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise HvbridgeError("a line on the control socket is not JSON") from exc
    if not isinstance(value, dict):
        raise HvbridgeError("a line on the control socket is not an object")
    return value


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket, as the kernel saw it connect."""
    return int(UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))[1])


# --- the bridge's side ----------------------------------------------------


class ControlServer:
    """Answers for one bridge on ``path``: :meth:`claim`, then :meth:`start`, at the end :meth:`close`.

    One accepting thread and one for each connection, all daemons.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._listener: socket.socket | None = None
        self._handlers: set[threading.Thread] = set()

    def claim(self) -> None:
        """Take the name and listen, before anything is mounted.

        Clients that connect before :meth:`start` wait in the backlog. Raises
        :class:`UsageError` if a bridge for this mountpoint is alive.
        """
        private_directory(self.path.parent)
        self._lock = _take_lock(self.path.with_suffix(".lock"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            with _reachable(self.path) as name:
                listener.bind(name)
            listener.listen(MAX_CLIENTS)
        except OSError as exc:
            listener.close()
            self.close()
            raise HvbridgeError(f"cannot listen on {self.path}: {exc.strerror}") from exc
        self._listener = listener

    def start(self, bridge: Controlled) -> None:
        """Begin to answer for ``bridge``; returns at once."""
        if self._listener is None:
            raise RuntimeError("claim() comes first")
        arguments = (self._listener, bridge)
        threading.Thread(target=self._accept, args=arguments, name="hvbridge-control", daemon=True).start()

    def close(self) -> None:
        """Remove the socket, let answers under way leave, free the name. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        ends_at = time.monotonic() + CLOSE_SECONDS
        for thread in list(self._handlers):
            if thread is not threading.current_thread():
                thread.join(max(0.0, ends_at - time.monotonic()))
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _accept(self, listener: socket.socket, bridge: Controlled) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self._handlers = {thread for thread in self._handlers if thread.is_alive()}
            if len(self._handlers) >= MAX_CLIENTS:
                sock.close()
                continue
            thread = threading.Thread(
                target=_serve, args=(sock, bridge), name="hvbridge-control-client", daemon=True
            )
            self._handlers.add(thread)
            thread.start()


def _serve(sock: socket.socket, bridge: Controlled) -> None:
    """One connection, from its request to the last event."""
    with sock:
        lines = _Lines(sock, MAX_REQUEST)
        try:
            request = lines.read(REQUEST_SECONDS)
            # After reading, since who is refused should be able to read why.
            if peer_uid(sock) not in (0, os.geteuid()):
                raise HvbridgeError("only the user of this mount, or root, may control it")
            if request is not None:
                _answer(request, lines, bridge)
        except HvbridgeError as exc:
            with contextlib.suppress(OSError):
                lines.write({"event": "error", "error": str(exc)})
        except OSError as exc:
            log.info("control client went away: %s", exc)


def _answer(request: dict[str, Any], lines: _Lines, bridge: Controlled) -> None:
    match request.get("request"):
        case "status":
            lines.write({"event": "status", "status": bridge.status()})
        case "stop":
            deadline = _seconds(request.get("deadline"))
            clean = bridge.stop(deadline=deadline, progress=_ProgressEvents(lines))
            lines.write({"event": "stopped", "clean": clean})
        case _:
            raise HvbridgeError("unknown request: known are status and stop")


class _ProgressEvents:
    """Passes progress on to a client, not too often; a client that went away does not stop a stop."""

    def __init__(self, lines: _Lines) -> None:
        self._lines: _Lines | None = lines
        self._next = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        if self._lines is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_EVERY
        try:
            self._lines.write({**state, "event": "progress"})
        except OSError:
            log.info("the client that asked to stop went away; stopping all the same")
            self._lines = None


def _seconds(value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and value >= 0:  # type: ignore[arg-type,operator]
        return float(value)  # type: ignore[arg-type]
    raise HvbridgeError("stop needs a deadline in seconds, 0 or more")


def _take_lock(path: Path) -> int:
    """An exclusively locked descriptor; the file stays, since removing it would race."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise HvbridgeError(f"cannot create {path}: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(lock)
        raise UsageError("another hvbridge serves this mountpoint: see 'hvbridge status'") from exc
    return lock


# --- the operator's side --------------------------------------------------


def ask_status(path: Path, timeout: float = 5.0) -> dict[str, Any]:
    """The status of the bridge at ``path``. Raises :class:`NoBridge`, or :class:`HvbridgeError`."""
    for event in _ask(path, {"request": "status"}, timeout):
        if event.get("event") == "status" and isinstance(event.get("status"), dict):
            return dict(event["status"])
    raise HvbridgeError("the bridge ended without an answer")


def ask_stop(path: Path, *, deadline: float, progress: Progress | None = None) -> bool:
    """Have the bridge finish its uploads for at most ``deadline`` seconds and unmount.

    True if nothing was left. Raises :class:`NoBridge`, or :class:`HvbridgeError`.
    """
    # Unmounting comes after the uploads and has time limits of its own.
    timeout = deadline + 60.0
    for event in _ask(path, {"request": "stop", "deadline": deadline}, timeout):
        if event.get("event") == "stopped":
            return bool(event.get("clean"))
        if event.get("event") == "progress" and progress is not None:
            progress(event)
    raise HvbridgeError("the bridge ended before it said whether all was uploaded: see 'hvbridge status'")


def _ask(path: Path, request: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
    """Send ``request`` and yield the events, all within ``timeout`` seconds."""
    ends_at = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(REQUEST_SECONDS)
        lines = _Lines(sock, MAX_EVENT)
        try:
            with _reachable(path) as name:
                sock.connect(name)
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise NoBridge("no bridge answers for this mountpoint") from exc
        except OSError as exc:
            raise HvbridgeError(f"cannot reach the bridge at {path}: {exc}") from exc
        try:
            lines.write(request)
        except OSError as exc:
            raise HvbridgeError(f"cannot talk to the bridge at {path}: {exc}") from exc
        while (event := lines.read(max(0.0, ends_at - time.monotonic()))) is not None:
            if event.get("event") == "error":
                raise HvbridgeError(str(event.get("error")))
            yield event
