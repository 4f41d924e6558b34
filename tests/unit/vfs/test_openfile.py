"""Base version and spool as one file, against a bytearray."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvbridge.config import Limits
from hvbridge.errors import Changed
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.openfile import OpenFile
from hvbridge.vfs.remote import Entry
from hvbridge.vfs.spool import SpoolFile

BIG = random.Random(5).randbytes(3 << 20)


def opened(folder: Path, data: bytes | None, small_file: int = 64) -> tuple[OpenFile, MemoryRemote]:
    """An open file whose base has ``data`` (``None``: a new file)."""
    remote = MemoryRemote(ranges=True)
    cache = ContentCache(remote, folder, Limits(small_file=small_file), 1 << 30)
    entry = None
    if data is not None:
        remote.write("/f", data)
        entry = remote.stat("/f")
    file = OpenFile(
        "/f",
        entry,
        lambda file: cache.open(file.path, file.entry or Entry("f", is_dir=False, size=0)),
        lambda file: SpoolFile(folder, "/mnt", file.path),
    )
    return file, remote


offsets = st.one_of(st.integers(0, 300), st.sampled_from([0, 1, 99, 100, 101, 199, 200, 201]))
changes = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, st.binary(min_size=1, max_size=120)),
        st.tuples(st.just("truncate"), offsets, st.just(b"")),
        st.tuples(st.just("read"), offsets, st.just(b"")),
        st.tuples(st.just("fill"), st.just(0), st.just(b"")),
    ),
    max_size=12,
)


@settings(max_examples=250, deadline=None)
@given(base=st.one_of(st.none(), st.sampled_from([0, 30, 200])), changes=changes)
def test_reads_as_a_bytearray_would(base: int | None, changes: list[tuple[str, int, bytes]]) -> None:
    data = None if base is None else BIG[:base]
    model = bytearray(data or b"")
    with tempfile.TemporaryDirectory() as folder:
        file, _ = opened(Path(folder), data)
        for change, offset, piece in changes:
            if change == "write":
                file.write(offset, piece)
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + len(piece)] = piece
            elif change == "truncate":
                file.truncate(offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            elif change == "fill" and file.dirty:
                file.fill()
            assert file.size == len(model)
            assert file.read(offset, 70) == model[offset : offset + 70]
            assert file.read(0, 1000) == model
        file.fill()
        assert b"".join(file.body(file.size)) == model
        assert file.is_local
        file.unlinked = True
        file.close()
        assert list(Path(folder).iterdir()) == []


def test_the_first_write_fetches_nothing(tmp_path: Path) -> None:
    file, remote = opened(tmp_path, BIG)
    file.write(1 << 20, b"***")
    file.truncate(2 << 20)
    assert remote.requests["get"] == 0
    assert file.read(1 << 20, 3) == b"***"
    assert remote.requests["get"] == 0
    file.fill()
    assert b"".join(file.body(file.size)) == BIG[: 1 << 20] + b"***" + BIG[(1 << 20) + 3 : 2 << 20]


def test_what_was_cut_off_does_not_come_back(tmp_path: Path) -> None:
    file, _ = opened(tmp_path, b"0123456789" * 20)
    file.truncate(5)
    file.truncate(200)
    assert file.read(0, 1000) == b"01234" + bytes(195)


def test_dirty_clean_untouched(tmp_path: Path) -> None:
    new, _ = opened(tmp_path, None)
    assert (new.dirty, new.untouched) == (True, False)
    new.write(0, b"x")
    assert not new.untouched
    old, _ = opened(tmp_path, b"content")
    assert not old.dirty
    old.truncate(7)
    assert not old.dirty, "the size that it has"
    old.truncate(0)
    assert (old.dirty, old.untouched) == (True, True)
    old.unlinked = True
    assert not old.dirty


def test_a_base_that_is_gone_is_never_made_up(tmp_path: Path) -> None:
    file, remote = opened(tmp_path, BIG)
    file.write(0, b"***")
    remote.write("/f", bytes(len(BIG)))
    with pytest.raises(Changed):
        file.fill()
    assert file.read(0, 3) == b"***"


def test_a_body_ends_early_if_it_is_cut_meanwhile(tmp_path: Path) -> None:
    file, _ = opened(tmp_path, None)
    file.write(0, BIG)
    body = file.body(file.size)
    first = next(body)
    file.truncate(10)
    assert b"".join(body) == b""
    assert first == BIG[: len(first)]


def test_dirty_content_stays_in_the_spool_at_close(tmp_path: Path) -> None:
    file, _ = opened(tmp_path, None)
    file.write(0, b"unsent")
    file.close()
    (data,) = tmp_path.glob("*.data")
    assert data.read_bytes() == b"unsent"
