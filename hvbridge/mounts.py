"""What the kernel says is mounted, and taking a mount down.

A leaf for the command line and the demo. Nothing here touches a mountpoint
except :func:`is_dead`: a hanging bridge must not hang those who look at it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hvbridge.errors import HvbridgeError

MOUNTINFO = Path("/proc/self/mountinfo")
FSTYPE = "fuse.hvbridge"
"""Type of our mounts in mountinfo: FUSE with the subtype ``hvbridge``."""

ANSWER_SECONDS = 2.0
"""How long a filesystem is waited for; a dead one's error comes at once."""

UNMOUNT_SECONDS = 20.0
"""One run of fusermount or umount."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc(5))."""

    mountpoint: Path
    fstype: str
    source: str
    options: tuple[str, ...]
    """Those of the mount, then those of the filesystem."""

    @property
    def ours(self) -> bool:
        """True for a mount that hvbridge made."""
        return self.fstype == FSTYPE

    def belongs_to(self, uid: int) -> bool:
        """True if user ``uid`` made this FUSE mount."""
        return f"user_id={uid}" in self.options


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts of a mountinfo text, in its order; lines that cannot be read are left out.

    >>> parse_mountinfo("36 35 98:0 / /mnt\\\\040a rw,nosuid shared:1 - fuse.hvbridge src rw")
    [Mount(mountpoint=PosixPath('/mnt a'), fstype='fuse.hvbridge', source='src', options='rw,nosuid')]
    """
    mounts = []
    for line in text.split("\n"):
        fields, _, tail = line.partition(" - ")
        front, back = fields.split(" "), tail.split(" ")
        if len(front) >= 6 and len(back) >= 3:
            options = (*front[5].split(","), *back[2].split(","))
            mounts.append(Mount(Path(_unescape(front[4])), back[0], _unescape(back[1]), options))
    return mounts


def _unescape(field: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mounts(table: Path = MOUNTINFO) -> list[Mount]:
    """The mounts that this process sees; none where there is no such table."""
    try:
        return parse_mountinfo(table.read_text(errors="surrogateescape"))
    except OSError:
        return []


def mount_at(path: Path, table: Path = MOUNTINFO) -> Mount | None:
    """The topmost mount on exactly ``path`` (absolute, as :func:`canonical` gives it)."""
    found = [mount for mount in mounts(table) if mount.mountpoint == path]
    return found[-1] if found else None


def canonical(path: Path, table: Path = MOUNTINFO) -> Path:
    """``path`` as the kernel's table names it, without asking a filesystem mounted there."""
    if path.name not in ("", ".."):
        candidate = path.absolute().parent.resolve() / path.name
        if mount_at(candidate, table):
            return candidate
    return path.resolve()


def is_dead(path: Path) -> bool:
    """True if the filesystem at ``path`` answers with an error even for itself.

    For a FUSE mount: its process is gone ("Transport endpoint is not connected").
    One that does not answer at all within :data:`ANSWER_SECONDS` is not dead.
    """
    failed = threading.Event()

    def ask() -> None:
        try:
            os.statvfs(path)  # not stat(2): the kernel answers that from its cache for a while
        except OSError:
            failed.set()

    asking = threading.Thread(target=ask, name="hvbridge-statvfs", daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return failed.is_set()


Run = Callable[[list[str]], subprocess.CompletedProcess[str]]


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, errors="replace", timeout=UNMOUNT_SECONDS, check=False
    )


def unmount(path: Path, *, lazy: bool = False, run: Run = _run) -> None:
    """Take down the mount at ``path``; ``lazy`` detaches it even while it is in use.

    Raises :class:`HvbridgeError` with what the system's tool said.
    """
    said = []
    for argv in _unmount_commands(path, lazy):
        if shutil.which(argv[0]) is None:
            continue
        try:
            done = run(argv)
        except subprocess.TimeoutExpired:
            said.append(f"{argv[0]} did not end within {UNMOUNT_SECONDS:g} s")
            continue
        if done.returncode == 0:
            return
        said.append(" ".join(done.stderr.split()) or f"{argv[0]} failed")
    reason = said[0] if said else "neither fusermount3 nor umount is installed"
    raise HvbridgeError(f"cannot unmount {path}: {reason}")


def _unmount_commands(path: Path, lazy: bool) -> list[list[str]]:
    fuse_flags, flags = (["-u", "-z"], ["-l"]) if lazy else (["-u"], [])
    return [
        ["fusermount3", *fuse_flags, "--", str(path)],
        ["fusermount", *fuse_flags, "--", str(path)],
        ["umount", *flags, "--", str(path)],
    ]
