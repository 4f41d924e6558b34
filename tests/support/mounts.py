"""Real mounts in processes of their own, as an operator would start them; all are context managers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hvbridge import mounts
from tests.support.pipes import eventually

MARKER = "marker-of-the-share"
"""A file that each shared folder here has: it is seen once the client is there."""


@contextmanager
def hvbridge(*arguments: str | Path, home: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    """``hvbridge ARGUMENTS`` in the background; SIGTERM at the end. Its log is in ``home``."""
    env = os.environ | {
        "HVBRIDGE_RUNTIME_DIR": str(home / "run"),
        "HVBRIDGE_STATE_DIR": str(home / "state"),
    }
    log = home / f"{arguments[0]}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hvbridge", *map(str, arguments)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def mounted(channel: str, mountpoint: Path, home: Path, *options: str) -> Generator[int, None, None]:
    """``hvbridge mount CHANNEL MOUNTPOINT``, until the kernel has it; gives its pid."""
    mountpoint.mkdir(exist_ok=True)
    with hvbridge("mount", "-f", channel, mountpoint, *options, home=home) as process:
        eventually(lambda: process.poll() is not None or mounts.mount_at(mountpoint) is not None, 20)
        assert process.poll() is None, (home / "mount.log").read_text()
        try:
            yield process.pid
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
            if mounts.mount_at(mountpoint) is not None:
                mounts.unmount(mountpoint, lazy=True)


def wait_filled(mountpoint: Path) -> None:
    """Until the share's marker is seen in the mount."""
    eventually(lambda: (mountpoint / MARKER).exists(), 20)


def shared_folder(home: Path) -> Path:
    """A folder to share, with its marker."""
    folder = home / "shared"
    folder.mkdir()
    (folder / MARKER).write_bytes(b"here")
    return folder


@contextmanager
def share_and_mount(home: Path, *options: str) -> Generator[tuple[Path, Path], None, None]:
    """``hvbridge share`` and ``hvbridge mount`` over a unix socket: (shared folder, mountpoint)."""
    folder, mountpoint, socket_path = shared_folder(home), home / "mnt", home / "channel.sock"
    with hvbridge("share", folder, f"unix-listen://{socket_path}", home=home):
        eventually(socket_path.exists, 20)
        with mounted(f"unix://{socket_path}", mountpoint, home, *options):
            wait_filled(mountpoint)
            yield folder, mountpoint


@contextmanager
def spice_and_mount(home: Path, *options: str) -> Generator[tuple[Path, Path], None, None]:
    """A spice-gtk client and ``hvbridge mount spice-listen://…``: (shared folder, mountpoint)."""
    from tests.support.spice_gtk import SpiceClient

    folder, mountpoint, port = shared_folder(home), home / "mnt", free_port()
    with mounted(f"spice-listen://127.0.0.1:{port}", mountpoint, home, *options):
        with SpiceClient(f"spice://127.0.0.1:{port}", folder) as client:
            client.wait_port_open()
            wait_filled(mountpoint)
            yield folder, mountpoint


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
