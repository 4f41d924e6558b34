from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvbridge.errors import NoSpace
from hvbridge.vfs.sparse import SparseFile


def test_holes_are_zeros_and_cost_nothing(tmp_path: Path) -> None:
    file = SparseFile(tmp_path)
    file.write(5 << 30, b"far")
    assert file.read(5 << 30, 10) == b"far"
    assert file.read((5 << 30) - 2, 4) == b"\0\0fa"
    assert os.fstat(file.fd).st_blocks * 512 < 1 << 20
    file.close()
    file.close()


def test_an_anonymous_file_leaves_no_name(tmp_path: Path) -> None:
    file = SparseFile(tmp_path)
    file.write(0, b"x")
    assert list(tmp_path.iterdir()) == []
    file.close()


def test_a_named_file_is_private_and_new(tmp_path: Path) -> None:
    file = SparseFile(tmp_path, tmp_path / "name")
    assert (tmp_path / "name").stat().st_mode & 0o777 == 0o600
    with pytest.raises(NoSpace):
        SparseFile(tmp_path, tmp_path / "name")
    file.close()


def test_truncate(tmp_path: Path) -> None:
    file = SparseFile(tmp_path)
    file.write(0, b"0123456789")
    file.truncate(4)
    file.truncate(6)
    assert file.read(0, 100) == b"0123\0\0"
    file.close()


def test_punch_gives_space_back(tmp_path: Path) -> None:
    file = SparseFile(tmp_path)
    file.write(0, b"x" * (1 << 20))
    before = os.fstat(file.fd).st_blocks
    file.punch(0, 1 << 19)
    assert os.fstat(file.fd).st_size == 1 << 20
    assert os.fstat(file.fd).st_blocks <= before // 2 + 16
    assert file.read((1 << 19) - 1, 2) == b"\0x"
    file.close()


def test_no_folder_to_be_in(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="cannot make a file"):
        SparseFile(tmp_path / "none")
