"""The life of a mount: before, with, without and after a client; signals, crashes, deadlines."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvbridge import control, mounts
from tests.support.mounted import LISTEN, Mounted, mounted, names_in, outcome, until

pytestmark = pytest.mark.peers("spice-gtk", "fuse")

GONE = (errno.EHOSTDOWN, errno.EIO, errno.ETIMEDOUT)
"""What operations may fail with while a client is away or does not answer."""

GRACE = 2.0
SLACK = 3.0
"""Seconds beyond a limit that a loaded machine may take."""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path, "-o", f"grace={GRACE:g},timeout=3,actimeo=0.5", client=False) as mount:
        yield mount


def timed(operation: object) -> tuple[int, float]:
    """(errno, seconds) of an operation."""
    assert callable(operation)
    began = time.monotonic()
    return outcome(operation), time.monotonic() - began


def test_it_exists_before_a_client_and_fills_when_one_comes(mount: Mounted) -> None:
    assert names_in(mount.path) == []
    assert os.statvfs(mount.path).f_namemax == 255
    assert outcome(lambda: (mount.path / "x").read_bytes()) == errno.ENOENT
    assert outcome((mount.path / "x").touch) == errno.EHOSTDOWN
    assert outcome((mount.path / "d").mkdir) == errno.EHOSTDOWN
    (mount.shared / "a").write_text("a")
    mount.client()
    assert names_in(mount.path) == ["a"]
    assert (mount.path / "a").read_text() == "a"
    assert os.statvfs(mount.path).f_bavail > 0


def test_it_waits_for_a_client_that_left_then_fails_then_comes_back(mount: Mounted) -> None:
    (mount.shared / "a").write_text("a")
    client = mount.client()
    assert names_in(mount.path) == ["a"]
    client.kill()
    mount.wait_state("waiting")
    time.sleep(0.6)  # the listing is believed for so long
    failed, seconds = timed(lambda: names_in(mount.path))
    assert failed == errno.EHOSTDOWN
    assert GRACE - 0.5 < seconds < GRACE + SLACK
    mount.client()
    assert (mount.path / "a").read_text() == "a"


def test_a_client_that_returns_within_the_grace_time_is_not_noticed(tmp_path: Path) -> None:
    with mounted(tmp_path, "-o", "grace=20") as mount:
        (mount.shared / "a").write_bytes(bytes(300_000))
        mount._clients.close()
        mount.wait_state("waiting")
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append((mount.path / "a").read_bytes()))
        reader.start()
        mount.client()
        reader.join(20)
        assert found == [bytes(300_000)]


def test_another_share_is_another_mount(mount: Mounted, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (mount.shared / name).write_text("first")
    client = mount.client()
    assert (mount.path / "one").read_text() == "first"
    writing = os.open(mount.path / "pending", os.O_CREAT | os.O_WRONLY)
    os.write(writing, b"of the first share")
    client.leave()
    mount.wait_state("waiting")
    other = tmp_path / "other"
    other.mkdir()
    stat = (mount.shared / "one").stat()
    (other / "one").write_text("other")
    os.utime(other / "one", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    mount.client(other)
    assert names_in(mount.path)[:1] == ["one"]
    assert outcome(lambda: os.fsync(writing)) == errno.EIO
    assert outcome(lambda: os.close(writing)) == errno.EIO
    assert (mount.path / "one").read_text() == "other"
    assert outcome((mount.path / "two").stat) == errno.ENOENT
    assert names_in(other) == ["one"]
    spool = mount.unsent()["/pending"]
    assert spool.read_bytes() == b"of the first share"


def test_a_frozen_client_hangs_nobody_for_longer_than_the_limit(mount: Mounted) -> None:
    (mount.shared / "big").write_bytes(os.urandom(1 << 20))
    client = mount.client()
    assert names_in(mount.path) == ["big"]
    os.kill(client.pid, signal.SIGSTOP)
    try:
        operations = [
            lambda: (mount.path / "big").read_bytes(),
            (mount.path / "folder").mkdir,
            lambda: (mount.path / "new").write_bytes(b"x" * 100_000),
            lambda: os.statvfs(mount.path),
        ]
        for operation in operations:
            failed, seconds = timed(operation)
            assert failed in (0, *GONE)
            assert seconds < 2 * 3 + GRACE + SLACK
    finally:
        os.kill(client.pid, signal.SIGCONT)
    until(lambda: outcome(lambda: (mount.path / "big").read_bytes()) == 0, "the client again", 30)
    assert (mount.path / "big").read_bytes() == (mount.shared / "big").read_bytes()


def dirty(mount: Mounted, size: int = 3_000_000) -> tuple[int, bytes]:
    """A file that is open and not yet uploaded."""
    content = os.urandom(size)
    fd = os.open(mount.path / "dirty", os.O_CREAT | os.O_WRONLY)
    os.write(fd, content)
    return fd, content


@pytest.mark.parametrize("how", ["SIGTERM", "hvbridge umount"])
def test_ending_finishes_uploads_first(mount: Mounted, how: str) -> None:
    mount.client()
    fd, content = dirty(mount)
    try:
        if how == "SIGTERM":
            mount.process.terminate()
        else:
            assert mount.hvbridge("umount", str(mount.path)).returncode == 0
        assert mount.wait() == 0
    finally:
        outcome(lambda: os.close(fd))
    mount.client_has("dirty", content)
    assert mounts.mount_at(mount.path) is None


def test_a_plain_umount_loses_nothing(mount: Mounted) -> None:
    mount.client()
    (mount.path / "a").write_text("a")
    (mount.path / "empty").touch()
    subprocess.run(["umount", str(mount.path)], check=True, timeout=20)
    assert mount.wait() == 0
    mount.client_has("a", "a")
    mount.client_has("empty", "")


def test_what_cannot_be_uploaded_in_time_is_named(mount: Mounted) -> None:
    client = mount.client()
    fd, content = dirty(mount)
    os.kill(client.pid, signal.SIGSTOP)
    try:
        # Not by a command: closing the inherited file in a new process would wait for the client.
        assert not control.ask_stop(mount.control_socket, deadline=1.0)
        assert mount.wait() == 1
        assert mount.unsent()["/dirty"].read_bytes() == content
    finally:
        outcome(lambda: os.close(fd))
        os.kill(client.pid, signal.SIGCONT)


def test_a_crash_is_cleaned_up_by_the_next_start(mount: Mounted) -> None:
    mount.client()
    fd, content = dirty(mount)
    mount.kill()
    assert outcome(lambda: names_in(mount.path)) == errno.ENOTCONN
    assert mount.unsent()["/dirty"].read_bytes() == content
    outcome(lambda: os.close(fd))
    mount.start()
    assert names_in(mount.path) == []
    mount.client()
    (mount.path / "after").write_text("x")
    mount.client_has("after", "x")


def test_a_read_only_share_refuses_at_the_call_that_can_tell(mount: Mounted) -> None:
    (mount.shared / "a").write_text("a")
    mount.client(read_only=True)
    assert (mount.path / "a").read_text() == "a"
    assert outcome((mount.path / "d").mkdir) == errno.EACCES
    assert outcome((mount.path / "a").unlink) == errno.EACCES
    assert outcome(lambda: (mount.path / "new").write_text("x")) == errno.EACCES
    assert outcome(lambda: (mount.path / "a").rename(mount.path / "b")) == errno.EACCES
    assert names_in(mount.shared) == ["a"]


def test_a_read_only_mount_and_its_flags(tmp_path: Path) -> None:
    with mounted(tmp_path, "--read-only") as mount:
        assert outcome((mount.path / "x").touch) == errno.EROFS
        found = mounts.mount_at(mount.path)
        assert found is not None and found.ours
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(found.options)


def test_exec_is_allowed_when_asked(tmp_path: Path) -> None:
    with mounted(tmp_path, "-o", "exec") as mount:
        found = mounts.mount_at(mount.path)
        assert found is not None and "noexec" not in found.options
        (mount.shared / "run").write_text("#!/bin/sh\necho ran\n")
        (mount.shared / "run").chmod(0o755)
        assert subprocess.run([mount.path / "run"], capture_output=True, text=True).stdout == "ran\n"


def test_passwords(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("right\n")
    secret.chmod(0o600)
    channel = f"{LISTEN}?password-file={secret}"
    with mounted(tmp_path / "m", client=False, channel=channel) as mount:
        (mount.shared / "a").write_text("a")
        port = int(mount.status()["channel"].partition("?")[0].rpartition(":")[2])
        with pytest.raises(AssertionError):
            wrong = mount.client(port=port, password="wrong")
            wrong.wait_port_open(5)
        assert names_in(mount.path) == []
        mount.client(port=port, password="right")
        assert names_in(mount.path) == ["a"]


WORKER = """
import hashlib, os, sys
folder, number = sys.argv[1], sys.argv[2]
path = os.path.join(folder, f"w{number}")
wrong = done = failed = 0
last = None
while os.getppid() == int(sys.argv[3]) and not os.path.exists(sys.argv[4]):
    content = os.urandom(20000 + 997 * done % 50000)
    try:
        with open(path, "wb") as f:
            f.write(content)
        with open(path, "rb") as f:
            if f.read() != content:
                wrong += 1
        done += 1
    except OSError as exc:
        if exc.errno not in (5, 110, 112, 2):
            raise
        failed += 1
print(wrong, done, failed)
"""


def test_clients_that_come_and_go_under_load_cause_no_wrong_bytes(tmp_path: Path) -> None:
    with mounted(tmp_path, "-o", "grace=10", client=False) as mount:
        (mount.shared / "fixed").write_bytes(os.urandom(2_000_000))
        expected = hashlib.sha256((mount.shared / "fixed").read_bytes()).digest()
        client = mount.client()
        over = tmp_path / "over"
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(mount.path), str(n), str(os.getpid()), str(over)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(4)
        ]
        try:
            for _ in range(5):
                got = hashlib.sha256((mount.path / "fixed").read_bytes()).digest()
                assert got == expected
                client.kill()
                mount.wait_state("waiting")
                client = mount.client()
            until(lambda: outcome(lambda: names_in(mount.path)) == 0, "the share again")
        finally:
            over.touch()
            told = [worker.communicate(timeout=60)[0].split() for worker in workers]
        assert all(wrong == "0" and int(done) > 0 for wrong, done, _ in told), told
        print(f"\n  five reconnects under load: {told}")
        for n in range(4):
            path = f"w{n}"
            until(
                lambda path=path: (mount.path / path).read_bytes() == (mount.shared / path).read_bytes(),  # type: ignore[misc]
                f"{path} alike on both sides",
            )
        until(lambda: mount.part_files() == [], f"no leftovers: {mount.part_files()}")
