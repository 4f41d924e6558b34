from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvbridge.errors import NoSpace
from hvbridge.vfs.spool import SpoolFile, make_folder


def notes(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def test_what_is_left_behind_says_whose_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "id")
    assert folder.stat().st_mode & 0o777 == 0o700
    spool = SpoolFile(folder, "/mnt", "/docs/ü")
    spool.file.write(0, b"content")
    spool.annotate(state="failed", error="no client", size=7)
    spool.close()
    (note,) = notes(folder)
    assert (note["path"], note["mountpoint"], note["state"], note["size"]) == ("/docs/ü", "/mnt", "failed", 7)
    assert (folder / str(note["data"])).read_bytes() == b"content"
    assert spool.describe() == {
        "path": "/docs/ü",
        "size": 7,
        "state": "failed",
        "error": "no client",
        "spool": str(spool.data_path),
    }


def test_nothing_is_left_of_what_the_client_has(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "id")
    spool = SpoolFile(folder, "/mnt", "/f")
    assert spool.state == "writing"
    spool.sync()
    spool.remove()
    spool.remove()
    assert list(folder.iterdir()) == []


def test_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        SpoolFile(tmp_path / "none", "/mnt", "/f")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NoSpace, match="cannot make the spool"):
        make_folder(tmp_path / "file", "id")
