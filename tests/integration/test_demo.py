"""The demo itself, and that it notices what is wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvbridge import demo, mounts
from hvbridge.demo import Demo, DemoFailed, differences
from hvbridge.doctor import Check, State

pytestmark = pytest.mark.peers("fuse", "qemu-img", "mtools")

DEMO = [sys.executable, "-m", "hvbridge", "demo"]


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, with its temporary folder below ``tmp_path``."""
    return subprocess.run(
        [*DEMO, *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)} | variables,
    )


def mounted_below(folder: Path) -> list[Path]:
    return [mount.mountpoint for mount in mounts.mounts() if mount.mountpoint.is_relative_to(folder)]


def test_demo(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for shown in (
        "$ hvbridge share ",
        "$ hvbridge mount unix://",
        "$ ls -lR ",
        "Holiday photos",
        "This file is on the client's disk.",
        "Hello from the host.",
        "$ qemu-img convert -O raw fat:16:",
        "FROM-H~1 TXT        21",
        "$ hvbridge umount ",
        "Every byte arrived.",
    ):
        assert shown in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert mounted_below(tmp_path) == []


def test_keep_leaves_the_image(tmp_path: Path) -> None:
    done = run(tmp_path, "--keep")
    assert done.returncode == 0
    (folder,) = tmp_path.iterdir()
    assert f"Everything is still in {folder}." in done.stdout
    assert (folder / "disk.img").stat().st_size > 500_000_000
    assert (folder / "client" / "Public" / "from-host.txt").read_text() == demo.FROM_HOST
    assert mounted_below(tmp_path) == []


def test_a_folder_that_needs_qemus_long_form(tmp_path: Path) -> None:
    folder = tmp_path / "a:b, c#"
    folder.mkdir()
    done = run(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "json:" in done.stdout


@pytest.mark.parametrize(
    ("tool", "script"),
    [
        # qemu-img that "works" and makes no disk, and mtools that read other content.
        ("qemu-img", "exit 0"),
        ("mtype", "echo something else"),
        ("mcopy", "exit 0"),
    ],
)
def test_a_tool_that_does_not_do_its_work_fails_the_demo(tmp_path: Path, tool: str, script: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
    (tools / tool).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    done = run(work, PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert done.stderr.startswith("hvbridge: ")
    assert "Every byte arrived." not in done.stdout
    assert list(work.iterdir()) == []
    assert mounted_below(tmp_path) == []


def test_a_bridge_that_does_not_start_is_told_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complain = "import sys; print('no, thanks', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(demo, "HVBRIDGE", [sys.executable, "-c", complain])
    with contextlib.ExitStack() as stack:
        told: list[str] = []
        with pytest.raises(DemoFailed, match=r"hvbridge share ended with status 3 .*no, thanks"):
            Demo(tmp_path, told.append, stack).run()
    assert any(line.startswith("$ hvbridge share ") for line in told)


def test_what_is_missing_is_named_with_its_mend() -> None:
    checks = [
        Check("qemu-img", "demo", State.MISSING, "no qemu-img", "apt-get install qemu-utils"),
        Check("mtools", "demo", State.OK, "/usr/bin/mdir"),
        Check("allow_other", "mount", State.WARN, "only root", "echo"),
    ]
    with pytest.raises(DemoFailed) as caught:
        demo.require(checks)
    assert str(caught.value) == "the demo lacks qemu-img (apt-get install qemu-utils). See 'hvbridge doctor'"
    demo.require(checks[1:])


def test_differences(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    for side in (left, right):
        (side / "folder").mkdir(parents=True)
        (side / "folder" / "same").write_bytes(b"same")
        (side / "changed").write_bytes(side.name[:4].encode())
    (left / "only").touch()
    (right / "kind").mkdir()
    (left / "kind").touch()
    assert differences(left, right) == ["changed", "kind", "only"]
    assert differences(left, left) == []
