"""A Debian kernel and the order in which to load its modules.

The order is made from what each module says of itself (``depends=`` in its
``.modinfo``): a package that is not installed has no ``modules.dep``.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass
from pathlib import Path

from .debian import BuildError


@dataclass(frozen=True, slots=True)
class Kernel:
    """``vmlinuz`` and the folder ``lib/modules/RELEASE`` of one release."""

    release: str
    vmlinuz: Path
    modules: Path


def in_tree(root: Path, release: str | None = None) -> Kernel:
    """The kernel below ``root``, an unpacked package or ``/``; ``release``: which of several."""
    images = sorted((root / "boot").glob(f"vmlinuz-{release or '*'}"))
    if not images:
        raise BuildError(f"no kernel {root / 'boot' / 'vmlinuz-'}{release or '*'}")
    found = images[-1].name.removeprefix("vmlinuz-")
    # Debian 13 packages have merged /usr: /lib is usr/lib there.
    for modules in (root / "lib/modules" / found, root / "usr/lib/modules" / found):
        if modules.is_dir():
            return Kernel(found, images[-1], modules)
    raise BuildError(f"kernel {found} has no modules below {root}: is its package complete?")


def load_order(kernel: Kernel, wanted: list[str]) -> list[tuple[str, bytes]]:
    """Names and contents of the ``wanted`` modules and what they depend on, dependencies first.

    A module that is built into the kernel needs no loading; one that the kernel
    does not have is a :class:`BuildError`.
    """
    files = {_canonical(path): path for path in kernel.modules.rglob("*.ko*")}
    builtin = {_canonical(Path(line)) for line in (kernel.modules / "modules.builtin").read_text().split()}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise BuildError(f"kernel {kernel.release} has no module {name}: take Debian's -amd64 flavour")
        content = _content(files[name])
        for dependency in _depends(content):
            add(dependency)
        order[name] = content

    for name in wanted:
        add(name.replace("-", "_"))
    return list(order.items())


def bootable(vmlinuz: bytes) -> bytes:
    """The kernel as QEMU boots it quickest: the ELF file within a bzImage, by its PVH entry.

    Under emulation a kernel takes 3 s to unpack itself. One that is not packed
    with xz is returned as it is, which QEMU boots as well. Layout: the kernel's
    Documentation/arch/x86/boot.rst, ``setup_sects`` and ``payload_offset``.
    """
    setup_sectors = vmlinuz[0x1F1]
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = vmlinuz[start : start + length]
    if not payload.startswith(b"\xfd7zXZ"):
        return vmlinuz
    # A decompressor object, since the size of the result follows the stream.
    return lzma.LZMADecompressor().decompress(payload)


def _canonical(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    raise BuildError(f"{path.name}: only .ko and .ko.xz modules can be read")


def _depends(module: bytes) -> list[str]:
    _, found, rest = module.partition(b"\0depends=")
    names = rest.partition(b"\0")[0].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]
