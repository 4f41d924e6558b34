"""Mounts as operators have them: the real commands, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvbridge import mounts

pytestmark = pytest.mark.peers("fuse")

HVBRIDGE = [sys.executable, "-m", "hvbridge"]

SECONDS = 30.0


class Desk:
    """A folder, its sharing side in a process, and commands that know where everything is."""

    def __init__(self, folder: Path) -> None:
        self.shared, self.mountpoint = folder / "shared", folder / "mnt"
        self.shared.mkdir()
        self.mountpoint.mkdir()
        (self.shared / "a.txt").write_text("from the client")
        self.socket = folder / "channel.sock"
        self.environment = os.environ | {
            "HVBRIDGE_RUNTIME_DIR": str(folder / "run"),
            "HVBRIDGE_STATE_DIR": str(folder / "state"),
        }
        self.sharing: subprocess.Popen[bytes] | None = None
        self.children: list[subprocess.Popen[bytes]] = []

    def hvbridge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*HVBRIDGE, *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS * 2,
            env=self.environment,
            check=False,
        )

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that stays."""
        child = subprocess.Popen([*HVBRIDGE, *arguments], env=self.environment, stderr=subprocess.PIPE)
        self.children.append(child)
        return child

    def share(self) -> None:
        """Let a client be there."""
        self.sharing = self.spawn("share", str(self.shared), f"unix-listen://{self.socket}")
        wait_for(self.socket.exists)

    def mount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Mount in the background."""
        return self.hvbridge("mount", f"unix://{self.socket}", str(self.mountpoint), *arguments)

    def umount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Unmount."""
        return self.hvbridge("umount", str(self.mountpoint), *arguments)

    def status(self) -> dict[str, Any]:
        """What ``hvbridge status --json`` says of the mount."""
        done = self.hvbridge("status", str(self.mountpoint), "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout)["mounts"][0])

    @property
    def mounted(self) -> bool:
        """Whether the kernel has the mount."""
        return mounts.mount_at(self.mountpoint) is not None

    def crash(self) -> None:
        """End the bridge as if it had crashed."""
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in status_of(pid))

    def clean(self) -> None:
        """Leave nothing behind."""
        if self.mounted:
            self.umount("--force")
        if self.mounted:
            mounts.unmount(self.mountpoint, lazy=True)
        for child in self.children:
            end(child)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(10)
    if child.stderr is not None:
        child.stderr.close()


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path.resolve())
    yield desk
    desk.clean()


def test_mount_use_umount(desk: Desk) -> None:
    desk.share()
    done = desk.mount()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mount = mounts.mount_at(desk.mountpoint)
    assert mount is not None
    assert mount.ours
    assert {"nosuid", "nodev", "noexec"} <= set(mount.options)
    wait_for(lambda: desk.status()["state"] == "open")
    assert (desk.mountpoint / "a.txt").read_text() == "from the client"
    (desk.mountpoint / "b.txt").write_text("from the host")
    done = desk.umount()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not desk.mounted
    assert (desk.shared / "b.txt").read_text() == "from the host"
    assert (
        desk.hvbridge("status", "--json").stdout
        == json.dumps({"mounts": [], "dead": [], "left_over": []}, indent=2) + "\n"
    )


def test_a_large_file_is_uploaded_before_umount_returns(desk: Desk) -> None:
    desk.share()
    desk.mount()
    content = os.urandom(1 << 20) * 64
    (desk.mountpoint / "large").write_bytes(content)
    assert desk.umount().returncode == 0
    assert (desk.shared / "large").read_bytes() == content


def test_the_mount_is_there_before_a_client_is(desk: Desk) -> None:
    assert desk.mount("-o", "grace=0.2").returncode == 0
    state = desk.status()
    assert state["state"] == "waiting"
    assert state["client"] is None
    desk.share()
    wait_for(lambda: desk.status()["state"] == "open")
    assert (desk.mountpoint / "a.txt").read_text() == "from the client"
    assert desk.umount().returncode == 0


def test_options_reach_the_mount(desk: Desk) -> None:
    desk.share()
    assert desk.mount("-o", "ro,exec,uid=1234,gid=1235,umask=077").returncode == 0
    wait_for(lambda: desk.status()["state"] == "open")
    found = (desk.mountpoint / "a.txt").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1235, 0o600)
    mount = mounts.mount_at(desk.mountpoint)
    assert mount is not None
    assert "ro" in mount.options
    assert "noexec" not in mount.options
    with pytest.raises(OSError, match="Read-only file system"):
        (desk.mountpoint / "b.txt").write_text("x")
    assert desk.status()["read_only"]


def test_a_second_mount_on_the_same_place_is_refused(desk: Desk) -> None:
    assert desk.mount().returncode == 0
    done = desk.mount()
    assert done.returncode == 2
    assert done.stderr == "hvbridge: another hvbridge serves this mountpoint: see 'hvbridge status'\n"
    assert desk.status()["state"] == "waiting"


@pytest.mark.parametrize("url", ["unix://relative", "gopher://x", "tcp://127.0.0.1"])
def test_errors_in_the_background_are_the_callers(desk: Desk, url: str) -> None:
    done = desk.hvbridge("mount", url, str(desk.mountpoint))
    assert done.returncode == 2
    assert done.stderr.startswith("hvbridge: ")
    assert len(done.stderr.splitlines()) == 1
    assert not desk.mounted


def test_a_log_file(desk: Desk, tmp_path: Path) -> None:
    assert desk.mount("-v", "--log-file", str(tmp_path / "log")).returncode == 0
    desk.share()
    wait_for(lambda: desk.status()["state"] == "open")
    assert desk.umount().returncode == 0
    assert "port open" in (tmp_path / "log").read_text()


# --- ends -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_uploads_first(desk: Desk, number: signal.Signals) -> None:
    desk.share()
    child = desk.spawn("mount", f"unix://{desk.socket}", str(desk.mountpoint), "--foreground")
    wait_for(lambda: desk.mounted and desk.status()["state"] == "open")
    content = os.urandom(1 << 20) * 16
    (desk.mountpoint / "b.bin").write_bytes(content)
    child.send_signal(number)
    assert child.wait(SECONDS) == 0
    assert not desk.mounted
    assert (desk.shared / "b.bin").read_bytes() == content


def test_content_that_the_client_did_not_get_is_kept_and_named(desk: Desk) -> None:
    desk.share()
    assert desk.mount("-o", "grace=0.2").returncode == 0
    wait_for(lambda: desk.status()["state"] == "open")
    file = os.open(desk.mountpoint / "lost.txt", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"nobody has this")
    assert desk.sharing is not None
    end(desk.sharing)
    wait_for(lambda: desk.status()["state"] == "waiting")
    with pytest.raises(OSError, match=r"Host is down|Input/output error"):
        os.fsync(file)
    with pytest.raises(OSError, match=r"Host is down|Input/output error"):
        os.close(file)
    (failed,) = desk.status()["failed"]
    assert (failed["path"], failed["size"]) == ("/lost.txt", 15)
    assert "/lost.txt" in desk.hvbridge("status").stdout
    done = desk.umount("--timeout", "0.5")
    assert done.returncode == 1
    assert "not everything was uploaded" in done.stderr
    assert not desk.mounted
    (left,) = json.loads(desk.hvbridge("status", "--json").stdout)["left_over"]
    assert left["path"] == "/lost.txt"
    assert Path(left["spool"]).read_bytes() == b"nobody has this"


def test_a_second_signal_does_not_wait(desk: Desk) -> None:
    desk.share()
    url = f"unix://{desk.socket}"
    child = desk.spawn("mount", url, str(desk.mountpoint), "--foreground", "-o", "grace=30")
    wait_for(lambda: desk.mounted and desk.status()["state"] == "open")
    code = "import sys; f = open(sys.argv[1], 'wb', 0); f.write(b'data'); sys.stdin.read(); f.close()"
    argv = [sys.executable, "-c", code, str(desk.mountpoint / "lost.txt")]
    writer = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_for(lambda: [item["size"] for item in desk.status()["pending"]] == [4])
    assert desk.sharing is not None
    end(desk.sharing)
    wait_for(lambda: desk.status()["state"] == "waiting")
    assert writer.stdin is not None
    writer.stdin.close()  # it closes the file, whose upload now waits for a client
    wait_for(lambda: [item["state"] for item in desk.status()["pending"]] == ["uploading"])
    child.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    started = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait(SECONDS) == 1
    assert time.monotonic() - started < 10
    assert not desk.mounted
    writer.wait(SECONDS)


def test_umount_cleans_up_after_a_crash(desk: Desk) -> None:
    assert desk.mount().returncode == 0
    desk.crash()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        names(desk.mountpoint)
    status = desk.hvbridge("status")
    assert f"{desk.mountpoint}  dead: its bridge is gone" in status.stdout
    done = desk.umount()
    assert (done.returncode, done.stderr) == (0, "")
    assert names(desk.mountpoint) == []


def test_mount_cleans_up_after_a_crash(desk: Desk) -> None:
    desk.share()
    assert desk.mount().returncode == 0
    desk.crash()
    done = desk.mount()
    assert done.returncode == 0
    assert "crashed bridge" in done.stderr
    wait_for(lambda: desk.status()["state"] == "open")
    assert names(desk.mountpoint) == ["a.txt"]
    assert len([mount for mount in mounts.mounts() if mount.mountpoint == desk.mountpoint]) == 1


def test_force_unmounts_a_busy_mount(desk: Desk) -> None:
    desk.share()
    assert desk.mount().returncode == 0
    wait_for(lambda: desk.status()["state"] == "open")
    with (desk.mountpoint / "a.txt").open():
        assert desk.umount("--force").returncode == 0
        assert not desk.mounted


def test_fusermount_from_outside_is_an_end_like_any_other(desk: Desk) -> None:
    desk.share()
    child = desk.spawn("mount", f"unix://{desk.socket}", str(desk.mountpoint), "--foreground")
    wait_for(lambda: desk.mounted and desk.status()["state"] == "open")
    (desk.mountpoint / "b.txt").write_text("from the host")
    mounts.unmount(desk.mountpoint)
    assert child.wait(SECONDS) == 0
    assert (desk.shared / "b.txt").read_text() == "from the host"


# --- the other side -------------------------------------------------------


def test_share_ends_on_a_signal(desk: Desk) -> None:
    desk.share()
    assert desk.sharing is not None
    desk.sharing.send_signal(signal.SIGTERM)
    assert desk.sharing.wait(SECONDS) == 0


def test_a_read_only_share(desk: Desk) -> None:
    desk.sharing = desk.spawn("share", "--read-only", str(desk.shared), f"unix-listen://{desk.socket}")
    wait_for(desk.socket.exists)
    assert desk.mount().returncode == 0
    wait_for(lambda: desk.status()["state"] == "open")
    with pytest.raises(OSError, match=r"Permission denied|Read-only"):
        (desk.mountpoint / "sub").mkdir()
    assert desk.umount("--force").returncode in (0, 1)
    assert names(desk.shared) == ["a.txt"]


def test_two_commands_over_standard_input_and_output(desk: Desk) -> None:
    """As ``ssh client hvbridge share ~/Public stdio:`` has it."""
    left, right = os.pipe(), os.pipe()
    sharing = subprocess.Popen(
        [*HVBRIDGE, "share", str(desk.shared), "stdio:"], stdin=left[0], stdout=right[1], env=desk.environment
    )
    desk.children.append(sharing)
    mount = subprocess.Popen(
        [*HVBRIDGE, "mount", "stdio:", str(desk.mountpoint)],
        stdin=right[0],
        stdout=left[1],
        env=desk.environment,
    )
    desk.children.append(mount)
    for descriptor in (*left, *right):
        os.close(descriptor)
    wait_for(lambda: desk.mounted and desk.status()["state"] == "open")
    assert (desk.mountpoint / "a.txt").read_text() == "from the client"
    assert desk.umount().returncode == 0
    assert mount.wait(SECONDS) == 0
    assert sharing.wait(SECONDS) == 0
