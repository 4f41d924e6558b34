"""The guest's image: a kernel and an initramfs of busybox, modules, MTP programs and ``rootfs/``."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import debian, kernel
from .cpio import Archive
from .debian import BuildError

HERE = Path(__file__).parent

PACKAGES = ["busybox-static", "mtp-tools", "jmtpfs", "libc-bin"]
"""What the guest is made of, beside the kernel; their libraries come with them."""

PROGRAMS = ["mtp-*", "jmtpfs"]
"""Of ``usr/bin`` in those packages, beside busybox."""

MODULES = [
    *("virtio_pci", "virtio_console", "virtio_rng"),
    *("virtio_blk", "virtio_scsi", "sd_mod", "floppy", "loop"),
    *("fuse", "virtiofs"),
    *("vfat", "nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859_1"),
    *("xhci_pci", "ehci_pci", "uhci_hcd", "usb_storage", "uas"),
]
"""Kernel modules, without what they depend on. MTP needs none: libusb speaks to the device."""

LIB = "lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"

DATA = [
    # libmtp has names in UTF-16 and asks iconv for it.
    f"usr/{LIB}/gconv/gconv-modules",
    f"usr/{LIB}/gconv/gconv-modules.d/*",
    f"usr/{LIB}/gconv/UTF-16.so",
    f"usr/{LIB}/gconv/UNICODE.so",
    "usr/lib/locale/C.utf8/**/*",
    # jmtpfs does not start without it.
    "usr/share/misc/magic.mgc",
]
"""Files that programs open by name, as patterns."""


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU's ``-kernel`` and ``-initrd`` take."""

    kernel: Path
    initrd: Path


def default_cache() -> Path:
    """``~/.cache/hvbridge/guest``, or below ``$XDG_CACHE_HOME``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hvbridge" / "guest"


def build(out: Path | None = None, cache: Path | None = None, release: str | None = None) -> Image:
    """The image in ``out``, made if it is not there or was made of other packages or sources.

    ``cache``: where downloaded packages stay. ``release``: take the installed
    kernel ``/boot/vmlinuz-RELEASE`` instead of Debian's current package. Callers
    in other processes wait for each other. Raises :class:`BuildError`.
    """
    cache = cache or default_cache()
    out = out or cache / "image"
    image = Image(out / "kernel", out / "initrd")
    stamp = out / "made-of"
    with _locked(out):
        packages = debian.with_libraries(PACKAGES)
        if release is None:
            packages.append(debian.kernel_package())
        ingredients = "\n".join([*debian.files_of(packages).values(), release or "", _sources_digest()])
        if stamp.is_file() and stamp.read_text() == ingredients:
            return image
        stamp.unlink(missing_ok=True)
        debs = debian.download(packages, cache)
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=out) as folder:
            tree = Path(folder)
            debian.unpack(debs, tree)
            linux = kernel.in_tree(Path("/") if release else tree, release)
            image.kernel.write_bytes(kernel.bootable(linux.vmlinuz.read_bytes()))
            image.initrd.write_bytes(bytes(_initramfs(tree, linux)))
        stamp.write_text(ingredients)
    return image


def _initramfs(tree: Path, linux: kernel.Kernel) -> Archive:
    archive = Archive()
    archive.tree(HERE / "rootfs")
    archive.link("bin/wait-gone", "wait-for")
    archive.link("etc/mtab", "/proc/self/mounts")
    _add_modules(archive, linux)
    _add_programs(archive, tree)
    _add_busybox(archive, tree)
    return archive


def _add_modules(archive: Archive, linux: kernel.Kernel) -> None:
    modules = kernel.load_order(linux, MODULES)
    for name, content in modules:
        archive.file(f"lib/modules/{name}.ko", content)
    archive.file("lib/modules/order", "".join(f"{name}.ko\n" for name, _ in modules).encode())


def _add_programs(archive: Archive, tree: Path) -> None:
    """The programs, the libraries that their loader finds for them, and their data."""
    loader = _library(tree, LOADER)
    archive.file(f"lib64/{LOADER}", loader.read_bytes(), executable=True)
    programs = [path for pattern in PROGRAMS for path in sorted((tree / "usr/bin").glob(pattern))]
    for program in programs:
        archive.file(f"bin/{program.name}", program.read_bytes(), executable=True)
        for library in _needed(tree, loader, program):
            archive.file(f"{LIB}/{library.name}", library.read_bytes(), executable=True)
    for pattern in DATA:
        for path in sorted(path for path in tree.glob(pattern) if path.is_file()):
            archive.file(str(path.relative_to(tree)), path.read_bytes())


def _add_busybox(archive: Archive, tree: Path) -> None:
    """Last, so that programs of the same name are not hidden by busybox's."""
    busybox = next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.is_file())
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    for applet in _output(busybox, "--list").split():
        archive.link(f"bin/{applet}", "busybox")


def _library(tree: Path, name: str) -> Path:
    for folder in (tree / LIB, tree / "usr" / LIB):
        if (folder / name).is_file():
            return folder / name
    raise BuildError(f"no {name} in the packages: the guest is built for amd64 only")


def _needed(tree: Path, loader: Path, program: Path) -> list[Path]:
    """The libraries of ``program`` by the packages' own loader: the host's libraries have no say."""
    paths = f"{tree / LIB}:{tree / 'usr' / LIB}"
    lines = _output(loader, "--inhibit-cache", "--library-path", paths, "--list", str(program)).splitlines()
    names = [line.split()[0] for line in lines if "=>" in line]
    return [_library(tree, Path(name).name) for name in names]


def _output(*argv: str | Path) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise BuildError(f"cannot run the guest's own {Path(argv[0]).name} on this machine: {exc}") from exc


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: list[str] | None = None) -> int:
    """The command ``build.py``; returns its exit status."""
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__)
    parser.add_argument("out", metavar="OUT_DIR", nargs="?", type=Path, help="default: CACHE/image")
    parser.add_argument("--cache", type=Path, help=f"for downloaded packages; default: {default_cache()}")
    parser.add_argument("--kernel", metavar="RELEASE", help="take this installed kernel of /boot")
    options = parser.parse_args(argv)
    try:
        image = build(options.out, options.cache, options.kernel)
    except (BuildError, OSError) as exc:
        print(f"build.py: {exc}", file=sys.stderr)
        return 1
    print(image.kernel, image.initrd, sep="\n")
    return 0
