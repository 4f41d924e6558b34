"""Modes, times, space, and what a share cannot have; on real mounts also what only the kernel asks."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import stat
import time
from pathlib import Path

import pytest

from tests.contract.conftest import Rig
from tests.contract.expecting import fails
from tests.support.fsops import ClientSide, FsOps, MountOps

BIG = random.Random(4).randbytes(700 * 1024)
THE_NINETIES = 800_000_000_123_456_789


def test_modes_of_new_files_and_folders(fs: FsOps) -> None:
    fs.write_file("f", b"x")
    fs.mkdir("d")
    assert fs.stat("f").mode == stat.S_IFREG | 0o644
    assert fs.stat("d").mode == stat.S_IFDIR | 0o755


@pytest.mark.parametrize("mode", [0o755, 0o644, 0o600, 0o400, 0o777])
def test_chmod_is_accepted_and_shown(fs: FsOps, client: ClientSide, mode: int) -> None:
    fs.write_file("f", b"x")
    fs.chmod("f", mode)
    assert stat.S_IMODE(fs.stat("f").mode) == mode
    assert client.has("f", b"x")
    fs.chmod("f", 0o644)
    assert stat.S_IMODE(fs.stat("f").mode) == 0o644


def test_the_exec_bit_reaches_a_client_that_keeps_it(rig: Rig) -> None:
    rig.fs.write_file("script", b"#!/bin/sh\n")
    rig.fs.chmod("script", 0o755)
    keeps_it = rig.kind != "spice"  # phodav does not
    assert rig.client.executable("script") is keeps_it
    assert stat.S_IMODE(rig.fs.stat("script").mode) == 0o755


def test_the_exec_bit_of_the_client_is_shown(fs: FsOps, client: ClientSide) -> None:
    client.write("script", b"#!/bin/sh\n")
    client.set_executable("script", True)
    client.write("text", b"x")
    client.set_executable("text", False)
    assert fs.stat("script").mode & 0o111 == 0o111
    assert fs.stat("text").mode & 0o111 == 0


@pytest.mark.parametrize("size", [10, 5000, len(BIG)])
def test_an_executable_file_stays_one_when_it_is_written(fs: FsOps, client: ClientSide, size: int) -> None:
    client.write("script", b"old")
    client.set_executable("script", True)
    fs.write_file("script", BIG[:size])
    assert client.has("script", BIG[:size])
    assert client.executable("script")
    assert fs.stat("script").mode & 0o100


def test_a_file_that_is_created_executable(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("tool", os.O_WRONLY | os.O_CREAT, 0o755)
    fs.pwrite(fd, b"#!", 0)
    fs.close(fd)
    assert stat.S_IMODE(fs.stat("tool").mode) == 0o755
    assert client.has("tool", b"#!")


def test_utime_is_accepted_and_shown(fs: FsOps, client: ClientSide) -> None:
    fs.write_file("f", b"x")
    fs.utime("f", THE_NINETIES)
    assert fs.stat("f").mtime_ns == THE_NINETIES
    fs.mkdir("d")
    fs.utime("d", THE_NINETIES)
    assert fs.stat("d").mtime_ns == THE_NINETIES
    with fails(errno.ENOENT):
        fs.utime("none", THE_NINETIES)


def test_utime_before_close_as_cp_does(fs: FsOps, client: ClientSide) -> None:
    fd = fs.open("f", os.O_WRONLY | os.O_CREAT)
    fs.pwrite(fd, b"content", 0)
    fs.utime("f", THE_NINETIES)
    fs.chmod("f", 0o600)
    fs.close(fd)
    assert fs.stat("f").mtime_ns == THE_NINETIES
    assert stat.S_IMODE(fs.stat("f").mode) == 0o600
    assert client.has("f", b"content")


def test_attributes_move_with_the_file(fs: FsOps) -> None:
    fs.mkdir("d")
    fs.write_file("d/f", b"x")
    fs.utime("d/f", THE_NINETIES)
    fs.chmod("d/f", 0o600)
    fs.rename("d", "e")
    fs.rename("e/f", "g")
    assert fs.stat("g").mtime_ns == THE_NINETIES
    assert stat.S_IMODE(fs.stat("g").mode) == 0o600
    fs.unlink("g")
    fs.write_file("g", b"another")
    assert fs.stat("g").mtime_ns != THE_NINETIES
    assert stat.S_IMODE(fs.stat("g").mode) == 0o644


def test_mtime_tells_of_writes(fs: FsOps, client: ClientSide) -> None:
    client.write("f", b"x")
    fs.utime("f", THE_NINETIES)
    before = time.time_ns()
    fs.write_file("f", b"new")
    assert abs(fs.stat("f").mtime_ns - before) < 10 * 10**9
    fs.utime("f", THE_NINETIES)
    fs.truncate("f", 1)
    assert abs(fs.stat("f").mtime_ns - before) < 10 * 10**9


def test_the_time_after_a_save_stays(fs: FsOps) -> None:
    fs.write_file("f", b"saved")
    seen = fs.stat("f").mtime_ns
    assert fs.notices(lambda: fs.stat("f").mtime_ns == seen), "an editor would ask whether to reload"


def test_statfs(fs: FsOps) -> None:
    total, free = fs.statfs()
    assert 0 < free <= total


def test_sizes_and_kinds_of_what_the_client_has(fs: FsOps, client: ClientSide) -> None:
    client.mkdir("d")
    client.write("empty", b"")
    client.write("f", bytes(1234))
    assert (fs.stat("d").is_dir, fs.stat("f").is_dir) == (True, False)
    assert (fs.stat("empty").size, fs.stat("f").size) == (0, 1234)


# --- on a real mount ---------------------------------------------------------


def real(rig: Rig, path: str) -> Path:
    assert isinstance(rig.fs, MountOps)
    return Path(rig.fs.real(path))


def test_what_a_share_cannot_have(mounted: Rig) -> None:
    mounted.client.write("f", b"x")
    link, file = real(mounted, "link"), real(mounted, "f")
    with fails(errno.EPERM):
        link.symlink_to("f")
    with fails(errno.EPERM):
        link.hardlink_to(file)
    with fails(errno.EPERM):
        os.mkfifo(link)
    with fails(errno.EINVAL):
        file.readlink()
    with fails(errno.ENOTSUP):
        os.setxattr(file, "user.x", b"1")
    assert os.listxattr(file) == []
    os.chown(file, os.getuid(), os.getgid())
    assert mounted.client.names() == ["f"]


def test_mknod_makes_a_regular_file(mounted: Rig) -> None:
    os.mknod(real(mounted, "f"), stat.S_IFREG | 0o600)
    assert mounted.client.has("f", b"")


def test_mmap_reads(mounted: Rig) -> None:
    mounted.client.write("f", BIG)
    with real(mounted, "f").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == BIG
        assert mapped[500_000:500_100] == BIG[500_000:500_100]


def test_mmap_writes(mounted: Rig) -> None:
    mounted.client.write("f", BIG)
    with real(mounted, "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5:10] = b"#####"
        mapped[600_000:600_005] = b"*****"
        mapped.flush()
        os.fsync(file.fileno())
    expected = bytearray(BIG)
    expected[5:10], expected[600_000:600_005] = b"#####", b"*****"
    assert mounted.client.has("f", expected)
    assert real(mounted, "f").read_bytes() == expected


def test_mmap_written_after_close(mounted: Rig) -> None:
    mounted.client.write("f", bytes(10_000))
    file = real(mounted, "f").open("r+b")
    mapped = mmap.mmap(file.fileno(), 0)
    file.close()
    mapped[100:103] = b"lat"
    mapped.close()
    expected = bytes(100) + b"lat" + bytes(9897)
    assert mounted.fs.notices(lambda: mounted.client.has("f", expected))


def test_a_tree_is_copied_and_removed(mounted: Rig, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("a/b", "R&D", "empty"):
        (source / folder).mkdir(parents=True)
    for number, name in enumerate(("a/one", "a/b/two", "R&D/100%.txt", "top")):
        (source / name).write_bytes(BIG[: number * 50_000])
    shutil.copytree(source, real(mounted, "copy"))
    shutil.copytree(real(mounted, "copy"), tmp_path / "back")
    for path in source.rglob("*"):
        back = tmp_path / "back" / path.relative_to(source)
        assert back.is_dir() if path.is_dir() else back.read_bytes() == path.read_bytes()
        if path.is_file():
            assert mounted.client.has(f"copy/{path.relative_to(source)}", path.read_bytes())
    shutil.rmtree(real(mounted, "copy"))
    assert mounted.client.names() == []


def test_a_shell_redirection_and_append(mounted: Rig) -> None:
    target = real(mounted, "out")
    assert os.system(f"echo one > '{target}' && echo two >> '{target}'") == 0
    assert mounted.client.has("out", b"one\ntwo\n")
