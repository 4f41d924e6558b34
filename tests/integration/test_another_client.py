"""A change that waited for a client which left must not reach the one that comes next."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounted import HVBRIDGE, Mounted, mounted, outcome

pytestmark = pytest.mark.peers("fuse")


class Owner:
    """One person's folder, and the process that shares it."""

    def __init__(self, mount: Mounted, folder: Path, socket: Path) -> None:
        self._mount, self._socket = mount, socket
        self.folder = folder
        folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def comes(self) -> None:
        argv = [*HVBRIDGE, "share", str(self.folder), f"unix://{self._socket}"]
        self._process = subprocess.Popen(argv, env=self._mount.environment)
        self._mount.wait_state("open")

    def leaves(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._mount.wait_state("waiting")


Three = tuple[Mounted, Owner, Owner]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    socket = tmp_path / "sock"
    with mounted(tmp_path, "-o", "grace=15", client=False, channel=f"unix-listen://{socket}") as mount:
        one, other = (Owner(mount, tmp_path / name, socket) for name in ("one", "other"))
        for owner in (one, other):
            (owner.folder / "report").write_text(f"of {owner.folder.name}")
            (owner.folder / "doomed").write_text(f"of {owner.folder.name}")
            (owner.folder / "empty").mkdir()
            (owner.folder / owner.folder.name).write_text("tells them apart")
        yield mount, one, other
        for owner in (one, other):
            if owner._process is not None:
                owner._process.kill()
                owner._process.wait()


def test_nothing_lands_on_the_other_ones_machine(three: Three) -> None:
    mount, one, other = three
    one.comes()
    assert (mount.path / "report").read_text() == "of one"
    saved = os.open(mount.path / "report", os.O_WRONLY | os.O_TRUNC)
    os.write(saved, b"secret of one")
    one.leaves()
    begun: list[Callable[[], object]] = [
        lambda: os.close(saved),
        (mount.path / "doomed").unlink,
        (mount.path / "empty").rmdir,
        (mount.path / "new").mkdir,
        lambda: (mount.path / "doomed").rename(mount.path / "report"),
    ]
    results: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n, op=op: results.__setitem__(n, outcome(op)))
        for n, op in enumerate(begun)
    ]
    for thread in threads:
        thread.start()
    other.comes()
    for thread in threads:
        thread.join(40)
    assert results[0] == errno.EIO, mount.log
    assert all(results.values()), (results, mount.log)
    assert (other.folder / "report").read_text() == "of other"
    assert sorted(path.name for path in other.folder.iterdir()) == ["doomed", "empty", "other", "report"]
    assert mount.unsent()["/report"].read_bytes() == b"secret of one"


def test_the_same_ones_changes_are_made_when_he_is_back(three: Three) -> None:
    mount, one, _ = three
    one.comes()
    assert (mount.path / "report").read_text() == "of one"
    one.leaves()
    results: list[int] = []
    work = [(mount.path / "new").mkdir, (mount.path / "doomed").unlink]
    threads = [threading.Thread(target=lambda op=op: results.append(outcome(op))) for op in work]
    for thread in threads:
        thread.start()
    one.comes()
    for thread in threads:
        thread.join(40)
    assert results == [0, 0]
    assert (one.folder / "new").is_dir()
    assert not (one.folder / "doomed").exists()
