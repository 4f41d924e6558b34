"""Connections to libvirt, and its errors as one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hvbridge.errors import HvbridgeError

SYSTEM_URI = "qemu:///system"
"""The host's own QEMU domains, the ones that serve users."""


class LibvirtError(HvbridgeError):
    """libvirt refused, or is not there."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What answers on a connection."""

    library: str
    daemon: str
    hypervisor: str
    """``QEMU 7.2.22``, for instance."""


def versions(uri: str = SYSTEM_URI) -> Versions:
    """Open ``uri`` read-only and ask who is there. Raises :class:`LibvirtError`."""
    libvirt = _library()
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            return Versions(
                library=dotted(libvirt.getVersion()),
                daemon=dotted(connection.getLibVersion()),
                hypervisor=f"{connection.getType()} {dotted(connection.getVersion())}",
            )
        finally:
            connection.close()
    except libvirt.libvirtError as exc:
        raise LibvirtError(f"{uri}: {one_line(str(exc))}") from exc


def dotted(number: int) -> str:
    """libvirt's version numbers, ``1000000*major + 1000*minor + release``, as people write them."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def one_line(text: str) -> str:
    """libvirt's messages, some of which have several lines."""
    return " ".join(text.split())


def _library() -> Any:
    """libvirt-python, told not to print errors that are raised anyway."""
    try:
        import libvirt
    except ImportError as exc:  # its C library is missing or too old
        raise LibvirtError(f"libvirt-python cannot be loaded: {one_line(str(exc))}") from exc
    libvirt.registerErrorHandler(lambda context, error: None, None)
    return libvirt
