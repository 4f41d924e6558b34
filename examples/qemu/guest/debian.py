"""Debian packages as files: what a package needs, the ``.deb`` of it, its content. Installs nothing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

KERNEL = "linux-image-amd64"
"""The package that needs the current kernel's. (The ``-cloud-`` flavour has no USB.)"""

DOWNLOAD_SECONDS = 300
"""For all packages together: the kernel's is about 70 MB (Debian 12) or 100 MB."""


class BuildError(Exception):
    """The guest cannot be built; ``str()`` says what to do about it."""


def kernel_package() -> str:
    """The real package behind :data:`KERNEL`, such as ``linux-image-6.1.0-56-amd64``."""
    if needs := _dependencies(KERNEL).get(KERNEL):
        return needs[0]
    raise BuildError(f"apt knows no {KERNEL}: run 'apt-get update' as root, on Debian for amd64")


def with_libraries(packages: list[str]) -> list[str]:
    """``packages`` and every library package that they need, directly or not.

    Only libraries are followed: a program's package may also need tools to
    install and configure itself, and nothing is installed here.
    """
    graph = _dependencies(*packages)
    found, queue = list(packages), list(packages)
    while queue:
        for name in graph.get(queue.pop(), ()):
            if name.startswith(("lib", "zlib")) and name not in found:
                found.append(name)
                queue.append(name)
    return found


def files_of(packages: list[str]) -> dict[str, str]:
    """Package to ``.deb`` file name, which holds the version. Asks apt's lists, not the network."""
    answer = _run("apt-get", "download", "--print-uris", *packages)
    names = re.findall(r"^'[^']+' (\S+\.deb) \d+", answer, re.MULTILINE)
    files = {name.split("_")[0]: name for name in names}  # apt has an order of its own
    if lacking := set(packages) - set(files):
        raise BuildError(f"apt has no source for {' '.join(sorted(lacking))}: run 'apt-get update' as root")
    return {package: files[package] for package in packages}


def download(packages: list[str], cache: Path) -> list[Path]:
    """The ``.deb`` files of ``packages`` in ``cache``, downloaded (and verified, by apt) where missing."""
    cache.mkdir(parents=True, exist_ok=True)
    try:
        return _download(packages, cache)
    except BuildError:
        # Lists older than the last security update name files that are gone.
        if os.geteuid() != 0:
            raise
        _run("apt-get", "update", "-q", timeout=DOWNLOAD_SECONDS)
        return _download(packages, cache)


def _download(packages: list[str], cache: Path) -> list[Path]:
    files = files_of(packages)
    lacking = [package for package, name in files.items() if not (cache / name).is_file()]
    if lacking:
        _run("apt-get", "download", "-q", *lacking, cwd=cache, timeout=DOWNLOAD_SECONDS)
    return [cache / name for name in files.values()]


def unpack(debs: list[Path], into: Path) -> None:
    """The content of the packages below ``into``."""
    into.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        _run("dpkg-deb", "-x", str(deb), str(into))


def _dependencies(*packages: str) -> dict[str, list[str]]:
    """Package to what it depends on, for all that can be reached from ``packages``."""
    unwanted = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    answer = _run("apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in unwanted), *packages)
    graph: dict[str, list[str]] = {}
    needs: list[str] = []
    for line in answer.splitlines():
        if not line.startswith((" ", "<")):
            needs = graph.setdefault(line.strip(), [])
        elif match := re.match(r" [ |](?:Pre)?Depends: ([^<\s]+)", line):
            needs.append(match[1])
    return graph


def _run(*argv: str, cwd: Path | None = None, timeout: float = 60) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"{argv[0]} (the guest is made of Debian packages, by apt and dpkg): {exc}") from exc
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise BuildError(f"{' '.join(argv[:2])} failed: {last[0]} (is 'apt-get update' due?)")
    return done.stdout
