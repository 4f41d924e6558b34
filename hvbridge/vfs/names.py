"""Paths and names within a share: what they may be, and the ones that are ours."""

from __future__ import annotations

import re
import secrets
from typing import Literal

from hvbridge.config import Limits
from hvbridge.errors import InvalidName, NameTooLong

HIDDEN = re.compile(r"\.hvbridge-[0-9a-f]{16}\.(part|gone)")
"""Names of our own on the client: an upload under way (``part``), and a file that
was deleted here while somebody still reads it (``gone``). Never shown."""


def temporary(folder: str, kind: Literal["part", "gone"]) -> str:
    """A new hidden path in ``folder``."""
    return join(folder, f".hvbridge-{secrets.token_hex(8)}.{kind}")


def is_hidden(name: str) -> bool:
    """True for names of :data:`HIDDEN`'s form."""
    return HIDDEN.fullmatch(name) is not None


def split(path: str) -> tuple[str, str]:
    """``/a/b`` → (``/a``, ``b``); the share itself is (``/``, ``""``)."""
    folder, _, name = path.rpartition("/")
    return folder or "/", name


def join(folder: str, name: str) -> str:
    """``/a``, ``b`` → ``/a/b``."""
    return f"/{name}" if folder == "/" else f"{folder}/{name}"


def is_below(path: str, folder: str) -> bool:
    """True if ``path`` is inside ``folder`` (not ``folder`` itself)."""
    return path != folder and path.startswith("/" if folder == "/" else folder + "/")


def moved(path: str, src: str, dst: str) -> str:
    """Where ``path`` is after ``src`` was renamed to ``dst``."""
    if path == src:
        return dst
    return dst + path[len(src) :] if is_below(path, src) else path


def check(path: str, limits: Limits) -> None:
    """Refuse a path that a share cannot carry, before anything is sent.

    Raises :class:`InvalidName` (not UTF-8, or a hidden name of ours),
    :class:`NameTooLong`.
    """
    name = split(path)[1]
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName("the name is not UTF-8", path.encode(errors="backslashreplace").decode()) from None
    if size > limits.name_bytes or path.count("/") > limits.path_depth:
        raise NameTooLong("the name is too long", path)
    if is_hidden(name):
        raise InvalidName("names of this form are hvbridge's own", path)
