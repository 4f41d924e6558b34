"""What several commands share: ``-v`` and text that is safe on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from hvbridge.cli import logs

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Verbosity:
    """How often ``-v`` was given, before and after the command's name."""

    level: int = 0


def verbose_option(function: F) -> F:
    """``-v``, counted, wherever it stands."""

    def count(context: click.Context, parameter: click.Parameter, value: int) -> None:
        verbosity = context.ensure_object(Verbosity)
        verbosity.level += value
        logs.to_stderr(verbosity.level)

    return click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=count,
        help="Say more: -v what happens, -vv each step and tracebacks, -vvv each request.",
    )(function)


def verbosity() -> int:
    """How often ``-v`` was given to the running command."""
    return click.get_current_context().ensure_object(Verbosity).level


def printable(text: str) -> str:
    """``text`` fit for a terminal: names on a share may hold anything, escape sequences too.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def human_size(size: float) -> str:
    """Bytes as people read them.

    >>> human_size(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
