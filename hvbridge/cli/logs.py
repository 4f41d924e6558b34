"""Where messages go: stderr in the foreground, syslog or a file in the background."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

from hvbridge.errors import UsageError

SYSLOG = Path("/dev/log")
"""Socket of syslog or of the journal."""

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)

CHATTY = ("httpx", "httpcore", "wsgidav", "cheroot", "webdav4", "fuse")
"""Libraries that tell each request: shown from ``-vvv`` on."""


def to_stderr(verbose: int) -> None:
    """Log to stderr; with ``-v`` and more, with the time and the thread."""
    handler = logging.StreamHandler()
    form = "%(asctime)s %(levelname).1s %(threadName)s: %(message)s" if verbose else "hvbridge: %(message)s"
    handler.setFormatter(logging.Formatter(form))
    _use(handler, verbose)


def to_background(verbose: int, log_file: Path | None) -> bool:
    """Log to ``log_file``, else to syslog; false if there is neither, and messages are dropped.

    Raises :class:`UsageError` if the file cannot be written.
    """
    handler: logging.Handler
    if log_file is not None:
        try:
            handler = logging.FileHandler(log_file)
        except OSError as exc:
            raise UsageError(f"cannot write the log {log_file}: {exc.strerror}") from exc
        form = "%(asctime)s hvbridge[%(process)d] %(levelname).1s: %(message)s"
    elif SYSLOG.exists():
        try:
            handler = logging.handlers.SysLogHandler(str(SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        except OSError:
            handler = logging.NullHandler()
        form = "hvbridge[%(process)d]: %(message)s"
    else:
        handler, form = logging.NullHandler(), "%(message)s"
    handler.setFormatter(logging.Formatter(form))
    _use(handler, verbose)
    return not isinstance(handler, logging.NullHandler)


def _use(handler: logging.Handler, verbose: int) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[min(verbose, len(LEVELS) - 1)])
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if verbose > len(LEVELS) - 1 else logging.WARNING)
