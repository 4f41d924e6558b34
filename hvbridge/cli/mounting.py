"""``hvbridge mount``: from arguments to a served mount."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from hvbridge import control, mounts
from hvbridge.cli import options, preflight
from hvbridge.cli.background import run_detached
from hvbridge.cli.common import verbose_option, verbosity
from hvbridge.cli.progress import ProgressLine
from hvbridge.config import Paths
from hvbridge.errors import HvbridgeError, UsageError
from hvbridge.host import Host

if TYPE_CHECKING:
    from hvbridge.bridge import Bridge

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
"""How long a signal lets uploads finish; systemd kills 90 s after its own signal."""

LINGER_SECONDS = 3.0
"""After a second signal, how long operations under way may keep the process."""

ATTACHED = ("stdio:", "fd:")
"""Channels that are the caller's own descriptors: such a mount stays in the foreground."""


@dataclass(frozen=True)
class Request:
    """What to mount."""

    channel: str
    mountpoint: Path
    options: options.OptionValues


@click.command()
@click.argument("channel")
@click.argument("mountpoint", type=Path)
@click.option("-r", "--read-only", is_flag=True, help="Mount read-only.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("--allow-other", is_flag=True, help="Let other users (QEMU, too) into the mount.")
@click.option("--uid", metavar="USER", help="Owner of everything in the mount.  [default: you]")
@click.option("--gid", metavar="GROUP", help="Group of everything in the mount.  [default: yours]")
@click.option("--umask", metavar="OCTAL", help="Permission bits to take away.  [default: 022]")
@click.option("-o", "groups", metavar="OPTIONS", multiple=True, help="Mount options, see below.")
@click.option("--log-file", type=Path, help="Log here instead of to syslog.")
@verbose_option
def mount(
    channel: str,
    mountpoint: Path,
    read_only: bool,
    foreground: bool,
    allow_other: bool,
    uid: str | None,
    gid: str | None,
    umask: str | None,
    groups: tuple[str, ...],
    log_file: Path | None,
) -> int:
    """Mount the folder at the other end of CHANNEL on MOUNTPOINT.

    Returns as soon as the mount is there, and serves it from the background. The
    mount is empty until a client connects, and outlives clients that come and go.

    \b
    CHANNEL is one of
      spice-listen://HOST:PORT       be a SPICE server that offers just the folder
      unix:///PATH tcp://HOST:PORT   connect to QEMU's chardev of the webdav channel
      unix-listen:///PATH tcp-listen://HOST:PORT   wait for it to connect
      chardev:///PATH                a pty or a virtio port
      stdio: fd:N                    descriptors that the caller opened
      http://HOST:PORT/              a plain WebDAV server, no channel

    \b
    OPTIONS is a comma-separated list of
      ro rw allow_other exec suid dev noatime sync dirsync
      uid=USER gid=GROUP umask=022
      grace=SECONDS       how long operations wait for a client that left
      timeout=SECONDS     how long one operation may take
      actimeo=SECONDS     how long a listing is believed, 5 unless given
      cache_size=SIZE     disk space for content that was read (512M, 4G)
      spool=DIR           where content waits until the client has it
    The mount is nosuid,nodev,noexec unless suid, dev, exec say otherwise.

    \b
    Examples:
      hvbridge mount spice-listen://127.0.0.1:5930 /srv/client
      hvbridge mount unix:///run/vm1-webdav.sock /srv/client -o ro,allow_other,uid=libvirt-qemu

    In the foreground, SIGINT and SIGTERM finish uploads first, and end at once when
    sent again.
    """
    values = options.mount_options(groups)
    if read_only and values.get("read_only") is False:
        raise UsageError("--read-only and -o rw contradict each other: give one of them")
    if read_only:
        values["read_only"] = True
    if allow_other:
        values["allow_other"] = True
    if uid is not None:
        values["uid"] = options.user(uid)
    if gid is not None:
        values["gid"] = options.group(gid)
    if umask is not None:
        values["umask"] = options.umask(umask)
    request = Request(channel, mountpoint, values)
    if foreground or channel.startswith(ATTACHED):
        return serve(request, lambda: None)
    return run_detached(lambda ready: serve(request, ready), verbose=verbosity(), log_file=log_file)


def serve(request: Request, ready: Callable[[], None]) -> int:
    """Mount, call ``ready``, serve until unmounted; the exit status."""
    preflight.require_fuse(Host(), allow_other=request.options.get("allow_other", False))
    paths = Paths()
    path = mounts.canonical(request.mountpoint)
    server = control.ControlServer(control.socket_path(paths.runtime, path))
    server.claim()
    try:
        preflight.require_mountpoint(path)
        bridge = _bridge(request, path, paths)
        stopper = Stopper(bridge, path)
        with stopper:
            bridge.start()
            server.start(bridge)
            ready()
            stopper.ready()
            return bridge.wait()
    finally:
        server.close()


def _bridge(request: Request, path: Path, paths: Paths) -> Bridge:
    # Only here, since it loads libfuse2 and takes a while: the other commands do without.
    from hvbridge.bridge import Bridge, MountOptions

    return Bridge(request.channel, path, MountOptions(**request.options), paths=paths)


class Stopper:
    """Turns signals into :meth:`Bridge.stop`: the first one patiently, the next at once.

    Used as a context, before the mount is there: libfuse leaves signals alone that
    have a handler.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, bridge: control.Controlled, mountpoint: Path) -> None:
        self._bridge, self._mountpoint = bridge, mountpoint
        self._received = 0
        self._ready = False
        self._ended = threading.Event()
        self._old: dict[int, Any] = {}
        self._line = ProgressLine(sys.stderr)

    def __enter__(self) -> Stopper:
        for number in self.SIGNALS:
            self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._ended.set()
        self._line.clear()

    def ready(self) -> None:
        """The mount is there. A signal that came while it was made is acted upon now."""
        self._ready = True
        if self._received:
            self._begin()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        if self._ready:
            self._begin()
        elif self._received > 1:
            raise KeyboardInterrupt

    def _begin(self) -> None:
        # Not in the signal handler's own stack: stopping takes locks that this thread may hold.
        threading.Thread(target=self._stop, args=(self._received,), name="hvbridge-stop", daemon=True).start()

    def _stop(self, received: int) -> None:
        patiently = received == 1
        try:
            self._bridge.stop(deadline=STOP_SECONDS if patiently else 0.0, progress=self._line)
        except HvbridgeError as exc:
            log.error("%s", exc)
            if not patiently:
                self._detach()
        if not patiently and not self._ended.wait(LINGER_SECONDS):
            log.error("ending with operations under way: 'hvbridge status' names what was not uploaded")
            logging.shutdown()
            os._exit(1)  # the kernel fails the operations; what was written is in the spool

    def _detach(self) -> None:
        try:
            mounts.unmount(self._mountpoint, lazy=True)
        except HvbridgeError as exc:
            log.error("%s", exc)
