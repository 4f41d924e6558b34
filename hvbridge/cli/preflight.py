"""What ``hvbridge mount`` makes sure of before it begins."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hvbridge import doctor, mounts
from hvbridge.doctor import Check, State
from hvbridge.errors import HvbridgeError, UsageError
from hvbridge.host import Host

log = logging.getLogger(__name__)


def require_fuse(host: Host, *, allow_other: bool) -> None:
    """Raises :class:`HvbridgeError` that names what this host lacks and the command that mends it."""
    checks = [doctor.fuse_device(host), doctor.libfuse2(host)]
    if host.uid != 0:
        checks.append(doctor.fusermount(host))
    for check in checks:
        if check.state is State.MISSING:
            raise HvbridgeError(_complaint(check))
    if allow_other:
        check = doctor.user_allow_other(host)
        if check.state is not State.OK:
            raise UsageError(f"--allow-other: {_complaint(check)}")


def _complaint(check: Check) -> str:
    return f"{check.name}: {check.found}; mend it with: {check.mend}"


def require_mountpoint(path: Path) -> None:
    """Check a canonical mountpoint, after taking down what a crashed bridge left there.

    The caller owns the mountpoint's name (its control socket's lock), so a mount
    of ours that does not answer has no process any more.
    """
    there = mounts.mount_at(path)
    if there is not None and there.ours:
        if not mounts.is_dead(path):
            raise UsageError(
                f"{path} is an hvbridge mount already: unmount it first (hvbridge umount {path})"
            )
        log.warning("taking down the mount that a crashed bridge left on %s", path)
        mounts.unmount(path, lazy=True)
    if not path.exists():
        raise UsageError(f"{path} does not exist: make it first (mkdir -p {path})")
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder: a mount needs one")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{path} is not yours to mount on: FUSE wants a folder that you may write to")
