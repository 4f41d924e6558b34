"""``hvbridge doctor``: what this host has of what hvbridge uses, and how to get the rest.

Each check is a function from a :class:`~hvbridge.host.Host` to one
:class:`Check`; it looks and changes nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hvbridge.domain import connection
from hvbridge.domain.connection import LibvirtError, Versions
from hvbridge.host import Host

FUSE_CONF = "/etc/fuse.conf"
FUSE_DEVICE = "/dev/fuse"


class State(enum.Enum):
    """Outcome of a check."""

    OK = "ok"
    WARN = "warn"
    """Works, with a restriction."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    needed_for: str
    """``mount``, ``demo``, ``guests`` or ``tests``."""
    state: State
    found: str
    mend: str | None = None
    """A command, where one does it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"state": self.state.value}


def apt_install(host: Host, package: str, *, since_64bit_time: str | None = None) -> str:
    """How to install a Debian package; other systems are told its Debian name.

    ``since_64bit_time``: its name since Debian 13 and Ubuntu 24.04, where libraries
    were renamed.
    """
    family = f"{host.release.get('ID', '')} {host.release.get('ID_LIKE', '')}".split()
    if since_64bit_time and _has_64bit_time(host):
        package = since_64bit_time
    if "debian" in family or "ubuntu" in family:
        return f"apt-get install {package}"
    return f"install what Debian calls {package}"


def _has_64bit_time(host: Host) -> bool:
    borders = {"debian": (13, 0), "ubuntu": (24, 4)}
    border = borders.get(host.release.get("ID", ""))
    numbers = re.findall(r"\d+", host.release.get("VERSION_ID", "999"))  # testing has none
    return border is not None and tuple(int(number) for number in numbers[:2]) >= border[: len(numbers)]


# --- needed by every mount ------------------------------------------------


def fuse_device(host: Host) -> Check:
    """The kernel's FUSE device, and whether we may open it."""
    error = host.open_error(FUSE_DEVICE)
    if error is None:
        return Check("fuse device", "mount", State.OK, FUSE_DEVICE)
    mend = "modprobe fuse   (in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN)"
    if "denied" in error:
        mend = f"chmod 0666 {FUSE_DEVICE}   (the mode that udev gives it)"
    return Check("fuse device", "mount", State.MISSING, f"{FUSE_DEVICE}: {error}", mend)


def libfuse2(host: Host) -> Check:
    """The C library that fusepy binds."""
    found = host.library("fuse", override="FUSE_LIBRARY_PATH")
    if found:
        return Check("libfuse2", "mount", State.OK, found)
    mend = apt_install(host, "libfuse2", since_64bit_time="libfuse2t64")
    return Check("libfuse2", "mount", State.MISSING, "no libfuse.so.2 that can be loaded", mend)


def fusermount(host: Host) -> Check:
    """The set-uid helper: libfuse2 runs ``fusermount`` for users, ``umount`` runs ``fusermount3``."""
    plain, third = host.which("fusermount"), host.which("fusermount3")
    if plain:
        return Check("fusermount", "mount", State.OK, plain)
    mend = apt_install(host, "fuse3")
    if third:
        mend = f"ln -s {third} /usr/local/bin/fusermount"
        return Check("fusermount", "mount", State.MISSING, f"only {third}; libfuse2 wants fusermount", mend)
    return Check("fusermount", "mount", State.MISSING, "no fusermount in PATH", mend)


def user_allow_other(host: Host) -> Check:
    """Whether users other than root may mount with allow_other."""
    lines = [line.strip() for line in (host.read(FUSE_CONF) or "").splitlines()]
    if "user_allow_other" in lines:
        return Check("allow_other", "mount", State.OK, f"user_allow_other in {FUSE_CONF}")
    if host.uid == 0:
        return Check("allow_other", "mount", State.OK, "root may always")
    mend = f"echo user_allow_other | sudo tee -a {FUSE_CONF}"
    return Check(
        "allow_other", "mount", State.WARN, f"no user_allow_other in {FUSE_CONF}: only for root", mend
    )


def python_packages(host: Host) -> Check:
    """The distributions that hvbridge requires."""
    wanted = [_requirement_name(line) for line in host.requirements("hvbridge")]
    if not wanted:
        return Check(
            "python packages", "mount", State.MISSING, "hvbridge is not installed", "pip install hvbridge"
        )
    absent = [name for name in wanted if host.package(name) is None]
    if absent:
        mend = f"pip install {' '.join(absent)}"
        return Check("python packages", "mount", State.MISSING, f"without {', '.join(absent)}", mend)
    return Check("python packages", "mount", State.OK, ", ".join(f"{n} {host.package(n)}" for n in wanted))


def _requirement_name(line: str) -> str:
    """The distribution that a requirement line (PEP 508) is about."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return match[0] if match else line


# --- needed by the demo and by guests -------------------------------------


def qemu_img(host: Host) -> Check:
    """QEMU's image tool, which carries vvfat."""
    return _tool(host, "qemu-img", "demo", "qemu-utils", "--version")


def mtools(host: Host) -> Check:
    """Reads FAT images without mounting them."""
    return _tool(host, "mdir", "demo", "mtools", "--version", name="mtools")


def qemu(host: Host) -> Check:
    """The system emulator."""
    return _tool(host, "qemu-system-x86_64", "guests", "qemu-system-x86", "--version")


def virtiofsd(host: Host) -> Check:
    """The virtio-fs daemon: in PATH, or where QEMU (C) or Debian 13 (Rust) put it."""
    found = host.which("virtiofsd") or host.first(["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"])
    if found:
        return Check("virtiofsd", "guests", State.OK, found)
    package = "virtiofsd" if _has_64bit_time(host) else "qemu-system-common"
    return Check("virtiofsd", "guests", State.MISSING, "not found", apt_install(host, package))


def spice(host: Host) -> Check:
    """Whether QEMU has the SPICE character devices."""
    module = host.first(["/usr/lib/*/qemu/chardev-spice.so", "/usr/lib*/qemu/chardev-spice.so"])
    if module:
        return Check("spice in qemu", "guests", State.OK, module)
    if "spiceport" in (host.output("qemu-system-x86_64", "-chardev", "help") or ""):
        return Check("spice in qemu", "guests", State.OK, "built in")
    package = "qemu-system-modules-spice" if _has_64bit_time(host) else "qemu-system-gui"
    return Check("spice in qemu", "guests", State.MISSING, "no chardev-spice.so", apt_install(host, package))


def libvirt(host: Host, ask: Callable[[], Versions] = connection.versions) -> Check:
    """libvirt's daemon, asked through libvirt-python."""
    try:
        found = ask()
    except LibvirtError as exc:
        package = apt_install(host, "libvirt-daemon-system")
        mend = "systemctl start libvirtd" if host.which("libvirtd") else package
        return Check("libvirt", "guests", State.MISSING, str(exc), mend)
    text = f"libvirtd {found.daemon}, {found.hypervisor}, library {found.library}"
    return Check("libvirt", "guests", State.OK, text)


def spice_client(host: Host) -> Check:
    """spice-gtk for Python, which the integration tests use as the client."""
    patterns = [
        "/usr/lib/*/girepository-1.0/SpiceClientGLib-2.0.typelib",
        "/usr/lib*/girepository-1.0/SpiceClientGLib-2.0.typelib",
    ]
    if found := host.first(patterns):
        return Check("spice-gtk", "tests", State.OK, found)
    mend = apt_install(host, "gir1.2-spiceclientglib-2.0 python3-gi")
    return Check("spice-gtk", "tests", State.MISSING, "no SpiceClientGLib-2.0.typelib", mend)


def _tool(
    host: Host, program: str, needed_for: str, package: str, version: str, name: str | None = None
) -> Check:
    """A program in PATH, with the first line of its version."""
    name = name or program
    where = host.which(program)
    if where is None:
        mend = apt_install(host, package)
        return Check(name, needed_for, State.MISSING, f"no {program} in PATH", mend)
    said = (host.output(where, version) or "").strip().splitlines()
    return Check(name, needed_for, State.OK, f"{where}: {said[0]}" if said else where)


CHECKS: tuple[Callable[[Host], Check], ...] = (
    fuse_device,
    libfuse2,
    fusermount,
    user_allow_other,
    python_packages,
    qemu_img,
    mtools,
    qemu,
    virtiofsd,
    spice,
    libvirt,
    spice_client,
)


def examine(host: Host) -> list[Check]:
    """Run all checks."""
    return [check(host) for check in CHECKS]


def examine_for(host: Host, *purposes: str) -> list[Check]:
    """Run all checks and keep those that these purposes need."""
    return [check for check in examine(host) if check.needed_for in purposes]


def fit_for(checks: Iterable[Check], *purposes: str) -> bool:
    """True if nothing that these purposes need is missing."""
    return not any(check.state is State.MISSING and check.needed_for in purposes for check in checks)


def report(checks: Iterable[Check]) -> str:
    """The checks as a table, each missing thing with the command that mends it."""
    lines = []
    for check in checks:
        lines.append(f"{check.state.value:8} {check.name:18} {check.needed_for:7} {check.found}")
        if check.mend is not None:
            lines.append(f"{'':8} {'':18} {'':7} → {check.mend}")
    return "\n".join(lines)
