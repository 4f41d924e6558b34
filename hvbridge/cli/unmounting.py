"""``hvbridge umount``: through the bridge where there is one, else through the system."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from hvbridge import control, mounts
from hvbridge.cli.common import verbose_option
from hvbridge.cli.progress import ProgressLine
from hvbridge.config import Paths
from hvbridge.errors import HvbridgeError, UsageError

GONE_SECONDS = 10.0
"""How long the kernel may take to drop a mount whose bridge said that it stopped."""


@click.command()
@click.argument("mountpoint", type=Path)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds that uploads may take to finish.",
)
@click.option("--force", is_flag=True, help="Do not wait for uploads, and unmount even a busy mount.")
@verbose_option
def umount(mountpoint: Path, timeout: float, force: bool) -> int:
    """Finish uploads, then unmount MOUNTPOINT.

    What could not be uploaded in time stays on this host: 'hvbridge status' names
    the files, and the exit status is 1. A mount whose bridge crashed is cleaned up.
    """
    path = mounts.canonical(mountpoint)
    line = ProgressLine(sys.stderr)
    socket_path = control.socket_path(runtime_for(path), path)
    try:
        clean = control.ask_stop(socket_path, deadline=0.0 if force else timeout, progress=line)
    except control.NoBridge:
        control.remove_stale(socket_path)
        return _without_bridge(path, lazy=force)
    except HvbridgeError:
        if not force:
            raise
        mounts.unmount(path, lazy=True)
        clean = False
    finally:
        line.clear()
    _await_gone(path)
    if not clean:
        print(
            "hvbridge: unmounted, but not everything was uploaded: 'hvbridge status' names the files",
            file=sys.stderr,
        )
    return 0 if clean else 1


def runtime_for(path: Path) -> Path:
    """Where the control socket of a mount is: for root, a user's mount has it in that user's folder."""
    there = mounts.mount_at(path)
    if os.geteuid() == 0 and there is not None and there.ours and not there.belongs_to(0):
        for option in there.options:
            if option.startswith("user_id="):
                return Path("/run/user") / option.removeprefix("user_id=") / "hvbridge"
    return Paths().runtime


def _without_bridge(path: Path, *, lazy: bool) -> int:
    there = mounts.mount_at(path)
    if there is None:
        raise HvbridgeError(f"{path} is not mounted")
    if not there.ours:
        raise UsageError(f"{path} is a mount of type {there.fstype}, not one of hvbridge: use umount")
    mounts.unmount(path, lazy=lazy)
    return 0


def _await_gone(path: Path) -> None:
    ends_at = time.monotonic() + GONE_SECONDS
    while (there := mounts.mount_at(path)) is not None and there.ours:
        if time.monotonic() > ends_at:
            raise HvbridgeError(f"the bridge stopped, yet {path} is still mounted: use --force")
        time.sleep(0.02)
