"""QEMU's vvfat: a folder as a FAT disk, described as data.

vvfat scans the tree once, when it is opened. It makes a disk with one FAT
partition; its options are ``dir``, ``fat-type``, ``floppy``, ``label``, ``rw``
(qapi/block-core.json, BlockdevOptionsVVFAT). A read error of the folder becomes
zeros in the disk, so a share that may go away must be detached first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvbridge.errors import UsageError

LABEL_BYTES = 11
"""A FAT volume label."""

FAT_TYPE = 16
"""Its FAT12 disks cannot be read by mtools, and of its FAT32 QEMU says that nobody tested it."""

PARTITION_OFFSET = 63 * 512
"""Where vvfat puts its partition: after one track of 63 sectors."""

FORBIDDEN_IN_LABEL = frozenset('"*+,./:;<=>?[\\]|')
"""What a FAT label cannot hold."""


@dataclass(frozen=True, slots=True)
class FatDisk:
    """A FAT16 disk made of ``directory``, read-only: QEMU itself calls vvfat's writing unsafe.

    ``label``: the volume's, ``None`` for QEMU's own. Raises :class:`UsageError`
    for what vvfat or FAT cannot express.
    """

    directory: Path
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.directory.is_absolute():
            raise UsageError(f"vvfat needs an absolute folder, not {str(self.directory)!r}")
        if self.label is not None:
            _check_label(self.label)

    @property
    def blockdev(self) -> dict[str, Any]:
        """The node for ``blockdev-add`` or ``-blockdev``: any path can be said this way."""
        node: dict[str, Any] = {"driver": "vvfat", "dir": str(self.directory), "fat-type": FAT_TYPE}
        if self.label is not None:
            node["label"] = self.label
        return node | {"rw": False, "read-only": True}

    @property
    def filename(self) -> str:
        """The same as one word, for ``qemu-img`` and ``-drive``.

        ``fat:16:/folder`` where that says all, else ``json:{…}``: the short form
        has no label, and takes as the folder what follows the last colon.
        """
        if self.label is None and ":" not in str(self.directory):
            return f"fat:{FAT_TYPE}:{self.directory}"
        return "json:" + json.dumps(self.blockdev, ensure_ascii=False, separators=(",", ":"))

    def convert_command(self, image: Path) -> list[str]:
        """argv that copies the disk into the raw file ``image``, sparse."""
        # No -f: the filename names the driver in both of its forms.
        return ["qemu-img", "convert", "-O", "raw", self.filename, str(image)]


def partition_of(image: Path) -> str:
    """mtools' name (``-i``) for the partition within a raw image of such a disk."""
    return f"{image}@@{PARTITION_OFFSET}"


def _check_label(label: str) -> None:
    if not label.isascii() or not label.strip() or len(label) > LABEL_BYTES:
        raise UsageError(f"a FAT label has 1 to {LABEL_BYTES} ASCII characters: {label!r}")
    if any(char in FORBIDDEN_IN_LABEL or not char.isprintable() for char in label):
        raise UsageError(f"a FAT label cannot hold any of {' '.join(sorted(FORBIDDEN_IN_LABEL))}: {label!r}")
