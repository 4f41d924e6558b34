"""``hvbridge share`` and ``hvbridge demo``: the client's side, and both sides shown."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import click

from hvbridge.cli.common import verbose_option
from hvbridge.errors import UsageError

log = logging.getLogger(__name__)


@click.command()
@click.argument("directory", type=Path)
@click.argument("channel")
@click.option("-r", "--read-only", is_flag=True, help="Refuse every change.")
@verbose_option
def share(directory: Path, channel: str, read_only: bool) -> int:
    """Share DIRECTORY at this end of CHANNEL, as a SPICE client would.

    Runs in the foreground until it is interrupted; with stdio: until the other end
    closes. CHANNEL is a URL as in 'hvbridge mount --help'.

    \b
    Examples, the other end of each being 'hvbridge mount':
      hvbridge share ~/Public unix-listen:///tmp/channel.sock
      hvbridge share ~/Public stdio:
    """
    from hvbridge.channel.opening import open_channel
    from hvbridge.share.server import Share

    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder: nothing to share")
    server = Share(directory, open_channel(channel), read_only=read_only, on_event=log.info)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: _in_thread(server.close))
    server.run()
    return 0


def _in_thread(work: Callable[[], None]) -> None:
    # A signal interrupts this thread anywhere, also where it holds a lock that work wants.
    threading.Thread(target=work, daemon=True).start()


@click.command()
@click.option("--keep", is_flag=True, help="Leave the demo's folder and image where they are.")
@verbose_option
def demo(keep: bool) -> int:
    """Share a folder, mount it, and make a FAT disk of the mount with QEMU.

    Everything is made in a temporary folder, with the commands that an operator
    would type. The exit status is 0 only if each byte arrived.
    """
    from hvbridge.demo import run_demo

    run_demo(keep=keep)
    return 0
