"""What the filesystem suite runs on: the object over a memory remote, the object over real
WebDAV streams, a real mount of our own share, and a real mount of a real SPICE client.

The tests are the same. Each has a folder of its own, so that the slower rigs are
set up once; the client makes these folders before anybody looks, so that what
a test puts there as the client is seen at the first look.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from hvbridge.channel.channel import Channel, State
from hvbridge.share.server import Share
from hvbridge.spice.mux import Role
from hvbridge.vfs.filesystem import Filesystem
from hvbridge.vfs.memory import MemoryRemote
from hvbridge.webdav.remote import connect_remote
from tests.support.fsops import ClientSide, DiskClient, FilesystemOps, FsOps, MemoryClient, MountOps
from tests.support.mounted import HVBRIDGE, Mounted, until
from tests.support.pipes import QueueOpener, pair

FOLDERS = [f"case-{number}" for number in range(300)]
"""One for each test of a kind."""

SESSION = 900.0
"""Seconds after which the bridge of a whole session's tests is killed."""


@dataclass
class Rig:
    """A filesystem under test and the folder that it shows."""

    kind: str
    fs: FsOps
    client: ClientSide


Maker = Callable[[Path], contextlib.AbstractContextManager[Rig]]


def memory(kind: str, *, ranges: bool, atomic: int) -> Maker:
    """The object over a share in memory."""

    @contextlib.contextmanager
    def make(home: Path) -> Iterator[Rig]:
        remote = MemoryRemote(ranges=ranges, atomic=atomic)
        for folder in FOLDERS:
            remote.mkdir(f"/{folder}")
        fs = Filesystem(remote, home)
        yield Rig(kind, FilesystemOps(fs), MemoryClient(remote))
        fs.close()

    return make


@contextlib.contextmanager
def webdav(home: Path) -> Iterator[Rig]:
    """The whole stack below FUSE, in this process, over a socketpair."""
    folder = shared_folder(home)
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
    try:
        yield Rig("webdav", FilesystemOps(fs), DiskClient(folder))
    finally:
        fs.close()
        remote.close()
        channel.close()
        share.close()
        serving.join(10)


@contextlib.contextmanager
def mount(home: Path) -> Iterator[Rig]:
    """``hvbridge mount`` of ``hvbridge share``, each a process."""
    folder, socket = shared_folder(home), home / "channel.sock"
    share = subprocess.Popen([*HVBRIDGE, "share", str(folder), f"unix-listen://{socket}"])
    mount = Mounted(home, channel=f"unix://{socket}", watchdog=SESSION)
    try:
        until(socket.exists, "the share listens")
        mount.start()
        mount.wait_state("open")
        yield Rig("mount", MountOps(mount.path), DiskClient(folder))
    finally:
        mount.close()
        share.send_signal(signal.SIGTERM)
        share.wait(10)


@contextlib.contextmanager
def spice(home: Path) -> Iterator[Rig]:
    """``hvbridge mount`` of a spice-gtk client."""
    folder = shared_folder(home)
    mount = Mounted(home, watchdog=SESSION)
    try:
        mount.start()
        mount.client()
        yield Rig("spice", MountOps(mount.path), DiskClient(folder, patience=5.0))
    finally:
        mount.close()


def shared_folder(home: Path) -> Path:
    """A folder to share, with the tests' own folders in it."""
    folder = home / "shared"
    folder.mkdir()
    for name in FOLDERS:
        (folder / name).mkdir()
    return folder


KINDS: dict[str, Maker] = {
    "memory": memory("memory", ranges=False, atomic=4096),
    "memory-ranges": memory("memory-ranges", ranges=True, atomic=4096),
    "memory-never-atomic": memory("memory-never-atomic", ranges=False, atomic=0),
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
        self._made: dict[str, tuple[Rig, Iterator[str]]] = {}

    def enter(self, kind: str) -> Rig:
        """The rig, in a new empty folder."""
        if kind not in self._made:
            rig = self._stack.enter_context(KINDS[kind](self._new_home(kind)))
            self._made[kind] = (rig, iter(FOLDERS))
        rig, folders = self._made[kind]
        rig.fs.base = rig.client.base = "/" + next(folders)
        return rig


@pytest.fixture(scope="session")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
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
