from __future__ import annotations

import os

import pytest

from hvbridge.config import Limits
from hvbridge.errors import InvalidName, NameTooLong
from hvbridge.vfs import names

LIMITS = Limits()


def test_split_and_join() -> None:
    for path, folder, name in [("/a", "/", "a"), ("/a/b", "/a", "b"), ("/a/b/c d", "/a/b", "c d")]:
        assert names.split(path) == (folder, name)
        assert names.join(folder, name) == path
    assert names.split("/") == ("/", "")


def test_below_and_moved() -> None:
    assert names.is_below("/a/b", "/a")
    assert names.is_below("/a", "/")
    assert not names.is_below("/a", "/a")
    assert not names.is_below("/ab", "/a")
    assert names.moved("/a", "/a", "/x/y") == "/x/y"
    assert names.moved("/a/b/c", "/a", "/x") == "/x/b/c"
    assert names.moved("/ab", "/a", "/x") == "/ab"


def test_hidden_names_are_ours_and_new_each_time() -> None:
    first, second = names.temporary("/a", "part"), names.temporary("/", "gone")
    assert first != names.temporary("/a", "part")
    assert names.split(first)[0] == "/a"
    assert names.split(second)[0] == "/"
    assert all(names.is_hidden(names.split(path)[1]) for path in (first, second))
    for shown in (".hvbridge-1.part", ".hvbridge-0123456789abcdef.txt", "x.hvbridge-0123456789abcdef.part"):
        assert not names.is_hidden(shown)


def test_check() -> None:
    for good in ("/", "/a", "/" + "x" * 255, "/d" * 128, "/%", "/.hidden", "/new\nline"):
        names.check(good, LIMITS)
    for long in ("/" + "x" * 256, "/" + "é" * 128, "/d" * 129):
        with pytest.raises(NameTooLong):
            names.check(long, LIMITS)
    with pytest.raises(InvalidName, match="UTF-8") as caught:
        names.check("/" + os.fsdecode(b"\xff"), LIMITS)
    str(caught.value).encode()  # can be logged
    with pytest.raises(InvalidName):
        names.check(names.temporary("/", "part"), LIMITS)
