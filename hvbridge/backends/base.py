"""What every device backend is: pure data, and two verbs on a VM.

A backend describes how a guest can be given a mount: as QEMU arguments and libvirt
XML for a VM that is about to start (data, with goldens), and as steps on one that
runs. It knows no libvirt and opens no QMP socket: it is handed a :class:`VM`. Backends
are found by name through the entry point group ``hvbridge.backends``, so that others
can add one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from hvbridge.errors import HvbridgeError, UsageError

GROUP = "hvbridge.backends"

ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,40}")
"""What QEMU takes as an id, kept short: backends append to it."""


class VMError(HvbridgeError):
    """QEMU or libvirt refused; ``reason`` is QMP's error class where there is one."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Held(HvbridgeError):
    """The guest does not release the device."""


class Severity(enum.Enum):
    """What a finding means for attaching."""

    NOTE = "note"
    LEFT_OUT = "left out"
    """The guest will not see this, the rest works."""
    REFUSED = "refused"
    """Attaching would harm, or not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the operator should know before (or that keeps him from) attaching."""

    severity: Severity
    text: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What is to be attached. ``options``: the backend's own, by name (``bus``, ``cache``)."""

    mount: Path
    id: str = "hvbridge"
    read_only: bool = True
    label: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mount.is_absolute():
            raise UsageError(f"give the mount as an absolute path, not {str(self.mount)!r}")
        if ID.fullmatch(self.id) is None:
            raise UsageError(f"a device id has letters, digits, '_', '.' and '-': {self.id!r}")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, for ``hvbridge device list`` and for choosing one."""

    hotplug: bool
    read_write: bool
    snapshot: bool
    """True if the guest sees the tree as it was when the device was attached."""
    surprise_removal: bool
    """True if it can be taken away without the guest's help."""
    libvirt_since: str | None
    """The first libvirt whose XML knows it, ``None`` if only QMP does."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options and what they mean."""


class VM(Protocol):
    """A running virtual machine. Blocking; every method has a deadline of its own.

    Raises :class:`VMError` for what QEMU or libvirt refuse.
    """

    @property
    def name(self) -> str:
        """For people: the domain's name, or the QMP socket."""
        ...

    @property
    def libvirt(self) -> bool:
        """True if libvirt manages it: then :meth:`attach_xml` works."""
        ...

    @property
    def pid(self) -> int | None:
        """QEMU's process, if it can be told."""
        ...

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """One QMP command; its ``return``."""
        ...

    def wait_deleted(self, device: str, timeout: float) -> bool:
        """Wait until the device is gone (DEVICE_DELETED, or a look at the device tree)."""
        ...

    def attach_xml(self, xml: str) -> None:
        """libvirt's attachDeviceFlags, live."""
        ...

    def detach_xml(self, xml: str) -> None:
        """libvirt's detachDeviceFlags, live; returns when libvirt asked the guest."""
        ...

    def domain_xml(self) -> str:
        """The live domain XML. Raises :class:`VMError` without libvirt."""
        ...


class Attached(Protocol):
    """A device that a backend attached: what is needed to take it away again."""

    def detach(self, *, timeout: float, force: bool) -> None:
        """Ask the guest to release it, wait ``timeout`` seconds, end helpers.

        Raises :class:`Held` if the guest keeps it (``force``: after taking it away
        regardless, where :attr:`Capabilities.surprise_removal` allows).
        """
        ...

    def alive(self) -> str | None:
        """``None`` while it works, else why not (a helper process died)."""
        ...

    def describe(self) -> dict[str, Any]:
        """For ``hvbridge status``."""
        ...


class Backend(Protocol):
    """One way to give a mount to a guest."""

    @property
    def name(self) -> str:
        """As in ``--as NAME``."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def validate(self, spec: DeviceSpec) -> list[Finding]:
        """Look at options and, where it matters, at the tree. Raises :class:`UsageError` for options."""
        ...

    def qemu_args(self, spec: DeviceSpec) -> list[str]:
        """Arguments for a QEMU that is about to start. Pure."""
        ...

    def libvirt_xml(self, spec: DeviceSpec) -> str:
        """The element for ``<devices>``. Pure. Raises :class:`UsageError` if XML cannot say it."""
        ...

    def attach(self, spec: DeviceSpec, vm: VM) -> Attached:
        """Hot-plug it. Raises :class:`VMError`, and leaves nothing behind then."""
        ...


def backends() -> dict[str, Backend]:
    """All installed backends by name."""
    found: dict[str, Backend] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        found[point.name] = point.load()()
    return found


def backend(name: str) -> Backend:
    """One backend. Raises :class:`UsageError` that names the known ones."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            made: Backend = point.load()()
            return made
    known = ", ".join(sorted(p.name for p in entry_points(group=GROUP)))
    raise UsageError(f"there is no device backend {name!r}; known ones: {known}")


def refuse_unknown(spec: DeviceSpec, known: Mapping[str, str]) -> None:
    """Raise :class:`UsageError` for an option that the backend does not have."""
    for option in spec.options:
        if option not in known:
            names = ", ".join(sorted(known)) or "none"
            raise UsageError(f"no such device option: {option!r}; known ones: {names}")
