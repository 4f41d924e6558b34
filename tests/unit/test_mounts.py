"""mountinfo, and the commands that unmount."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from hvbridge import mounts
from hvbridge.errors import HvbridgeError
from hvbridge.mounts import Mount, canonical, mount_at, parse_mountinfo

TABLE = (
    r"""22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
36 22 0:40 / /mnt/with\040space rw,nodev shared:9 master:1 - fuse.hvbridge src rw,user_id=1000
37 22 0:41 / /mnt/back\134slash\012line rw - tmpfs none rw
this is no line
38 36 0:42 / /mnt/with\040space rw - fuse.sshfs host: rw,user_id=0
39 22 0:43 / /mnt/nel"""
    + "\x85 rw - tmpfs none rw\n"
)


def test_parse() -> None:
    found = parse_mountinfo(TABLE)
    assert [str(mount.mountpoint) for mount in found] == [
        "/",
        "/mnt/with space",
        "/mnt/back\\slash\nline",
        "/mnt/with space",
        "/mnt/nel\x85",
    ]
    assert found[1] == Mount(
        Path("/mnt/with space"),
        "fuse.hvbridge",
        "src",
        ("rw", "nodev", "rw", "user_id=1000"),
    )
    assert [mount.ours for mount in found] == [False, True, False, False, False]
    assert found[1].belongs_to(1000)
    assert not found[1].belongs_to(100)


def test_the_topmost_mount_counts(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    found = mount_at(Path("/mnt/with space"), table)
    assert found is not None
    assert found.fstype == "fuse.sshfs"
    assert mount_at(Path("/mnt"), table) is None
    assert mount_at(Path("/"), tmp_path / "absent") is None


def test_this_machine_has_a_proc() -> None:
    found = mount_at(Path("/proc"))
    assert found is not None
    assert found.fstype == "proc"
    assert not found.ours


def test_canonical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = tmp_path.resolve()
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real" / "mnt")
    wanted = tmp_path / "real" / "mnt"
    for text in (".", "", "../mnt", str(tmp_path / "link" / "mnt"), f"{wanted}/", f"{wanted}/../mnt"):
        assert canonical(Path(text)) == wanted
    assert canonical(tmp_path / "link") == tmp_path / "real"


def test_canonical_does_not_follow_into_a_mount(tmp_path: Path) -> None:
    """A name in the kernel's table is final: what is mounted there is not asked whether it is a link."""
    tmp_path = tmp_path.resolve()
    (tmp_path / "mnt").symlink_to("elsewhere")
    table = tmp_path / "mountinfo"
    table.write_text(f"36 22 0:40 / {tmp_path}/mnt rw - fuse.hvbridge hvbridge rw\n")
    assert canonical(tmp_path / "mnt", table) == tmp_path / "mnt"


class Runs:
    """Stands in for the system's tools: each call fails until ``succeed_at``."""

    def __init__(self, succeed_at: int) -> None:
        self.calls: list[list[str]] = []
        self.succeed_at = succeed_at

    def __call__(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        self.calls.append(argv)
        status = 0 if len(self.calls) == self.succeed_at else 1
        return subprocess.CompletedProcess(argv, status, "", f"{argv[0]}: no\nreally")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


@pytest.mark.usefixtures("tools")
def test_unmount_takes_the_first_tool_that_works() -> None:
    run = Runs(succeed_at=3)
    mounts.unmount(Path("/mnt"), run=run)
    assert run.calls == [
        ["fusermount3", "-u", "--", "/mnt"],
        ["fusermount", "-u", "--", "/mnt"],
        ["umount", "--", "/mnt"],
    ]


@pytest.mark.usefixtures("tools")
def test_lazy_unmount() -> None:
    run = Runs(succeed_at=1)
    mounts.unmount(Path("/mnt"), lazy=True, run=run)
    assert run.calls == [["fusermount3", "-u", "-z", "--", "/mnt"]]


@pytest.mark.usefixtures("tools")
def test_unmount_says_what_the_first_tool_said() -> None:
    with pytest.raises(HvbridgeError, match="cannot unmount /mnt: fusermount3: no really"):
        mounts.unmount(Path("/mnt"), run=Runs(succeed_at=99))


def test_unmount_without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(HvbridgeError, match="neither fusermount3 nor umount"):
        mounts.unmount(Path("/mnt"), run=Runs(succeed_at=1))


def test_a_filesystem_that_answers_is_not_dead(tmp_path: Path) -> None:
    assert not mounts.is_dead(tmp_path)
    assert mounts.is_dead(tmp_path / "absent")


def test_one_that_does_not_answer_is_not_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "ANSWER_SECONDS", 0.05)
    released = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda path: released.wait(10))
    assert not mounts.is_dead(Path("/mnt"))
    released.set()
