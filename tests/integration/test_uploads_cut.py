"""Connections that are cut at every stage of an upload: the client never has half a file.

A relay between spice-gtk and the bridge cuts after the N-th byte from the host; N runs
over all that an upload sends (measured first, without a cut), and is dense around the
requests before and after the PUT. phodav by itself keeps the truncated body of a PUT.
"""

from __future__ import annotations

import collections
import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.mounted import Mounted, mounted, names_in, until
from tests.support.relay import Relay
from tests.support.spice_gtk import SpiceClient

pytestmark = [pytest.mark.peers("spice-gtk", "fuse"), pytest.mark.timeout(240)]

KIB = 1 << 10
OLD_MODE = 0o750
EVENLY, AT_BORDERS = 22, 12
"""Cuts of one kind: spread over all bytes, and where one request or piece ends."""

LOST = {errno.EHOSTDOWN, errno.EIO, errno.ETIMEDOUT}


@dataclass(frozen=True)
class Kind:
    """What is uploaded: over ``old`` bytes of a file that is there (``None``: a new file)."""

    name: str
    size: int
    old: int | None = None


KINDS = [
    Kind("new-small", 3 * KIB),
    Kind("new-large", 300 * KIB),
    Kind("over-small", 3 * KIB, old=5 * KIB),
    Kind("over-large", 300 * KIB, old=200 * KIB),
    Kind("over-large-by-small", 100, old=400 * KIB),
]


WRITER = """
import json, os, sys
for line in sys.stdin:
    order = json.loads(line)
    result = 0
    try:
        with open(order["path"], "wb") as file:
            file.write(order["content"].encode("latin-1"))
            if order["sync"]:
                file.flush()
                os.fsync(file.fileno())
    except OSError as exc:
        result = exc.errno
    print(result, flush=True)
"""


class Writer:
    """Writes files in a process of its own.

    A process that this one starts meanwhile would inherit an open file and close it
    before it runs: that is a close(2) more, and waits for the client like any other.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def write(self, path: Path, content: bytes, *, sync: bool) -> int:
        """0, or the errno that came."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"path": str(path), "content": content.decode("latin-1"), "sync": sync}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def name(number: int) -> str:
    """All of one length, so that the requests are, too."""
    return f"{number:03}.bin"


@dataclass
class Rig:
    """A mount whose client comes through a relay, and comes anew after each cut."""

    mount: Mounted
    relay: Relay
    writer: Writer
    kind: Kind
    client: SpiceClient = field(init=False)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def folder(self) -> Path:
        return self.mount.shared / "targets"

    def connect(self) -> None:
        self.client = self.mount.client(port=self.relay.port)

    def content(self, number: int) -> bytes:
        """What is uploaded the ``number``-th time; not of one byte, so that a part is not a whole."""
        return (b"%08d new content\n" % number * (self.kind.size // 10))[: self.kind.size]

    def before(self, number: int) -> bytes | None:
        return None if self.kind.old is None else (b"%08d old\n" % number * self.kind.old)[: self.kind.old]

    def lay_out(self, count: int) -> None:
        """Targets on the client, before it is connected."""
        self.folder.mkdir()
        for number in range(count):
            if (old := self.before(number)) is not None:
                (self.folder / name(number)).write_bytes(old)
                (self.folder / name(number)).chmod(OLD_MODE)

    def upload(self, number: int) -> int:
        """Write the file in the mount; 0 or the errno of fsync (odd numbers) or close."""
        path = self.mount.path / "targets" / name(number)
        return self.writer.write(path, self.content(number), sync=bool(number % 2))

    def measure(self, number: int) -> tuple[int, list[int], list[int]]:
        """Bytes that one upload takes, where its pieces end, and where its requests."""
        names_in(self.mount.path / "targets")
        self.relay.begin()
        assert self.upload(number) == 0
        measured = self.relay.sent, self.relay.borders, self.relay.answered
        self.mount.client_has(f"targets/{name(number)}", self.content(number))
        return measured

    # --- after a cut ----------------------------------------------------

    def check_client(self, number: int) -> str:
        """What the client's disk has now: ``old``, ``absent`` or ``new``; anything else fails."""
        self.client.wait_for(
            lambda e: e["event"] == "channel-event" and e["channel"] == "webdav" and e["what"] != "opened"
        )
        self.client.settle()
        path = self.folder / name(number)
        if not path.exists():
            assert self.kind.old is None, "the old file is gone"
            return "absent"
        found = path.read_bytes()
        mode = path.stat().st_mode & 0o777
        assert mode == (OLD_MODE if self.kind.old is not None else 0o600), f"mode {mode:o}"
        if found == self.content(number):
            return "new"
        assert found == self.before(number), f"{len(found)} bytes of neither: {found[:40]!r}"
        return "old"

    def check_spool(self, number: int) -> None:
        """A failed upload is named by ``status``, and its content is all there."""

        def named() -> list[Path]:
            failed = self.mount.status()["failed"]
            return [Path(item["spool"]) for item in failed if item["path"] == f"/targets/{name(number)}"]

        until(named, "the status names the file")
        assert [path.read_bytes() for path in named()] == [self.content(number)]

    def check_mount(self, number: int, disk: str) -> None:
        """With a client there again: the mount shows what the disk has, and no litter stays."""
        names_in(self.mount.path / "targets")
        until(lambda: self.mount.part_files() == [], "what the cut left is removed", 10)
        path = self.mount.path / "targets" / name(number)
        assert path.exists() == (disk != "absent")
        if disk != "absent":
            assert path.read_bytes() == (self.folder / name(number)).read_bytes()


@dataclass(frozen=True, order=True)
class Cut:
    """After ``at`` bytes; ``late``: when the client has acted on them and answers."""

    at: int
    late: bool = False


def cuts(total: int, borders: list[int], answered: list[int]) -> list[Cut]:
    """Where to cut an upload of ``total`` bytes, which :class:`Relay` measured."""
    evenly = [max(1, total * step // EVENLY) for step in range(EVENLY + 1)]
    # The requests before the content are at the beginning, those after it at the end.
    ends = borders[: AT_BORDERS // 4] + borders[-AT_BORDERS // 4 :]
    close_by = [border + offset for border in ends for offset in (0, 40)]
    at_once = {Cut(at) for at in (*evenly, *close_by) if 0 < at <= total}
    return sorted(at_once | {Cut(at, late=True) for at in answered})


@contextmanager
def rig(work: Path, kind: Kind, grace: float) -> Iterator[Rig]:
    with mounted(work, "-o", f"grace={grace},timeout=15", client=False, watchdog=230) as mount:
        with Relay(mount.port) as relay, Writer() as writer:
            built = Rig(mount, relay, writer, kind)
            built.lay_out(200)
            built.connect()
            yield built


def cut_and_stay_away(rig: Rig, number: int, cut: Cut) -> None:
    """The client is cut and comes back only after the upload has failed."""
    names_in(rig.mount.path / "targets")
    rig.relay.begin(cut.at, late=cut.late)
    result = rig.upload(number)
    rig.relay.cut()  # nothing, if it was cut before
    disk = rig.check_client(number)
    if result == 0:
        assert disk == "new"
    else:
        assert result in LOST, errno.errorcode[result]
        rig.check_spool(number)
    rig.outcomes[f"{'kept' if result == 0 else errno.errorcode[result]}, {disk}"] += 1
    rig.connect()
    rig.check_mount(number, disk)


def cut_and_return(rig: Rig, number: int, cut: Cut) -> None:
    """The client is cut and comes back while the upload still waits: the upload succeeds."""
    names_in(rig.mount.path / "targets")
    rig.relay.begin(cut.at, late=cut.late)
    with ThreadPoolExecutor(1) as pool:
        uploading: Future[int] = pool.submit(rig.upload, number)
        until(lambda: rig.relay.cut_done.is_set() or uploading.done(), "the cut")
        rig.relay.cut()
        disk = rig.check_client(number)
        rig.connect()
        assert uploading.result(30) == 0
    rig.mount.client_has(f"targets/{name(number)}", rig.content(number))
    assert (rig.folder / name(number)).stat().st_mode & 0o777 == (
        OLD_MODE if rig.kind.old is not None else 0o600
    )
    rig.outcomes[f"{disk} at the cut, kept"] += 1
    rig.check_mount(number, "new")


def run(work: Path, kind: Kind, grace: float, one: Callable[[Rig, int, Cut], None]) -> str:
    """Cut uploads of ``kind`` at all places; says what was seen."""
    began = time.monotonic()
    with rig(work, kind, grace) as built:
        total, borders, answered = built.measure(199)
        assert total in answered
        places = cuts(total, borders, answered)
        for number, cut in enumerate(places):
            try:
                one(built, number, cut)
            except AssertionError as exc:
                where = f"{kind.name}, file {number}, {cut} of {total}"
                raise AssertionError(f"{where}: {exc}\n{built.mount.log}") from exc
        assert sum(built.outcomes.values()) == len(places) > EVENLY
        seen = ", ".join(f"{count} × {what}" for what, count in sorted(built.outcomes.items()))
        return f"{len(places)} cuts of {total} bytes in {time.monotonic() - began:.0f} s: {seen}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_cut_leaves_a_part(kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        away = pool.submit(run, tmp_path / "away", kind, 0.15, cut_and_stay_away)
        back = pool.submit(run, tmp_path / "back", kind, 12.0, cut_and_return)
    with capsys.disabled():
        print(f"\n  {kind.name}, client stays away: {away.result()}")
        print(f"  {kind.name}, client comes back: {back.result()}")
