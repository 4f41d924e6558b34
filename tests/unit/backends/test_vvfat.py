"""What is said to QEMU: goldens, and QEMU itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hvbridge.backends.vvfat import FatDisk, partition_of
from hvbridge.errors import UsageError


@pytest.mark.parametrize(
    ("disk", "filename"),
    [
        (FatDisk(Path("/srv/client")), "fat:16:/srv/client"),
        (FatDisk(Path("/srv/my client, ü=1")), "fat:16:/srv/my client, ü=1"),
        (
            FatDisk(Path("/srv/client"), label="CLIENT"),
            'json:{"driver":"vvfat","dir":"/srv/client","fat-type":16,"label":"CLIENT","rw":false,"read-only":true}',
        ),
        (
            FatDisk(Path('/srv/a:b"')),
            'json:{"driver":"vvfat","dir":"/srv/a:b\\"","fat-type":16,"rw":false,"read-only":true}',
        ),
    ],
)
def test_filename(disk: FatDisk, filename: str) -> None:
    assert disk.filename == filename
    if filename.startswith("json:"):
        assert json.loads(filename.removeprefix("json:")) == disk.blockdev


def test_convert_command() -> None:
    assert FatDisk(Path("/srv/client")).convert_command(Path("/tmp/d.img")) == [
        "qemu-img",
        "convert",
        "-O",
        "raw",
        "fat:16:/srv/client",
        "/tmp/d.img",
    ]
    assert partition_of(Path("/tmp/d.img")) == "/tmp/d.img@@32256"


@pytest.mark.parametrize("label", ["", " ", "TWELVE CHARS", "Ä", "A/B", "A\nB", 'A"B', "A\x7f"])
def test_labels_that_fat_cannot_hold(label: str) -> None:
    with pytest.raises(UsageError, match="FAT label"):
        FatDisk(Path("/srv"), label=label)


def test_the_folder_must_be_absolute() -> None:
    with pytest.raises(UsageError, match="absolute"):
        FatDisk(Path("srv"))


@pytest.mark.peers("qemu-img", "mtools")
@pytest.mark.parametrize(("folder", "label"), [("plain", None), ("a:b, c=d", "A LABEL"), ("ü:", None)])
def test_qemu_understands_it(tmp_path: Path, folder: str, label: str | None) -> None:
    source, image = tmp_path / folder, tmp_path / "disk.img"
    (source / "Sub folder").mkdir(parents=True)
    (source / "Sub folder" / "A long name.bin").write_bytes(bytes(range(256)) * 1000)
    subprocess.run(FatDisk(source, label).convert_command(image), check=True, timeout=60)
    drive = ["-i", partition_of(image)]
    copied = subprocess.run(
        ["mcopy", *drive, "::/Sub folder/A long name.bin", "-"], check=True, timeout=60, capture_output=True
    )
    assert copied.stdout == bytes(range(256)) * 1000
    volume = subprocess.run(["mdir", *drive, "::/"], check=True, timeout=60, capture_output=True, text=True)
    assert f"is {label or 'QEMU VVFAT'}" in volume.stdout
