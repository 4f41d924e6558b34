"""The archive that the kernel unpacks as its first root (cpio "newc", its initramfs buffer format)."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

MAGIC = "070701"
TRAILER = "TRAILER!!!"


class Archive:
    """An archive in memory; folders above an added path are made as needed. All belongs to root."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str) -> None:
        """A folder, 0755."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, executable: bool = False) -> None:
        """A regular file, 0644 or 0755."""
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, name: str, target: str) -> None:
        """A symbolic link to ``target``."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def tree(self, root: Path) -> None:
        """All regular files below ``root``, with their exec bits, at the same paths."""
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            executable = bool(path.stat().st_mode & stat.S_IXUSR)
            self.file(str(path.relative_to(root)), path.read_bytes(), executable)

    def __bytes__(self) -> bytes:
        return b"".join([*self._parts, _record(TRAILER, 0, 0, b"")])

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        name = name.strip("/")
        if name in self._names:
            return
        parent = str(PurePosixPath(name).parent)
        if parent != "." and parent not in self._names:
            self.folder(parent)
        self._names.add(name)
        self._parts.append(_record(name, len(self._names), mode, content))


def _record(name: str, inode: int, mode: int, content: bytes) -> bytes:
    links, no_time, no_device, no_checksum = 1, 0, 0, 0
    raw_name = name.encode() + b"\0"
    fields = [inode, mode, 0, 0, links, no_time, len(content)]
    fields += [no_device, no_device, no_device, no_device, len(raw_name), no_checksum]
    head = (MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + raw_name
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
