"""Text of arguments to values: ``-o`` options, sizes, seconds, users. Pure but for the user database."""

from __future__ import annotations

import grp
import math
import pwd
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from hvbridge.errors import UsageError

PASSED_ON = ("noatime", "sync", "dirsync")
"""Mount options that hvbridge gives to the kernel as they are."""

FLAGS: dict[str, tuple[str, bool]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "exec": ("exec_", True),
    "noexec": ("exec_", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
}

VALUES = ("uid", "gid", "umask", "grace", "timeout", "actimeo", "cache_size", "spool")

IGNORED = ("defaults", "auto", "noauto", "_netdev", "nofail", "user", "nouser", "users")
"""What fstab(5) may hold and only mount(8) and the init system act on; ``x-…`` too."""


class OptionValues(TypedDict, total=False):
    """Fields of :class:`hvbridge.bridge.MountOptions` that the arguments set."""

    read_only: bool
    allow_other: bool
    uid: int | None
    gid: int | None
    umask: int
    exec_: bool
    suid: bool
    dev: bool
    extra: tuple[str, ...]
    cache_size: int | None
    grace: float | None
    timeout: float | None
    actimeo: float | None
    spool: Path | None


def mount_options(groups: Iterable[str]) -> OptionValues:
    """The values of all ``-o`` arguments, each a comma-separated list; the last of a kind holds.

    Raises :class:`UsageError` that names the option, and for an unknown one the known ones.
    """
    values: OptionValues = {}
    for option in (option for group in groups for option in group.split(",") if option):
        _apply(option, values)
    return values


def _apply(option: str, values: OptionValues) -> None:
    name, has_value, value = option.partition("=")
    if option in FLAGS:
        field, on = FLAGS[option]
        values[field] = on  # type: ignore[literal-required]
    elif name in VALUES and has_value:
        values[name] = _value(name, value)  # type: ignore[literal-required]
    elif option in PASSED_ON:
        values["extra"] = (*values.get("extra", ()), option)
    elif option not in IGNORED and not option.startswith("x-"):
        raise UsageError(f"unknown mount option {option!r}; known are {known_options()}")


def known_options() -> str:
    """The options that ``-o`` takes, for people."""
    return ", ".join([*FLAGS, *(f"{name}=…" for name in VALUES), *PASSED_ON])


def _value(name: str, text: str) -> int | float | Path:
    match name:
        case "uid":
            return user(text)
        case "gid":
            return group(text)
        case "umask":
            return umask(text)
        case "cache_size":
            return size(text)
        case "spool":
            return Path(text).absolute()
        case _:
            return seconds(text)


def user(text: str) -> int:
    """A user's id, from its number or its name."""
    if re.fullmatch("[0-9]{1,10}", text):
        return _id(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError) as exc:
        raise UsageError(f"no user {text!r} on this host: give a name or a number") from exc


def group(text: str) -> int:
    """A group's id, from its number or its name."""
    if re.fullmatch("[0-9]{1,10}", text):
        return _id(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError) as exc:
        raise UsageError(f"no group {text!r} on this host: give a name or a number") from exc


def _id(text: str) -> int:
    if (number := int(text)) < 2**32 - 1:  # the last one means "no id" to the kernel
        return number
    raise UsageError(f"no such id: {text}")


def umask(text: str) -> int:
    """Permission bits to take away, in octal as umask(1) has them."""
    if re.fullmatch("0?[0-7]{1,3}", text):
        return int(text, 8)
    raise UsageError(f"umask {text!r} is not octal: give one like 022 or 077")


def size(text: str) -> int:
    """Bytes, with an optional suffix K, M, G or T (powers of 1024)."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"size {text!r} is not understood: give one like 512M or 2G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def seconds(text: str) -> float:
    """A time in seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"time {text!r} is not understood: give seconds, like 10 or 2.5")
    return value
