"""The small Linux guest of ``examples/qemu/guest``, for tests: its image, and what devices of it need.

``Guest(guest_image, [...])`` starts it (the fixture ``guest_image`` is in
``tests/integration/conftest.py``); see :mod:`examples.qemu.guest.vm`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from examples.qemu.guest.debian import BuildError
from examples.qemu.guest.image import Image, build
from examples.qemu.guest.vm import Command, CommandFailed, Guest, GuestError

__all__ = [
    "BuildError",
    "Command",
    "CommandFailed",
    "Guest",
    "GuestError",
    "Image",
    "find_virtiofsd",
    "image",
    "virtiofsd",
]

VIRTIOFSD_PLACES = ("/usr/libexec", "/usr/lib/qemu")
"""Where Debian has the Rust one (13) and the C one (12)."""


@cache
def image() -> Image:
    """The guest's image in the user's cache, built there at need: about 10 s once, then 2 s a process."""
    return build()


def find_virtiofsd() -> str | None:
    """The path of virtiofsd, if there is one."""
    return shutil.which("virtiofsd", path=os.pathsep.join((os.environ.get("PATH", ""), *VIRTIOFSD_PLACES)))


@contextlib.contextmanager
def virtiofsd(folder: Path) -> Iterator[Path]:
    """A virtiofsd that serves ``folder``: the vhost-user socket for one QEMU, which ends it by leaving."""
    program = find_virtiofsd()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="hvfs-") as private, socket.socket(socket.AF_UNIX) as listening:
        path = Path(private) / "socket"
        listening.bind(str(path))
        listening.listen(1)
        # Both virtiofsd's know these options.
        argv = [program, f"--fd={listening.fileno()}", "-o", f"source={folder}"]
        process = subprocess.Popen(argv, pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL)
        try:
            yield path
        finally:
            process.kill()
            process.wait(10)
