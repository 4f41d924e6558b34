"""A mount as an operator makes it: ``hvbridge mount`` in a process of its own, and its clients.

Whatever a test does to them, nothing stays mounted and no process stays behind. A
bridge that hangs would hang whoever touches its mount, beyond the reach of a test's
timeout: so a watchdog kills the bridge after :data:`WATCHDOG` seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hvbridge import control, mounts
from hvbridge.errors import HvbridgeError
from tests.support.spice_gtk import SpiceClient

WATCHDOG = 100.0
"""Seconds after which a bridge is killed: before pytest's own timeout."""

START = 20.0
"""Seconds that a mount may take to appear, a client to be there, a bridge to end."""

LISTEN = "spice-listen://127.0.0.1:0"
HVBRIDGE = [sys.executable, "-m", "hvbridge"]


def until(true: Callable[[], object], what: str, timeout: float = START) -> None:
    """Wait until ``true()``; fails after ``timeout`` seconds, saying ``what`` did not happen."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)


class Mounted:
    """One mount below ``work``, which may outlive its bridge: see :meth:`start`.

    ``path``: the mountpoint. ``shared``: the folder that its clients share. The bridge's
    spool, sockets and log are below ``work``, too.
    """

    def __init__(self, work: Path, *options: str, channel: str = LISTEN, watchdog: float = WATCHDOG) -> None:
        self.work = work
        self.path, self.shared = work / "mnt", work / "shared"
        self.state, self.runtime = work / "state", work / "run"
        for folder in (self.path, self.shared, self.state):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "HVBRIDGE_STATE_DIR": str(self.state),
            "HVBRIDGE_RUNTIME_DIR": str(self.runtime),
        }
        self._options, self._channel, self._seconds = options, channel, watchdog
        self._log_path = work / "bridge.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: threading.Timer | None = None
        self._clients = contextlib.ExitStack()

    # --- the bridge -----------------------------------------------------

    def start(self) -> None:
        """Run ``hvbridge mount``; returns when the kernel has the mount and ``status`` answers."""
        argv = [*HVBRIDGE, "mount", self._channel, str(self.path), "--foreground", "-v", *self._options]
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._process = process
        self._watchdog = threading.Timer(self._seconds, process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        until(lambda: process.poll() is not None or self._answers(), f"the mount: {self.log}")
        assert process.poll() is None, f"hvbridge mount ended: {self.log}"

    def _answers(self) -> bool:
        with contextlib.suppress(HvbridgeError):
            return bool(self.status()) and mounts.mount_at(self.path) is not None
        return False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The bridge's process."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """What the bridge has said so far."""
        return self._log_path.read_text(errors="replace")

    def wait(self, timeout: float = START) -> int:
        """The bridge's exit status, once it has ended by itself."""
        status = self.process.wait(timeout)
        if self._watchdog is not None:
            self._watchdog.cancel()
        return status

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.wait()

    def close(self) -> None:
        """End clients and bridge, take the mount down whatever state it is in."""
        try:
            self._clients.close()
        finally:
            if self._process is not None:
                self._end(self._process)
            while mounts.mount_at(self.path) is not None:
                mounts.unmount(self.path, lazy=True)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            # Nobody waits for uploads that a test left behind.
            with contextlib.suppress(HvbridgeError):
                control.ask_stop(self.control_socket, deadline=0.0)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        self.wait()

    # --- asking it ------------------------------------------------------

    @property
    def control_socket(self) -> Path:
        """Where the bridge is asked."""
        return control.socket_path(self.runtime, self.path)

    def status(self) -> dict[str, Any]:
        """The bridge's own account of the mount."""
        return control.ask_status(self.control_socket)

    def hvbridge(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command of ``hvbridge``, in the mount's surroundings."""
        return subprocess.run(
            [*HVBRIDGE, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def status_command(self) -> dict[str, Any]:
        """``hvbridge status --json``."""
        done = self.hvbridge("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def unsent(self) -> dict[str, Path]:
        """Content that ``hvbridge status`` names as not (yet) at the client: path to spool file."""
        found = self.status_command()
        named = [item for state in found["mounts"] for item in (*state["pending"], *state["failed"])]
        return {item["path"]: Path(item["spool"]) for item in (*named, *found["left_over"])}

    def peak_memory(self) -> int:
        """Bytes of memory that the bridge had at most so far (VmHWM)."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    # --- clients --------------------------------------------------------

    @property
    def port(self) -> int:
        """Where the bridge listens."""
        return int(self.status()["channel"].rpartition(":")[2])

    def client(
        self,
        folder: Path | None = None,
        *,
        port: int | None = None,
        read_only: bool = False,
        password: str | None = None,
    ) -> SpiceClient:
        """A spice-gtk that shares ``folder``, connected (through ``port``, a relay's) and served.

        It ends with the mount, or earlier by :meth:`SpiceClient.leave` or ``kill``.
        """
        client = SpiceClient(
            f"spice://127.0.0.1:{port or self.port}",
            folder or self.shared,
            read_only=read_only,
            password=password,
        )
        self._clients.enter_context(client)
        client.wait_port_open()
        self.wait_state("open")
        return client

    def wait_state(self, state: str, timeout: float = START) -> None:
        """Until the bridge says that its channel is ``open``, or ``waiting``."""
        until(lambda: self.status()["state"] == state, f"state {state}: {self.status()}", timeout)

    def client_has(self, name: str, content: bytes | bytearray | str, timeout: float = 5.0) -> None:
        """Until the client's disk has exactly ``content`` as ``name``.

        phodav answers a PUT just before the new content is in place.
        """
        wanted = content.encode() if isinstance(content, str) else content
        path = self.shared / name
        until(lambda: path.exists() and path.read_bytes() == wanted, f"the new {name} at the client", timeout)

    def part_files(self) -> list[Path]:
        """What uploads of the bridge left on the client, under names that are never shown.

        A client that was killed leaves a ``.goutputstream-…`` of its own; nobody else removes that.
        """
        return list(self.shared.rglob(".hvbridge-*"))


@contextlib.contextmanager
def mounted(
    work: Path, *options: str, client: bool = True, channel: str = LISTEN, watchdog: float = WATCHDOG
) -> Iterator[Mounted]:
    """A started mount below ``work``, by default with a client; all gone at the end."""
    mount = Mounted(work, *options, channel=channel, watchdog=watchdog)
    try:
        mount.start()
        if client:
            mount.client()
        yield mount
    finally:
        mount.close()


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def outcome(operation: Callable[[], object]) -> int:
    """0, or the errno of the ``OSError`` that ``operation`` raised."""
    try:
        operation()
    except OSError as exc:
        assert exc.errno is not None
        return exc.errno
    return 0
