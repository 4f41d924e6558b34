"""The ``peers`` marker, and what a run under CI demands.

``@pytest.mark.peers("qemu-img", "mtools")`` names what a test needs. By hand a
missing peer skips the test and says what to install; with ``CI=true`` in the
environment it fails, and so does every skip of a test with that marker: a peer
that quietly went missing would otherwise look like success.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from functools import cache

import pytest

from hvbridge import doctor
from hvbridge.host import Host

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

NO_TESTS = 5
"""pytest's own exit status for a run that collected nothing."""


def _programs(*names: str) -> Callable[[], bool]:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/libexec", "/usr/lib/qemu"))
    return lambda: all(shutil.which(name, path=path) for name in names)


def _fuse() -> bool:
    host = Host()
    return all(
        check(host).state is doctor.State.OK
        for check in (doctor.fuse_device, doctor.libfuse2, doctor.fusermount)
    )


def _spice_gtk() -> bool:
    probe = "import gi; gi.require_version('SpiceClientGLib', '2.0'); import gi.repository.SpiceClientGLib"
    try:
        return (
            subprocess.run(["/usr/bin/python3", "-c", probe], capture_output=True, timeout=60).returncode == 0
        )
    except OSError:
        return False


PEERS: dict[str, tuple[Callable[[], bool], str]] = {
    "fuse": (_fuse, "fuse3 and libfuse2 (libfuse2t64), and a /dev/fuse that may be opened"),
    "spice-gtk": (_spice_gtk, "gir1.2-spiceclientglib-2.0 python3-gi"),
    "qemu-img": (_programs("qemu-img"), "qemu-utils"),
    "qemu": (_programs("qemu-system-x86_64"), "qemu-system-x86"),
    "virtiofsd": (_programs("virtiofsd"), "virtiofsd (Debian 12: qemu-system-common)"),
    "apt": (
        _programs("apt-get", "apt-cache", "dpkg-deb"),
        "apt, on Debian: the guest is made of its packages",
    ),
    "libvirtd": (_programs("libvirtd", "virsh"), "libvirt-daemon-system libvirt-clients"),
    "mtools": (_programs("mdir", "mcopy"), "mtools"),
    "rclone": (_programs("rclone"), "rclone"),
    "apache2": (_programs("apache2"), "apache2-bin"),
    "nginx": (_programs("nginx"), "nginx libnginx-mod-http-dav-ext"),
    "git": (_programs("git"), "git"),
    "rsync": (_programs("rsync"), "rsync"),
    "sqlite3": (_programs("sqlite3"), "sqlite3"),
}
"""By name: whether it is there, and the Debian packages that bring it."""


@cache
def _lacks(name: str) -> str | None:
    there, packages = PEERS[name]
    return None if there() else f"{name} is missing (install {packages})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose named peers are not there."""
    for marker in item.iter_markers("peers"):
        lacking = [text for name in marker.args if (text := _lacks(name)) is not None]
        if lacking:
            pytest.skip("; ".join(lacking))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped peer test is a failure."""
    report = yield
    is_skip = report.skipped and not hasattr(report, "wasxfail")
    if IN_CI and is_skip and item.get_closest_marker("peers") is not None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"a peer that CI must have: {reason}"
    return report


_executed = 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the tests that really ran."""
    global _executed
    if report.when == "call" and not report.skipped:
        _executed += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, a run in which no test was executed is not a success."""
    if IN_CI and exitstatus == 0 and _executed == 0 and not session.config.option.collectonly:
        session.exitstatus = NO_TESTS
