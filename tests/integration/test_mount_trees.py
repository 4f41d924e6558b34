"""Whole trees through the mount, compared byte for byte with what the client has, both ways."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, mounted, names_in, until

pytestmark = pytest.mark.peers("spice-gtk", "fuse")

MIB = 1 << 20
LARGE = 300 * MIB

ODD_NAMES = [
    "100%",
    "%41",
    "%2F",
    "%",
    "a#b",
    "#",
    "what?",
    "?",
    "R&D",
    "&amp;",
    "&",
    "a<b>c",
    "<!--",
    "]]>",
    " leading",
    "trailing ",
    "  ",
    "two\nlines",
    "\n",
    "tab\tbed",
    'quo"ted',
    "it's",
    "back\\slash",
    "semi;colon",
    "a+b",
    "c:d",
    "*",
    "~",
    "-rf",
    "...",
    ".hidden",
    "trailing.",
    "\x01control\x1b[31m",
    "Grüße",
    unicodedata.normalize("NFD", "Grüße"),
    "日本語",
    "🦆",
    "\u202eright to left",
    "\ufeffmark",
    "\ufffd",
    "x" * 255,
    "ü" * 127,
    "CON",
    "file.txt:stream",
]
"""Names that a Linux folder can hold and that something between it and the mount may trip over."""

NOT_UTF8 = [b"latin\xfc", b"\xff\xfe", b"half\xc3"]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_of(top: Path) -> dict[str, str]:
    """Every file's hash, and ``folder`` for folders, by path relative to ``top``."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders:
            found[str((Path(folder) / name).relative_to(top))] = "folder"
        for name in files:
            found[str((Path(folder) / name).relative_to(top))] = digest(Path(folder) / name)
    return found


def make_tree(top: Path, seed: int) -> None:
    """Some four hundred files: odd names as files and as folders, empty ones, sizes about the limits."""
    rng = random.Random(seed)
    for number, name in enumerate(ODD_NAMES):
        folder = top / "odd" / name
        folder.mkdir(parents=True)
        (folder / "inner.txt").write_bytes(rng.randbytes(rng.choice([0, 1, 100, 5000])))
        (folder / name).write_bytes(name.encode())
        (folder / "empty folder").mkdir()
        (top / f"files {number % 3}").mkdir(exist_ok=True)
        (top / f"files {number % 3}" / name).write_bytes(rng.randbytes(number * 37))
    for size in (0, 1, 4095, 4096, 8191, 8192, 65535, 65536, 131071, 131072, 131073, MIB, 5 * MIB + 1):
        (top / f"{size}.bin").write_bytes(rng.randbytes(size))
    deep = top
    for level in range(30):
        deep = deep / f"level {level}"
        deep.mkdir()
        (deep / "here").write_text(str(level))
    many = top / "many"
    many.mkdir()
    for number in range(200):
        (many / f"{number:04}.txt").write_text(f"number {number}\n")


def write_large(path: Path, seed: int) -> str:
    """:data:`LARGE` bytes; their hash."""
    rng, sha = random.Random(seed), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(LARGE // MIB):
            block = rng.randbytes(MIB)
            sha.update(block)
            file.write(block)
    return sha.hexdigest()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as mount:
        yield mount


def test_a_tree_made_on_the_client(mount: Mounted) -> None:
    make_tree(mount.shared / "tree", seed=1)
    wanted = tree_of(mount.shared / "tree")
    assert len(wanted) > 400
    assert tree_of(mount.path / "tree") == wanted


def test_a_tree_made_in_the_mount(mount: Mounted) -> None:
    make_tree(mount.path / "tree", seed=2)
    found = tree_of(mount.shared / "tree")
    assert len(found) > 400
    assert found == tree_of(mount.path / "tree")
    make_tree(mount.work / "reference", seed=2)
    assert found == tree_of(mount.work / "reference")
    assert mount.part_files() == []


def test_odd_names_are_listed_as_they_are(mount: Mounted) -> None:
    for name in ODD_NAMES:
        (mount.shared / name).write_text(name)
    assert names_in(mount.path) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        renamed = mount.path / (name[:120] + "'")
        (mount.path / name).rename(renamed)
        assert renamed.read_text() == name
        renamed.unlink()
    assert names_in(mount.shared) == []


def test_names_that_are_not_utf8_hide_nothing_else(mount: Mounted) -> None:
    folder = mount.shared / "mixed"
    folder.mkdir()
    for odd in NOT_UTF8:
        (folder / os.fsdecode(odd)).write_bytes(b"cannot be shown")
    (folder / os.fsdecode(b"folder\xff")).mkdir()
    good = {"plain.txt": "plain", "Grüße.txt": "umlauts", "zz": "last"}
    for name, text in good.items():
        (folder / name).write_text(text)
    seen = {path.name: path.read_text() for path in (mount.path / "mixed").iterdir() if path.name in good}
    assert seen == good
    with pytest.raises(OSError):
        (mount.path / "mixed" / os.fsdecode(b"latin\xfc")).stat()
    with pytest.raises(OSError):
        (mount.path / "mixed" / os.fsdecode(b"new\xfc")).mkdir()
    (mount.path / "mixed" / "after").write_text("still works")
    assert (folder / "after").read_text() == "still works"


def test_a_large_file_both_ways(mount: Mounted) -> None:
    wanted = write_large(mount.shared / "down.bin", seed=3)
    assert digest(mount.path / "down.bin") == wanted
    assert write_large(mount.path / "up.bin", seed=3) == wanted
    assert digest(mount.shared / "up.bin") == wanted


def test_a_file_above_4_gib(mount: Mounted) -> None:
    """Read at both ends; the client streams all that lies between, which is zeros."""
    size = (4 << 30) + 7 * MIB + 3
    with (mount.shared / "huge.bin").open("wb") as file:
        file.write(b"begins here")
        file.seek(size - 10)
        file.write(b"ends here.")
    path = mount.path / "huge.bin"
    assert path.stat().st_size == size
    with path.open("rb") as file:
        assert file.read(11) == b"begins here"
        file.seek(-10, os.SEEK_END)
        assert file.read() == b"ends here."
    path.unlink()
    assert not (mount.shared / "huge.bin").exists()


def test_five_thousand_files_in_a_folder(mount: Mounted) -> None:
    folder = mount.shared / "many"
    folder.mkdir()
    for number in range(5000):
        (folder / f"{number:04}").write_bytes(b"%d" % number)
    with os.scandir(mount.path / "many") as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert sizes == {f"{number:04}": len(b"%d" % number) for number in range(5000)}


def test_what_the_client_changes_is_seen(mount: Mounted) -> None:
    """After the time that a listing counts as fresh, at the latest."""
    for name in ("changed.txt", "removed.txt"):
        (mount.shared / name).write_text("one")
    for name in ("changed.txt", "removed.txt"):
        assert (mount.path / name).read_text() == "one"
    (mount.shared / "changed.txt").write_text("two, and longer")
    (mount.shared / "removed.txt").unlink()
    (mount.shared / "added").mkdir()
    until(lambda: (mount.path / "changed.txt").read_text() == "two, and longer", "the new content is read")
    until(lambda: (mount.path / "changed.txt").stat().st_size == 15, "the new size is seen")
    until(lambda: not (mount.path / "removed.txt").exists(), "the file is gone")
    until(lambda: (mount.path / "added").is_dir(), "the new folder is seen")
