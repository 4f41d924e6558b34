"""Eight readers and eight writers at once, for a minute, on the folder of a real client."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounted import mounted

pytestmark = pytest.mark.peers("spice-gtk", "fuse")

SECONDS = 60.0
WORKERS = 8


class Load:
    """Counts what was done, and keeps the first thing that went wrong."""

    def __init__(self) -> None:
        self.ends_at = time.monotonic() + SECONDS
        self.read = self.written = 0
        self.faults: list[str] = []

    def run(self, work: Callable[[int], None]) -> list[threading.Thread]:
        def loop(number: int) -> None:
            try:
                while time.monotonic() < self.ends_at and not self.faults:
                    work(number)
            except Exception as exc:
                self.faults.append(f"{work} {number}: {exc!r}")

        threads = [threading.Thread(target=loop, args=(n,)) for n in range(WORKERS)]
        for thread in threads:
            thread.start()
        return threads


@pytest.mark.timeout(SECONDS + 120)
def test_eight_readers_and_eight_writers_for_a_minute(tmp_path: Path) -> None:
    with mounted(tmp_path, watchdog=SECONDS + 90) as mount:
        sizes = [random.Random(n).choice((0, 5, 4096, 70_000, 1_000_000, 5_000_000)) for n in range(40)]
        hashes = []
        for number, size in enumerate(sizes):
            content = random.Random(number).randbytes(size)
            (mount.shared / f"r{number}").write_bytes(content)
            hashes.append(hashlib.sha256(content).digest())
        load = Load()
        last: dict[int, bytes] = {}

        def read(number: int) -> None:
            choice = random.randrange(len(sizes))
            content = (mount.path / f"r{choice}").read_bytes()
            if hashlib.sha256(content).digest() != hashes[choice]:
                load.faults.append(f"r{choice}: wrong bytes")
            load.read += 1

        def write(number: int) -> None:
            content = os.urandom(random.choice((0, 100, 6000, 50_000, 2_000_000)))
            path = mount.path / f"w{number}"
            path.write_bytes(content)
            last[number] = content
            if path.read_bytes() != content:
                load.faults.append(f"w{number}: wrong bytes")
            load.written += 1

        for thread in load.run(read) + load.run(write):
            thread.join(SECONDS + 60)
            assert not thread.is_alive()
        assert load.faults == []
        assert load.read > 100 and load.written > 100
        for number, content in last.items():
            mount.client_has(f"w{number}", content)
        print(
            f"\n  {load.read} reads, {load.written} writes in {SECONDS:g} s;"
            f" the bridge's memory peaked at {mount.peak_memory() >> 20} MiB"
        )
