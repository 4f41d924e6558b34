"""Clients that leave in the middle of something: uploads, large reads, the end of a mount."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, mounted, names_in, until
from tests.support.relay import Relay
from tests.support.spice_gtk import SpiceClient

pytestmark = pytest.mark.peers("spice-gtk", "fuse")

MIB = 1 << 20
SLOW = MIB
"""Bytes per second of a slow line."""

ALLOWED = {0, errno.EIO, errno.EHOSTDOWN, errno.ETIMEDOUT}


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Mounted, Relay]]:
    """A mount whose client is behind a relay."""
    with mounted(tmp_path, client=False) as mount, Relay(mount.port) as relay:
        mount.client(port=relay.port)
        assert names_in(mount.path) == []
        yield mount, relay


def open_and_dirty(mount: Mounted, name: str, content: bytes) -> subprocess.Popen[bytes]:
    """A process that has written ``content`` and goes on holding the file open."""
    script = (
        "import sys, time; file = open(sys.argv[1], 'wb', 0); file.write(sys.stdin.buffer.read());"
        "print('written', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(mount.path / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(content)
    holder.stdin.close()
    assert holder.stdout.readline() == b"written\n"
    return holder


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(20)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("how", ["umount", "SIGTERM"])
def test_ending_waits_for_a_slow_upload(slow: tuple[Mounted, Relay], how: str) -> None:
    mount, relay = slow
    content = os.urandom(3 * MIB)
    holder = open_and_dirty(mount, "held.bin", content)
    try:
        relay.rate = SLOW
        began = time.monotonic()
        if how == "umount":
            done = mount.hvbridge("umount", str(mount.path))
            assert (done.returncode, "not everything" in done.stderr) == (0, False)
        else:
            mount.process.send_signal(signal.SIGTERM)
        assert mount.wait(40) == 0
        assert time.monotonic() - began > 2, "it was not slow"
        mount.client_has("held.bin", content)
        assert mount.unsent() == {}
    finally:
        end(holder)


def test_the_deadline_of_an_end_holds(slow: tuple[Mounted, Relay]) -> None:
    mount, relay = slow
    content = os.urandom(20 * MIB)
    holder = open_and_dirty(mount, "held.bin", content)
    try:
        relay.rate = SLOW
        began = time.monotonic()
        done = mount.hvbridge("umount", "--timeout", "1.5", str(mount.path))
        assert done.returncode == 1
        assert "hvbridge status" in done.stderr
        assert mount.wait(20) == 1
        assert time.monotonic() - began < 15
        assert mount.unsent()["/held.bin"].read_bytes() == content
        assert names_in(mount.shared) in ([], [path.name for path in mount.part_files()])
    finally:
        end(holder)


def test_a_second_client_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        (mount.shared / "a").write_text("first")
        other = tmp_path / "other"
        other.mkdir()
        (other / "b").write_text("second")
        uri = f"spice://127.0.0.1:{mount.port}"
        with SpiceClient(uri, other) as second:
            second.wait_for(lambda e: e["event"] == "channel-event" and e["what"].startswith("error"))
        assert "one client at a time" in mount.log
        until(lambda: names_in(mount.path) == ["a"], "the first one's folder")
        assert (mount.path / "a").read_text() == "first"


def test_a_waiting_upload_never_reaches_another_share(tmp_path: Path) -> None:
    with mounted(tmp_path, "-o", "grace=15", client=False) as mount, Relay(mount.port) as relay:
        for name in ("one", "two", "three"):
            (mount.shared / name).write_text(name)
        client = mount.client(port=relay.port)
        assert names_in(mount.path) == ["one", "three", "two"]
        relay.begin(cut_at=100_000)
        script = "import sys\nwith open(sys.argv[1], 'wb') as file: file.write(bytes(500_000))"
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(mount.path / "new.bin")], stderr=subprocess.PIPE, text=True
        )
        assert relay.cut_done.wait(20)
        client.kill()
        other = tmp_path / "other"
        other.mkdir()
        (other / "alien").write_text("of somebody else")
        mount.client(other)
        _, said = writer.communicate(timeout=40)
        assert "Input/output error" in said
        assert names_in(other) == ["alien"]
        until(lambda: "/new.bin" in mount.unsent(), "status names the file")
        assert mount.unsent()["/new.bin"].read_bytes() == bytes(500_000)
        until(lambda: names_in(mount.path) == ["alien"], "the other share")


READER = """
import json, os, sys
path, copy = sys.argv[1:3]
with open(copy, "rb") as file:
    right = file.read()
counts = {0: 0}
while not os.path.exists(sys.argv[3]):
    try:
        with open(path, "rb", 0) as file:
            at = 0
            while data := file.read(100_000):
                if data != right[at : at + len(data)]:
                    sys.exit(f"wrong bytes at {at}")
                at += len(data)
        if at != len(right):
            sys.exit(f"{at} bytes instead of {len(right)}")
        counts[0] += 1
    except OSError as exc:
        counts[exc.errno] = counts.get(exc.errno, 0) + 1
print(json.dumps(counts))
"""


def test_large_reads_while_clients_come_and_go(tmp_path: Path) -> None:
    """Each byte that is read is right; what cannot be read is an error.

    The cache is smaller than the file, so that each reading asks the client again.
    """
    with mounted(tmp_path, "-o", "grace=0.2,cache_size=8M", client=False) as mount:
        content = random.Random(1).randbytes(30 * MIB)
        (mount.shared / "large.bin").write_bytes(content)
        copy, over = tmp_path / "copy", tmp_path / "over"
        copy.write_bytes(content)
        client = mount.client()
        argv = [sys.executable, "-c", READER, str(mount.path / "large.bin"), str(copy), str(over)]
        reader = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(8):
                time.sleep(random.uniform(0.2, 0.5))  # any moment of the transfer
                client.kill()
                mount.wait_state("waiting")
                time.sleep(1.2)  # long enough for errors
                client = mount.client()
            time.sleep(0.5)
        finally:
            over.touch()
            told, wrong = reader.communicate(timeout=60)
        assert reader.returncode == 0, wrong
        print(f"\n  large reads by errno, 0 for whole: {told}")
        seen = {int(number) for number in json.loads(told)}
        assert 0 in seen
        assert seen <= ALLOWED
        assert len(seen) > 1, "the client was never missed"
        assert (mount.path / "large.bin").read_bytes() == content
