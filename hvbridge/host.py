"""What this host offers, asked in a few ways that tests can stand in for."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

PROBE_SECONDS = 10.0
"""One ``--version`` of a tool; a cold QEMU takes about 1 s."""

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons are; often not in a user's PATH."""


class Host:
    """The real machine. Nothing here raises: what is not there is ``None`` or ``False``."""

    @property
    def uid(self) -> int:
        """Who we are."""
        return os.geteuid()

    @cached_property
    def release(self) -> dict[str, str]:
        """os-release(5), empty where there is none."""
        try:
            return dict(platform.freedesktop_os_release())
        except OSError:
            return {}

    def which(self, name: str) -> str | None:
        """Where the program is, in PATH or among the daemons."""
        return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")

    def first(self, patterns: Iterable[str]) -> str | None:
        """The first file that one of these absolute glob patterns finds."""
        for pattern in patterns:
            if found := sorted(Path("/").glob(pattern.lstrip("/"))):
                return str(found[0])
        return None

    def read(self, path: str) -> str | None:
        """A small text file."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return None

    def open_error(self, path: str) -> str | None:
        """Why ``path`` cannot be opened for reading and writing; ``None`` if it can."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as exc:
            return exc.strerror or str(exc)
        return None

    def library(self, name: str, override: str | None = None) -> str | None:
        """A shared library that can be loaded, found as ctypes does; ``override`` names a variable."""
        found = (os.environ.get(override) if override else None) or ctypes.util.find_library(name)
        if found is None:
            return None
        try:
            ctypes.CDLL(found)
        except OSError:
            return None
        return found

    def output(self, *argv: str) -> str | None:
        """What a command prints, if it succeeds in time."""
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    def package(self, name: str) -> str | None:
        """Version of an installed Python distribution."""
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def requirements(self, name: str) -> list[str]:
        """Requirement lines of an installed distribution, extras left out."""
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return []
        return [line for line in lines if "extra ==" not in line]
