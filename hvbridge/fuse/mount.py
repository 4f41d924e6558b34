"""One FUSE mount: its options, its thread, the leftovers of a crashed one."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuse

from hvbridge import mounts
from hvbridge.errors import HvbridgeError
from hvbridge.fuse.operations import ENCODING, Operations
from hvbridge.vfs.filesystem import Filesystem

log = logging.getLogger(__name__)

MOUNT_SECONDS = 20.0
"""How long mounting may take: fusermount and the kernel's INIT."""

MAX_WRITE = 128 * 1024
"""Bytes of one write: libfuse2 passes 4 KiB pieces unless told (``big_writes``)."""


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """What is passed to libfuse2; ``source``: what mount(8) shows as the device."""

    source: str
    uid: int
    gid: int
    read_only: bool = False
    allow_other: bool = False
    exec_: bool = False
    suid: bool = False
    dev: bool = False
    extra: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``fuse.FUSE``: ``-o`` options by name, booleans as flags."""
        options: dict[str, Any] = {
            "fsname": self.source.replace("\\", "\\\\").replace(",", "\\,"),
            "subtype": "hvbridge",
            # The kernel checks owner and mode, so that allow_other does not open all to all.
            "default_permissions": True,
            "big_writes": True,
            "max_write": MAX_WRITE,
            # O_TRUNC comes with open, else the client would see an empty file first.
            "atomic_o_trunc": True,
            # The filesystem keeps deleted files readable itself, without .fuse_hidden names.
            "hard_remove": True,
            "attr_timeout": 1.0,
            "entry_timeout": 1.0,
            "negative_timeout": 0,
        }
        flags = {
            "ro": self.read_only,
            "allow_other": self.allow_other,
            "noexec": not self.exec_,
            "nosuid": not self.suid,
            "nodev": not self.dev,
        }
        options.update({name: True for name, on in flags.items() if on})
        for option in self.extra:
            name, _, value = option.partition("=")
            options[name] = value or True
        return options


class FuseMount:
    """A mountpoint and the thread that serves it.

    libfuse runs in a thread of its own, so that the main thread keeps the signals
    (libfuse leaves those alone that have a handler).
    """

    def __init__(self, fs: Filesystem, mountpoint: Path, options: FuseOptions) -> None:
        self.mountpoint, self._options = mountpoint, options
        self._mounted = threading.Event()
        self._ended = threading.Event()
        self._operations = Operations(fs, options.uid, options.gid, on_mounted=self._mounted.set)
        self._error: Exception | None = None

    @property
    def ended(self) -> threading.Event:
        """Set once the mount is gone."""
        return self._ended

    def start(self) -> None:
        """Mount; returns when the kernel has it. Raises :class:`HvbridgeError`."""
        clean_stale(self.mountpoint)
        threading.Thread(target=self._serve, name="hvbridge-fuse", daemon=True).start()
        for _ in range(int(MOUNT_SECONDS / 0.05)):
            if self._mounted.wait(0.05) or self._ended.is_set():
                break
        if self._ended.is_set() or not self._mounted.is_set():
            raise HvbridgeError(f"cannot mount on {self.mountpoint}: {self._error or 'no answer'}")

    def _serve(self) -> None:
        try:
            fuse.FUSE(
                self._operations,
                str(self.mountpoint),
                raw_fi=True,
                encoding=ENCODING,
                foreground=True,
                **self._options.arguments(),
            )
        except RuntimeError as exc:
            # fusepy raises libfuse's exit status; what went wrong libfuse wrote to stderr.
            self._error = exc
            log.debug("libfuse ended with status %s", exc)
        finally:
            self._ended.set()

    def unmount(self) -> None:
        """Take it down, detaching it if somebody still uses it. Raises :class:`HvbridgeError`."""
        if self._ended.is_set():
            return
        try:
            mounts.unmount(self.mountpoint)
        except HvbridgeError as exc:
            if self._ended.wait(0.1) or mounts.mount_at(self.mountpoint) is None:
                return
            log.warning("%s; detaching it", exc)
            mounts.unmount(self.mountpoint, lazy=True)


def clean_stale(mountpoint: Path) -> None:
    """Remove what a crashed bridge left mounted ("Transport endpoint is not connected")."""
    mount = mounts.mount_at(mountpoint)
    if mount is not None and mount.ours and mounts.is_dead(mountpoint):
        log.warning("%s: removing the mount of a bridge that has died", mountpoint)
        mounts.unmount(mountpoint, lazy=True)
