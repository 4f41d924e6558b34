"""Names: mkdir, rmdir, unlink, rename by POSIX's rules, and names that are hard to carry."""

from __future__ import annotations

import errno
import os
import random
import unicodedata

import pytest

from tests.contract.conftest import Rig
from tests.contract.expecting import fails
from tests.support.fsops import ClientSide, FsOps

BIG = random.Random(2).randbytes(700 * 1024)
HUGE = random.Random(3).randbytes(1 << 20) * 10
"""More than is fetched for the sake of a deletion."""

THROUGH_LIBFUSE = ("mount", "spice")
"""Linux sends fstat(2) without the handle, and libfuse2 has no path of a deleted file to ask
us with: there it fails. (libfuse's own way out, ``.fuse_hidden`` names, would make a rename
over an open file two steps, with neither file in place between them.)"""

NAMES = [
    "percent%41 100%",
    "hash#tag",
    "question?mark=1",
    "R&D",
    "<angle> &amp; ]]>",
    " space before",
    "space behind ",
    " ",
    "two  spaces",
    "new\nline",
    "tab\tand \x7f",
    "bell\x07",
    "'single' \"double\"",
    "back\\slash",
    "semi;colon:and|pipe*star",
    ".hidden",
    "...",
    "..a",
    "a..",
    "~tilde",
    "-dash",
    "+plus+",
    "%2F",
    "%",
    "%zz",
    "http:",
    "Ünïcödé",
    "日本語",
    "🙂",
    "\u202eright-to-left",
    "x" * 255,
    "é" * 127,
    "COM1",
    "CamelCase",
    "camelcase",
]


# --- names that are hard to carry ------------------------------------------


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_any_name_makes_the_round_trip(fs: FsOps, client: ClientSide, name: str) -> None:
    fs.write_file(name, b"file")
    assert client.has(name, b"file")
    assert client.names() == [name]
    assert fs.listdir() == [name]
    assert fs.read_file(name) == b"file"
    fs.rename(name, "plain")
    fs.mkdir(name)
    fs.rename("plain", f"{name}/{name}")
    assert client.names(name) == [name]
    assert fs.listdir(name) == [name]
    assert fs.read_file(f"{name}/{name}") == b"file"
    fs.unlink(f"{name}/{name}")
    fs.rmdir(name)
    assert client.names() == fs.listdir() == []


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_any_name_of_the_client_is_shown(fs: FsOps, client: ClientSide, name: str) -> None:
    client.mkdir(name)
    client.write(f"{name}/{name}", b"inside")
    client.write("other", b"")
    assert fs.listdir() == sorted([name, "other"])
    assert fs.listdir(name) == [name]
    assert fs.stat(f"{name}/{name}").size == 6
    assert fs.read_file(f"{name}/{name}") == b"inside"


def test_all_of_them_in_one_folder(fs: FsOps, client: ClientSide) -> None:
    for name in NAMES:
        client.write(name, name.encode())
    assert fs.listdir() == sorted(NAMES)
    for name in NAMES:
        assert fs.read_file(name) == name.encode()


def test_composed_and_decomposed_are_two_names(fs: FsOps, client: ClientSide) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    fs.write_file(composed, b"NFC")
    fs.write_file(decomposed, b"NFD")
    assert client.names() == fs.listdir() == sorted([composed, decomposed])
    assert client.has(composed, b"NFC")
    assert client.has(decomposed, b"NFD")
    assert fs.read_file(decomposed) == b"NFD"


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128], ids=["256 characters", "256 bytes"])
def test_names_over_255_bytes_are_refused(fs: FsOps, client: ClientSide, name: str) -> None:
    fs.write_file("f", b"x")
    with fails(errno.ENAMETOOLONG):
        fs.write_file(name, b"x")
    with fails(errno.ENAMETOOLONG):
        fs.mkdir(name)
    with fails(errno.ENAMETOOLONG):
        fs.stat(name)
    with fails(errno.ENAMETOOLONG):
        fs.rename("f", name)
    with fails(errno.ENAMETOOLONG):
        fs.unlink(name)
    assert client.names() == ["f"]


def test_names_that_are_not_utf8_are_refused(fs: FsOps, client: ClientSide) -> None:
    name = os.fsdecode(b"latin-1 \xe9")
    with fails(errno.EILSEQ):
        fs.write_file(name, b"x")
    with fails(errno.EILSEQ):
        fs.mkdir(name)
    assert client.names() == fs.listdir() == []


def test_what_is_not_there(fs: FsOps) -> None:
    fs.write_file("file", b"x")
    for missing in ("none", "none/below", "a/b/c"):
        with fails(errno.ENOENT):
            fs.stat(missing)
    with fails(errno.ENOTDIR):
        fs.stat("file/below")
    with fails(errno.ENOENT):
        fs.listdir("none")
    with fails(errno.ENOTDIR):
        fs.listdir("file")


# --- mkdir, rmdir, unlink ----------------------------------------------------


def test_folders(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("a")
    fs.mkdir("a/b")
    fs.mkdir("a/b/c")
    assert fs.stat("a/b/c").is_dir
    assert (client.names("a"), client.names("a/b")) == (["b"], ["c"])
    with fails(errno.EEXIST):
        fs.mkdir("a/b")
    with fails(errno.ENOENT):
        fs.mkdir("none/below")
    with fails(errno.ENOTEMPTY):
        fs.rmdir("a")
    fs.rmdir("a/b/c")
    fs.rmdir("a/b")
    fs.rmdir("a")
    with fails(errno.ENOENT):
        fs.rmdir("a")
    assert client.names() == fs.listdir() == []


def test_mkdir_where_a_file_is(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("f", b"keep")
    with fails(errno.EEXIST):
        fs.mkdir("f")
    with fails(errno.ENOTDIR):
        fs.mkdir("f/below")
    assert client.has("f", b"keep")


def test_rmdir_does_not_destroy_what_the_client_put_there_meanwhile(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("folder")
    assert fs.listdir("folder") == []
    client.write("folder/precious", b"keep")
    with fails(errno.ENOTEMPTY):
        fs.rmdir("folder")
    assert client.has("folder/precious", b"keep")


def test_rmdir_with_a_file_that_the_client_has_not_got(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("folder")
    fd = fs.open("folder/f", os.O_WRONLY | os.O_CREAT)
    with fails(errno.ENOTEMPTY):
        fs.rmdir("folder")
    fs.pwrite(fd, b"x", 0)
    fs.close(fd)
    assert client.has("folder/f", b"x")


def test_rmdir_and_unlink_tell_files_from_folders(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("file", b"x")
    fs.mkdir("folder")
    with fails(errno.ENOTDIR):
        fs.rmdir("file")
    with fails(errno.EISDIR):
        fs.unlink("folder")
    with fails(errno.ENOENT):
        fs.unlink("none")
    assert client.names() == ["file", "folder"]


def test_unlink(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("f", b"x")
    fs.unlink("f")
    assert client.names() == fs.listdir() == []
    assert not fs.exists("f")
    fs.write_file("f", b"again")
    assert client.has("f", b"again")


# --- files that are open when their name goes ----------------------------------


@pytest.mark.parametrize("data", [b"small", BIG, HUGE], ids=["small", "big", "huge"])
def test_a_deleted_file_stays_readable(fs: FsOps, client: ClientSide, data: bytes) -> None:
    client.write("f", data)
    fd = fs.open("f")
    assert fs.pread(fd, 3, 0) == data[:3]
    fs.unlink("f")
    assert fs.listdir() == []
    assert not fs.exists("f")
    assert fs.read_all(fd) == data
    fs.close(fd)
    assert fs.notices(lambda: client.names() == []), "nothing hidden is left"


def test_fstat_of_a_deleted_open_file(rig: Rig) -> None:
    rig.client.write("f", b"content")
    fd = rig.fs.open("f", os.O_RDWR)
    rig.fs.unlink("f")
    rig.fs.pwrite(fd, b"longer content", 0)
    try:
        if rig.kind in THROUGH_LIBFUSE:
            with fails(errno.ENOENT):
                rig.fs.fstat(fd)
        else:
            assert rig.fs.fstat(fd).size == 14
    finally:
        rig.fs.close(fd)


def test_the_folder_of_a_deleted_open_file_can_go(fs: FsOps, client: ClientSide) -> None:
    client.mkdir("folder")
    client.write("folder/f", HUGE)
    fd = fs.open("folder/f")
    fs.unlink("folder/f")
    fs.rmdir("folder")
    assert fs.read_all(fd) == HUGE
    fs.close(fd)
    assert client.names() == []


def test_a_deleted_file_can_be_written_and_is_gone_at_close(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"0123456789", 0)
    fs.fsync(fd)
    fs.unlink("f")
    fs.pwrite(fd, b"***", 3)
    fs.ftruncate(fd, 8)
    assert fs.read_all(fd) == b"012***67"
    fs.fsync(fd)
    fs.close(fd)
    assert client.names() == fs.listdir() == []


def test_a_temporary_file_with_a_hole_can_be_deleted(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    fs.ftruncate(fd, 300_000)
    fs.pwrite(fd, b"x", 200_000)
    fs.fsync(fd)
    fs.unlink("f")
    assert fs.read_all(fd) == bytes(200_000) + b"x" + bytes(99_999)
    fs.close(fd)
    assert client.names() == []


def test_a_file_that_was_never_sent_can_be_deleted(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"secret", 0)
    fs.unlink("f")
    assert fs.read_all(fd) == b"secret"
    fs.close(fd)
    assert client.names() == fs.listdir() == []


def test_a_new_file_under_the_name_of_a_deleted_open_one(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"old")
    old = fs.open("f", os.O_RDWR)
    fs.unlink("f")
    fs.write_file("f", b"new file")
    assert fs.read_all(old) == b"old"
    fs.pwrite(old, b"OLD", 0)
    fs.close(old)
    assert client.has("f", b"new file")
    assert fs.read_file("f") == b"new file"


# --- rename ------------------------------------------------------------------


def test_rename_a_file(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("a", b"content")
    fs.mkdir("folder")
    fs.rename("a", "b")
    assert fs.listdir() == ["b", "folder"]
    fs.rename("b", "folder/c")
    assert client.names() == fs.listdir() == ["folder"]
    assert client.has("folder/c", b"content")
    assert fs.read_file("folder/c") == b"content"
    fs.rename("folder/c", "folder/c")
    assert client.has("folder/c", b"content")


@pytest.mark.parametrize("data", [b"small", BIG], ids=["small", "big"])
def test_rename_over_a_file(fs: FsOps, client: ClientSide, data: bytes) -> None:
    fs.write_file("new", data)
    fs.write_file("old", b"to be replaced")
    assert fs.read_file("old") == b"to be replaced"
    fs.rename("new", "old")
    assert client.names() == fs.listdir() == ["old"]
    assert client.has("old", data)
    assert fs.stat("old").size == len(data)
    assert fs.read_file("old") == data


def test_rename_over_a_file_of_the_same_size(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("new", b"AAAA")
    fs.write_file("old", b"BBBB")
    assert fs.read_file("old") == b"BBBB"
    fs.rename("new", "old")
    assert fs.read_file("old") == b"AAAA"


def test_rename_a_folder(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("a")
    fs.mkdir("a/sub")
    fs.write_file("a/sub/f", b"deep")
    assert fs.listdir("a/sub") == ["f"]
    fs.rename("a", "b")
    assert not fs.exists("a")
    assert fs.listdir("b/sub") == ["f"]
    assert fs.read_file("b/sub/f") == b"deep"
    assert client.has("b/sub/f", b"deep")
    fs.mkdir("a")
    assert fs.listdir("a") == []


def test_rename_a_folder_over_an_empty_one(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("full")
    fs.write_file("full/f", b"x")
    fs.mkdir("empty")
    fs.rename("full", "empty")
    assert client.names() == fs.listdir() == ["empty"]
    assert client.has("empty/f", b"x")


def test_rename_never_destroys_a_folder_with_something_in_it(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("full")
    fs.write_file("full/precious", b"keep")
    fs.mkdir("other")
    fs.write_file("other/f", b"x")
    fs.write_file("file", b"x")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        fs.rename("other", "full")
    with fails(errno.EISDIR):
        fs.rename("file", "full")
    with fails(errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR):
        fs.rename("full/precious", "full")
    assert client.has("full/precious", b"keep")
    assert client.names() == fs.listdir() == ["file", "full", "other"]


def test_rename_over_a_folder_that_the_client_filled_meanwhile(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("a")
    fs.mkdir("b")
    assert fs.listdir("b") == []
    client.write("b/precious", b"keep")
    with fails(errno.ENOTEMPTY):
        fs.rename("a", "b")
    assert client.has("b/precious", b"keep")


def test_rename_refuses(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("a")
    fs.mkdir("a/sub")
    fs.write_file("file", b"keep")
    with fails(errno.EINVAL):
        fs.rename("a", "a/sub/inside")
    with fails(errno.ENOTDIR):
        fs.rename("a", "file")
    with fails(errno.ENOENT):
        fs.rename("none", "b")
    with fails(errno.ENOENT):
        fs.rename("file", "none/b")
    with fails(errno.ENOTDIR):
        fs.rename("file", "file/b")
    assert client.names() == fs.listdir() == ["a", "file"]
    assert client.has("file", b"keep")


def test_a_name_that_begins_like_the_folder_is_not_inside_it(fs: FsOps, client: ClientSide) -> None:
    fs.mkdir("a")
    fs.rename("a", "ab")
    assert client.names() == fs.listdir() == ["ab"]


# --- files that are open when their name changes -------------------------------


def test_an_open_file_keeps_working_across_rename(fs: FsOps, client: ClientSide) -> None:
    client.write("a", BIG)
    reader, writer = fs.open("a"), fs.open("a", os.O_RDWR)
    fs.pwrite(writer, b"1", 0)
    fs.rename("a", "b")
    fs.pwrite(writer, b"2", 1)
    assert fs.pread(reader, 4, 0) == b"12" + BIG[2:4]
    assert fs.fstat(writer).size == len(BIG)
    fs.close(writer)
    assert client.names() == fs.listdir() == ["b"]
    assert client.has("b", b"12" + BIG[2:])
    assert fs.pread(reader, 4, 0) == b"12" + BIG[2:4]
    fs.close(reader)


@pytest.mark.parametrize("data", [BIG, HUGE], ids=["big", "huge"])
def test_a_reader_keeps_reading_across_rename(fs: FsOps, client: ClientSide, data: bytes) -> None:
    client.write("a", data)
    fd = fs.open("a")
    assert fs.pread(fd, 10, 0) == data[:10]
    fs.rename("a", "b")
    assert fs.read_all(fd) == data
    fs.close(fd)
    assert fs.read_file("b") == data


def test_rename_of_a_folder_with_open_files_in_it(fs: FsOps, client: ClientSide) -> None:
    client.mkdir("a")
    client.write("a/old", b"old content")
    client.write("a/read", BIG)
    new = fs.open("a/new", os.O_RDWR | os.O_CREAT)
    fs.pwrite(new, b"new", 0)
    old = fs.open("a/old", os.O_RDWR)
    fs.pwrite(old, b"OLD", 0)
    read = fs.open("a/read")
    fs.rename("a", "b")
    assert fs.listdir("b") == ["new", "old", "read"]
    fs.pwrite(new, b"er", 3)
    assert fs.read_all(read) == BIG
    for fd in (new, old, read):
        fs.close(fd)
    assert client.names() == fs.listdir() == ["b"]
    assert client.has("b/new", b"newer")
    assert client.has("b/old", b"OLD content")
    assert client.names("b") == ["new", "old", "read"]


@pytest.mark.parametrize("data", [b"small", BIG, HUGE], ids=["small", "big", "huge"])
def test_an_open_file_that_is_renamed_over_stays_readable(fs: FsOps, client: ClientSide, data: bytes) -> None:
    client.write("target", data)
    fd = fs.open("target")
    fs.write_file("new", b"new")
    fs.rename("new", "target")
    assert fs.read_file("target") == b"new"
    assert fs.read_all(fd) == data
    fs.close(fd)
    assert client.has("target", b"new")
    assert fs.notices(lambda: client.names() == ["target"])


def test_what_a_writer_of_a_replaced_file_writes_is_not_kept(fs: FsOps, client: ClientSide) -> None:
    client.write("target", b"old")
    fd = fs.open("target", os.O_RDWR)
    fs.pwrite(fd, b"OLD", 0)
    fs.write_file("new", b"new")
    fs.rename("new", "target")
    fs.pwrite(fd, b"lost", 0)
    fs.close(fd)
    assert client.has("target", b"new")
    assert fs.read_file("target") == b"new"


def test_rename_over_a_file_that_was_never_sent(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("target", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"unsent", 0)
    fs.write_file("new", b"new")
    fs.rename("new", "target")
    assert fs.read_all(fd) == b"unsent"
    fs.close(fd)
    assert client.has("target", b"new")
    assert client.names() == fs.listdir() == ["target"]


def test_rename_of_a_file_that_was_never_sent(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("a", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"unsent", 0)
    fs.rename("a", "b")
    assert fs.listdir() == ["b"]
    fs.close(fd)
    assert client.has("b", b"unsent")
    assert client.names() == fs.listdir() == ["b"]


def test_save_by_rename_as_editors_do(fs: FsOps, client: ClientSide) -> None:
    client.write("doc", b"version 1")
    for number in range(2, 5):
        fd = fs.open(".doc.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        fs.pwrite(fd, b"version %d" % number, 0)
        fs.fsync(fd)
        fs.close(fd)
        fs.rename("doc", "doc~")
        fs.rename(".doc.tmp", "doc")
        assert fs.read_file("doc") == b"version %d" % number
        assert fs.read_file("doc~") == b"version %d" % (number - 1)
    assert client.names() == ["doc", "doc~"]


# --- large folders and the client's changes ------------------------------------


def test_five_thousand_files(fs: FsOps, client: ClientSide) -> None:
    for number in range(5000):
        client.write(f"file {number:04}", b"")
    found = fs.listdir()
    assert len(found) == 5000
    assert found[4999] == "file 4999"
    assert fs.exists("file 2500")
    assert not fs.exists("file 5000")
    fs.write_file("file 5000", b"x")
    fs.unlink("file 0000")
    assert len(fs.listdir()) == 5000
    assert client.has("file 5000", b"x")


def test_what_the_client_changes_is_noticed(fs: FsOps, client: ClientSide) -> None:
    client.write("replaced", b"old")
    client.write("same size", BIG)
    client.write("gone", b"x")
    client.mkdir("folder")
    assert fs.listdir() == ["folder", "gone", "replaced", "same size"]
    assert fs.read_file("replaced") == b"old"
    assert fs.read_file("same size") == BIG
    assert fs.listdir("folder") == []
    client.write("replaced", b"and this is newer")
    client.write("same size", bytes(len(BIG)))
    client.delete("gone")
    client.write("folder/new", b"new")
    assert fs.notices(lambda: fs.listdir() == ["folder", "replaced", "same size"])
    assert fs.notices(lambda: fs.read_file("replaced") == b"and this is newer")
    assert fs.notices(lambda: fs.read_file("same size") == bytes(len(BIG)))
    assert fs.notices(lambda: fs.listdir("folder") == ["new"])
    assert fs.notices(lambda: not fs.exists("gone"))
    assert fs.read_file("folder/new") == b"new"
