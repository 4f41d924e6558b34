"""The filesystem against a model, and against a client that goes at any request."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from hvbridge.config import Limits
from hvbridge.errors import ConnectionLost
from hvbridge.vfs import names
from hvbridge.vfs.filesystem import Filesystem
from hvbridge.vfs.memory import MemoryRemote
from tests.support.fsops import FilesystemOps
from tests.support.posix_model import PosixModel

PATHS = ["a", "b", "d", "d/a", "d/e", "d/e/a"]
FILES = ["a", "b", "d/a"]
paths = st.sampled_from(PATHS)
files = st.sampled_from(FILES)
"""Rules on files mostly hit files."""
contents = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"atomic" * 5, b"small" * 100, b"large" * 300]),
)
"""Around what the remote takes as a whole (40 bytes) and what is held in memory (1 KiB)."""

ATOMIC = 40
LIMITS = Limits(fresh=0.0, small_file=1024)


class FilesystemModel(RuleBasedStateMachine):
    """Every call is made on the filesystem and on the model; both must agree on all that can be seen."""

    descriptors: Bundle[tuple[int, int]] = Bundle("descriptors")

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="hvbridge-model-"))
        self.remote = MemoryRemote(ranges=False, atomic=ATOMIC)
        self.real = FilesystemOps(Filesystem(self.remote, self.home, limits=LIMITS))
        self.model = PosixModel()

    @initialize(data=contents)
    def the_client_shares_something(self, data: bytes) -> None:
        for path in ("d", "d/e"):
            self.client_makes_folder(path)
        for path in FILES[:2]:
            self.client_writes(path, data)

    def teardown(self) -> None:
        self.real.fs.close()
        shutil.rmtree(self.home)

    def both(self, call: str, *args: object) -> tuple[object, object]:
        """The results of ``call`` on both, which fail alike or not at all."""
        results: list[object] = []
        failures: list[str | None] = []
        for side in (self.model, self.real):
            try:
                results.append(getattr(side, call)(*args))
                failures.append(None)
            except OSError as exc:
                results.append(None)
                failures.append(errno.errorcode.get(exc.errno or 0))
        assert failures[0] == failures[1], f"{call}{args}: POSIX says {failures[0]}, we say {failures[1]}"
        return results[0], results[1]

    def same(self, call: str, *args: object) -> None:
        expected, got = self.both(call, *args)
        assert expected == got, f"{call}{args}: POSIX says {expected!r}, we say {got!r}"

    # --- descriptors ------------------------------------------------------

    @rule(
        target=descriptors,
        path=files,
        flags=st.sampled_from(
            [
                os.O_RDONLY,
                os.O_RDWR,
                os.O_RDWR | os.O_CREAT,
                os.O_WRONLY | os.O_CREAT,
                os.O_RDWR | os.O_TRUNC,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                os.O_RDWR | os.O_CREAT | os.O_EXCL,
            ]
        ),
    )
    def open(self, path: str, flags: int) -> MultipleResults[tuple[int, int]]:
        modelled, real = self.both("open", path, flags)
        if modelled is None:
            return multiple()
        assert isinstance(modelled, int)
        assert isinstance(real, int)
        return multiple((modelled, real))

    def each(self, call: str, fds: tuple[int, int], *args: object) -> None:
        """As :meth:`same`, on a descriptor, which has another number on each side."""
        outcomes = []
        for side, fd in ((self.model, fds[0]), (self.real, fds[1])):
            try:
                outcomes.append(("ok", getattr(side, call)(fd, *args)))
            except OSError as exc:
                outcomes.append(("failed", errno.errorcode.get(exc.errno or 0)))
        assert outcomes[0] == outcomes[1], f"{call}{args}: POSIX says {outcomes[0]}, we say {outcomes[1]}"

    @rule(fds=descriptors, data=contents, offset=st.sampled_from([0, 1, 5, 30, 100, 1000, 2500]))
    def pwrite(self, fds: tuple[int, int], data: bytes, offset: int) -> None:
        if data:
            self.each("pwrite", fds, data, offset)

    @rule(fds=descriptors, size=st.sampled_from([0, 1, 10, 100, 1500, 3000]))
    def ftruncate(self, fds: tuple[int, int], size: int) -> None:
        self.each("ftruncate", fds, size)

    @rule(fds=descriptors)
    def read_all(self, fds: tuple[int, int]) -> None:
        self.each("read_all", fds)

    @rule(fds=descriptors)
    def fsync(self, fds: tuple[int, int]) -> None:
        self.each("fsync", fds)

    @rule(fds=consumes(descriptors))
    def close(self, fds: tuple[int, int]) -> None:
        self.each("close", fds)

    # --- names ------------------------------------------------------------

    @rule(path=files, data=contents)
    def write_file(self, path: str, data: bytes) -> None:
        self.same("write_file", path, data)

    @rule(path=paths)
    def read_file(self, path: str) -> None:
        self.same("read_file", path)

    @rule(path=files, size=st.sampled_from([0, 3, 50, 2000]))
    def truncate(self, path: str, size: int) -> None:
        self.same("truncate", path, size)

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.same("mkdir", path)

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.same("rmdir", path)

    @rule(path=files)
    def unlink_file(self, path: str) -> None:
        self.same("unlink", path)

    @rule(src=files, dst=files)
    def rename_file(self, src: str, dst: str) -> None:
        self.same("rename", src, dst)

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.same("unlink", path)

    @rule(src=paths, dst=paths)
    def rename(self, src: str, dst: str) -> None:
        self.same("rename", src, dst)

    # --- the client's own changes, of what nobody here has open -------------

    @rule(path=paths, data=contents)
    def client_writes(self, path: str, data: bytes) -> None:
        if self.model.client_may_write(path):
            self.model.write_file(path, data)
            self.remote.write("/" + path, data)

    @rule(path=paths)
    def client_deletes(self, path: str) -> None:
        if self.model.client_may_delete(path):
            self.model.unlink(path)
            self.remote.delete("/" + path)

    @rule(path=paths)
    def client_makes_folder(self, path: str) -> None:
        if self.model.client_may_make(path):
            self.model.mkdir(path)
            self.remote.mkdir("/" + path)

    # --- what must always hold ----------------------------------------------

    @invariant()
    def everything_looks_the_same(self) -> None:
        for folder in self.model.folders():
            assert self.real.listdir(folder) == self.model.listdir(folder)
        for path in PATHS:
            try:
                expected = self.model.kind_and_size(path)
            except OSError:
                assert not self._there(path), f"{path} is shown and should not be there"
                continue
            found = self.real.stat(path)
            assert (found.is_dir, 0 if found.is_dir else found.size) == expected

    def _there(self, path: str) -> bool:
        try:
            self.real.stat(path)
        except OSError:
            return False
        return True

    @invariant()
    def the_client_has_what_was_closed(self) -> None:
        on_client = {p: data for p, data in self.remote.tree().items() if data is not None}
        for path, data in self.model.settled_files().items():
            assert on_client.get("/" + path) == data
        if not self.model.open_files:
            assert set(on_client) == {"/" + path for path in self.model.files()}


def test_the_filesystem_is_posix() -> None:
    run_state_machine_as_test(
        FilesystemModel,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Cuts(RuleBasedStateMachine):
    """A connection that goes at random requests and pieces; the client's disk is looked at after each."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="hvbridge-cuts-"))
        self.remote = MemoryRemote(ranges=False, atomic=ATOMIC)
        self.real = FilesystemOps(Filesystem(self.remote, self.home, limits=LIMITS))
        self.written: dict[str, set[bytes]] = {path: set() for path in PATHS}
        """Each complete version that a path may have."""
        self.must: dict[str, bytes] = {}
        """What a path has for certain."""
        self.plan: list[bool] = []
        self.serial = 0
        self.remote.before = lambda method, path: self._maybe_cut()
        self.remote.after = lambda method, path: self._maybe_cut()
        self.remote.on_piece = lambda at: self._maybe_cut()

    def teardown(self) -> None:
        self.plan = []
        self.real.fs.close()
        shutil.rmtree(self.home)

    def _maybe_cut(self) -> None:
        if self.plan and self.plan.pop(0):
            raise ConnectionLost("cut by the test")

    @rule(
        path=st.sampled_from(["a", "b", "c"]),
        size=st.sampled_from([3, ATOMIC, ATOMIC + 1, 2000, 300_000]),
        plan=st.lists(st.booleans(), max_size=25),
    )
    def save(self, path: str, size: int, plan: list[bool]) -> None:
        self.serial += 1
        data = (b"%d," % self.serial * size)[:size]
        self.written.setdefault(path, set()).add(data)
        if self._attempt(plan, lambda: self.real.write_file(path, data)):
            self.must[path] = data
        else:
            self.must.pop(path, None)

    @rule(
        path=st.sampled_from(["a", "b", "c"]),
        at=st.sampled_from([0, 2, 1000]),
        plan=st.lists(st.booleans(), max_size=25),
    )
    def edit(self, path: str, at: int, plan: list[bool]) -> None:
        before = self.remote.tree().get("/" + path)
        if before is None:
            return
        self.serial += 1
        piece = b"<%d>" % self.serial
        data = before[:at] + bytes(max(0, at - len(before))) + piece + before[at + len(piece) :]
        self.written.setdefault(path, set()).add(data)

        def work() -> None:
            fd = self.real.open(path, os.O_RDWR)
            try:
                self.real.pwrite(fd, piece, at)
            finally:
                self.real.close(fd)

        if self._attempt(plan, work):
            self.must[path] = data
        else:
            self.must.pop(path, None)

    @rule(
        src=st.sampled_from(["a", "b", "c"]),
        dst=st.sampled_from(["a", "b", "c"]),
        plan=st.lists(st.booleans(), max_size=12),
    )
    def rename(self, src: str, dst: str, plan: list[bool]) -> None:
        moving = self.remote.tree().get("/" + src)
        if moving is not None:
            self.written.setdefault(dst, set()).add(moving)
        done = self._attempt(plan, lambda: self.real.rename(src, dst))
        if src == dst:
            return
        if done and moving is not None:
            self.must.pop(src, None)
            self.must[dst] = moving
        elif moving is not None:
            self.must.pop(src, None)
            self.must.pop(dst, None)
            found = self.remote.tree()
            assert moving in (found.get("/" + src), found.get("/" + dst)), "a rename lost its file"

    def _attempt(self, plan: list[bool], work: object) -> bool:
        assert callable(work)
        self.plan = list(plan)
        try:
            work()
        except OSError:
            return False
        finally:
            self.plan = []
            self.real.fs.tree.forget()
        return True

    @invariant()
    def never_a_part_of_a_version(self) -> None:
        for path, data in self.remote.tree().items():
            name = names.split(path)[1]
            if data is not None and not names.is_hidden(name):
                assert data in self.written[name], f"{path}: {len(data)} bytes that nobody wrote so"

    @invariant()
    def what_was_reported_saved_is_there(self) -> None:
        found = self.remote.tree()
        for path, data in self.must.items():
            assert found.get("/" + path) == data
            assert self.real.read_file(path) == data


def test_no_cut_leaves_a_part() -> None:
    run_state_machine_as_test(
        Cuts,
        settings=settings(
            max_examples=80, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_the_model_is_right_about_linux(tmp_path: Path) -> None:
    """The model's errno against a real filesystem's, for each call in some awkward states."""
    model = PosixModel()
    for folder in ("d", "d/e"):
        model.mkdir(folder)
        (tmp_path / folder).mkdir()
    for file in ("a", "d/b"):
        model.write_file(file, b"x")
        (tmp_path / file).write_bytes(b"x")
    cases: list[tuple[str, ...]] = [("rename", src, dst) for src in PATHS for dst in PATHS]
    cases += [(call, path) for call in ("mkdir", "rmdir", "unlink") for path in PATHS]
    for call, *arguments in cases:
        expected: int | None = 0
        try:
            getattr(model.copy(), call)(*arguments)
        except OSError as exc:
            expected = exc.errno
        real = tmp_path.parent / "copy"
        shutil.copytree(tmp_path, real)
        got: int | None = 0
        try:
            getattr(os, call)(*(real / argument for argument in arguments))
        except OSError as exc:
            got = exc.errno
        shutil.rmtree(real)
        assert expected == got, f"{call}{arguments}"


pytestmark = pytest.mark.timeout(110)
