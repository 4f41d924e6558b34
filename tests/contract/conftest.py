"""What the filesystem suite runs on: the object over a memory remote, the object over real
WebDAV streams, a real mount of our own share, and a real mount of a real SPICE client.

The tests are the same. Each has a folder of its own, so that the slower rigs are
set up once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hvbridge.channel.channel import Channel, State
from hvbridge.share.server import Share
from hvbridge.spice.mux import Role
from hvbridge.vfs.filesystem import Filesystem
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.webdav.remote import connect_remote
from tests.support import mounts
from tests.support.fsops import (
    ClientSide,
    DiskClient,
    FilesystemOps,
    FsOps,
    MemoryClient,
    MountOps,
)
from tests.support.pipes import QueueOpener, pair

Made = tuple[FsOps, ClientSide]


@dataclass
class Rig:
    """A filesystem under test and the folder that it shows."""

    kind: str
    fs: FsOps
    client: ClientSide


def memory(*, ranges: bool, atomic: int) -> Callable[[Path], Generator[Made, None, None]]:
    def make(home: Path) -> Generator[Made, None, None]:
        remote = MemoryRemote(ranges=ranges, atomic=atomic)
        fs = Filesystem(remote, home)
        yield FilesystemOps(fs), MemoryClient(remote)
        fs.close()

    return make


def webdav(home: Path) -> Generator[Made, None, None]:
    """The whole stack below FUSE, in this process, over a socketpair."""
    folder = mounts.shared_folder(home)
    host_end, share_end = pair()
    host_opener, share_opener = QueueOpener(), QueueOpener()
    host_opener.put(host_end)
    share_opener.put(share_end)
    share = Share(folder, share_opener)
    serving = threading.Thread(target=share.run, daemon=True)
    serving.start()
    channel = Channel(host_opener, Role.HOST)
    channel.start()
    assert channel.wait_state(State.OPEN, 10)
    remote = connect_remote(channel)
    fs = Filesystem(remote, home, connection=channel)
    yield FilesystemOps(fs), DiskClient(folder)
    fs.close()
    remote.close()
    channel.close()
    share.close()
    serving.join(10)


def mount(home: Path) -> Generator[Made, None, None]:
    with mounts.share_and_mount(home) as (folder, mountpoint):
        yield MountOps(mountpoint), DiskClient(folder)


def spice(home: Path) -> Generator[Made, None, None]:
    with mounts.spice_and_mount(home) as (folder, mountpoint):
        yield MountOps(mountpoint), DiskClient(folder)


KINDS = {
    "memory": memory(ranges=False, atomic=4096),
    "memory-ranges": memory(ranges=True, atomic=4096),
    "memory-never-atomic": memory(ranges=False, atomic=0),
    "webdav": webdav,
    "mount": mount,
    "spice": spice,
}

MARKS = {
    "mount": [pytest.mark.peers("fuse")],
    "spice": [pytest.mark.peers("fuse", "spice-gtk")],
}


class Rigs:
    """Each kind once a session, made when first wanted."""

    def __init__(self, stack: ExitStack, new_home: Callable[[str], Path]) -> None:
        self._stack, self._new_home = stack, new_home
        self._made: dict[str, Made] = {}
        self._folders = itertools.count(1)

    def enter(self, kind: str) -> Rig:
        """The rig, in a new empty folder."""
        if kind not in self._made:
            self._made[kind] = self._stack.enter_context(contextmanager(KINDS[kind])(self._new_home(kind)))
        fs, client = self._made[kind]
        fs.base = client.base = ""
        name = f"case-{next(self._folders)}"
        fs.mkdir(name)
        fs.base = client.base = f"/{name}"
        return Rig(kind, fs, client)


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Generator[Rigs, None, None]:
    with ExitStack() as stack:
        yield Rigs(stack, tmp_path_factory.mktemp)


@pytest.fixture(params=[pytest.param(kind, marks=MARKS.get(kind, [])) for kind in KINDS])
def rig(request: pytest.FixtureRequest, rigs: Rigs) -> Rig:
    """Every kind in turn."""
    return rigs.enter(request.param)


@pytest.fixture(params=[pytest.param(kind, marks=MARKS[kind]) for kind in ("mount", "spice")])
def mounted(request: pytest.FixtureRequest, rigs: Rigs) -> Rig:
    """The kinds that the kernel takes part in."""
    return rigs.enter(request.param)


@pytest.fixture
def fs(rig: Rig) -> FsOps:
    return rig.fs


@pytest.fixture
def client(rig: Rig) -> ClientSide:
    return rig.client
