"""Going to the background, once what was asked for is there.

The child is forked before any thread exists (threads do not survive a fork) and
keeps the terminal until it is ready: an error before that is on the caller's
stderr, and the caller gets its exit status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from hvbridge.cli import logs
from hvbridge.errors import HvbridgeError

Ready = Callable[[], None]


def run_detached(work: Callable[[Ready], int], *, verbose: int = 0, log_file: Path | None = None) -> int:
    """Run ``work(ready)`` in a child; returns 0 as soon as it calls ``ready``.

    If the child ends before, returns its exit status. In the child this never
    returns: it raises :class:`SystemExit` with the result of ``work``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writing)
        return _await(child, reading)
    os.close(reading)
    os.setsid()

    def ready() -> None:
        logs.to_background(verbose, log_file)
        _leave_terminal()
        os.write(writing, b"r")
        os.close(writing)

    raise SystemExit(work(ready))


def _await(child: int, reading: int) -> int:
    """What the child came to. Signals to us meanwhile are meant for it."""

    def pass_on(signum: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signum)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if os.read(reading, 1):
            return 0
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(reading)
        for number, handler in old.items():
            signal.signal(number, handler)
    if status < 0:
        raise HvbridgeError(f"the bridge was ended by signal {-status} ({signal.Signals(-status).name})")
    return status


def _leave_terminal() -> None:
    """Hold nothing of the caller's: its terminal or pipes, its folder."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    if null > 2:
        os.close(null)
