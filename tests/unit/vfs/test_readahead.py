"""What is fetched before it is opened, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvbridge.config import Limits
from hvbridge.vfs.contentcache import ContentCache
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.vfs.readahead import FILES, PATIENCE, ReadAhead
from hvbridge.vfs.tree import Tree
from tests.support.pipes import eventually

LIMITS = Limits(fresh=1e9)


class Reader:
    """A share of numbered files, and what a program that reads them causes."""

    def __init__(self, tmp_path: Path, size: int = 100) -> None:
        self.remote = MemoryRemote()
        self.now = 0.0
        for folder in ("/d", "/e"):
            self.remote.mkdir(folder)
            for number in range(30):
                self.remote.write(f"{folder}/f{number:02}", bytes(size))
        self.tree = Tree(self.remote, LIMITS)
        self.cache = ContentCache(self.remote, tmp_path, LIMITS, 1 << 30)
        self.ahead = ReadAhead(self.tree, self.cache, LIMITS, clock=lambda: self.now)
        self.tree.list("/d")
        self.tree.list("/e")
        self.asked: list[str] = []
        self.remote.before = lambda method, path: self.asked.append(path) if method == "get" else None

    def settled(self, expected: set[str]) -> bool:
        return set(self.asked) == expected and not self.ahead._under_way

    def close(self) -> None:
        self.ahead.close()
        self.tree.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def expect(reader: Reader, paths: set[str]) -> None:
    eventually(lambda: reader.settled(paths))


def test_the_second_file_in_order_brings_the_next_ones_once(reader: Reader) -> None:
    reader.ahead.opened("/d/f00")
    assert reader.asked == []
    reader.ahead.opened("/d/f01")
    expected = {f"/d/f{n:02}" for n in range(2, 2 + FILES)}
    expect(reader, expected)
    reader.ahead.opened("/d/f02")
    expected.add(f"/d/f{2 + FILES:02}")
    expect(reader, expected)
    assert len(reader.asked) == len(expected)


def test_while_it_goes_well_one_file_of_another_folder_is_enough(reader: Reader) -> None:
    reader.ahead.opened("/d/f28")
    reader.ahead.opened("/d/f29")
    assert reader.asked == []
    reader.ahead.opened("/e/f00")
    expect(reader, {f"/e/f{n:02}" for n in range(1, 1 + FILES)})


def test_opens_that_are_rare_bring_nothing(reader: Reader) -> None:
    reader.ahead.opened("/d/f04")
    reader.now += PATIENCE
    reader.ahead.opened("/d/f05")
    assert reader.asked == []
    assert not reader.ahead._under_way


def test_opens_out_of_order_bring_nothing(reader: Reader) -> None:
    reader.ahead.opened("/d/f04")
    reader.ahead.opened("/d/f03")
    assert reader.asked == []
    assert not reader.ahead._under_way


def test_large_files_are_left_alone(tmp_path: Path) -> None:
    reader = Reader(tmp_path, size=LIMITS.small_file + 1)
    reader.ahead.opened("/d/f00")
    reader.ahead.opened("/d/f01")
    assert reader.asked == []
    reader.close()


def test_what_was_fetched_ahead_needs_no_request_when_it_is_opened(reader: Reader) -> None:
    reader.ahead.opened("/d/f00")
    reader.ahead.opened("/d/f01")
    expect(reader, {f"/d/f{n:02}" for n in range(2, 2 + FILES)})
    before = len(reader.asked)
    content = reader.cache.begin("/d/f02", reader.tree.lookup("/d/f02"))
    assert content.read(0, 1000) == bytes(100)
    assert len(reader.asked) == before
