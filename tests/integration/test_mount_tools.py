"""The tools that people use on a mount, run in it; what they did is looked at on the client's side."""

from __future__ import annotations

import dbm.dumb
import errno
import mmap
import os
import random
import shelve
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_mount_trees import digest, tree_of
from tests.support.mounted import Mounted, mounted, names_in, outcome

pytestmark = pytest.mark.peers("spice-gtk", "fuse")

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("tools"), "-o", "exec", client=False) as mount:
        make_given(mount.shared / "given")
        mount.client()
        yield mount


def make_given(folder: Path) -> None:
    """What the client's user has already; made later it would be seen a few seconds later."""
    folder.mkdir()
    (folder / "doc.txt").write_text("old\n")
    (folder / "small.sh").write_bytes(b"x" * 100)
    (folder / "large.sh").write_bytes(b"x" * MIB)
    (folder / "hello.sh").write_text("#!/bin/sh\necho ran from the share\n")
    (folder / "mapped").write_bytes(random.Random(7).randbytes(3 * MIB))
    for name in ("doc.txt", "small.sh", "large.sh", "hello.sh"):
        (folder / name).chmod(0o750)


@pytest.fixture
def mount(shared_mount: Mounted) -> Iterator[Mounted]:
    """One mount for all tests here; each finds only ``given`` in it and leaves nothing pending."""
    yield shared_mount
    status = shared_mount.status()
    assert (status["pending"], status["failed"]) == ([], [])
    assert shared_mount.part_files() == []
    for path in shared_mount.path.iterdir():
        if path.name != "given":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert names_in(shared_mount.shared) == ["given"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files with modes and times to be kept, among them ones that a share cannot hold."""
    top, rng = tmp_path / "tree", random.Random(5)
    for folder in ("", "a", "a/b", "R&D", "empty"):
        (top / folder).mkdir(parents=True)
    for number in range(40):
        path = top / ("", "a", "a/b", "R&D")[number % 4] / f"file {number}.dat"
        path.write_bytes(rng.randbytes(rng.choice([0, 10, 5_000, 200_000])))
        path.chmod(rng.choice([0o644, 0o600, 0o755]))
        os.utime(path, ns=(10**18, 10**18 + number * 1_234_567_891))
    return top


def run(*argv: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    """Standard output; fails with what the program said unless its status is 0."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout


def sh(script: str, cwd: Path) -> str:
    return run("sh", "-ec", script, cwd=cwd)


def modes_and_times(top: Path) -> dict[str, tuple[int, int]]:
    """Permission bits and mtime (ns) of all files below ``top``."""
    files = [path for path in top.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(top)): (path.stat().st_mode & 0o777, path.stat().st_mtime_ns) for path in files
    }


class TestCopying:
    def test_cp_a(self, mount: Mounted, tree: Path) -> None:
        run("cp", "-a", tree, mount.path / "copy")
        assert tree_of(mount.shared / "copy") == tree_of(tree)
        assert modes_and_times(mount.path / "copy") == modes_and_times(tree)
        run("cp", "-a", mount.path / "copy", mount.path / "again")
        assert tree_of(mount.shared / "again") == tree_of(tree)

    def test_cp_a_with_what_a_share_cannot_hold(self, mount: Mounted, tree: Path) -> None:
        """Symlinks are refused one by one; the rest arrives."""
        (tree / "link").symlink_to("a")
        done = subprocess.run(
            ["cp", "-a", str(tree), str(mount.path / "copy")], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "link" in done.stderr
        (tree / "link").unlink()
        assert tree_of(mount.shared / "copy") == tree_of(tree)

    @pytest.mark.peers("rsync")
    def test_rsync_a(self, mount: Mounted, tree: Path) -> None:
        def rsync() -> list[str]:
            listed = run("rsync", "-a", "--out-format=%n", f"{tree}/", f"{mount.path}/copy/")
            return [name for name in listed.splitlines() if not name.endswith("/")]

        assert len(rsync()) == 40
        assert tree_of(mount.shared / "copy") == tree_of(tree)
        assert rsync() == []
        (tree / "a" / "file 1.dat").write_bytes(b"new content")
        assert rsync() == ["a/file 1.dat"]
        assert (mount.shared / "copy" / "a" / "file 1.dat").read_bytes() == b"new content"

    @pytest.mark.peers("rsync")
    def test_rsync_in_place_and_delete(self, mount: Mounted, tree: Path) -> None:
        run("rsync", "-a", f"{tree}/", f"{mount.path}/copy/")
        with (tree / "big").open("wb") as file:
            file.write(os.urandom(3 * MIB))
        run("rsync", "-a", f"{tree}/", f"{mount.path}/copy/")
        with (tree / "big").open("r+b") as file:
            file.seek(MIB)
            file.write(b"a change in the middle")
        os.utime(tree / "big", (0, 0))
        shutil.rmtree(tree / "R&D")
        run("rsync", "-a", "--inplace", "--no-whole-file", "--delete", f"{tree}/", f"{mount.path}/copy/")
        assert tree_of(mount.shared / "copy") == tree_of(tree)

    def test_tar(self, mount: Mounted, tree: Path, tmp_path: Path) -> None:
        run("tar", "cf", tmp_path / "tree.tar", "--format=posix", "-C", tree, ".")
        (mount.path / "out").mkdir()
        run("tar", "xpf", tmp_path / "tree.tar", "-C", mount.path / "out")
        assert tree_of(mount.shared / "out") == tree_of(tree)
        assert modes_and_times(mount.path / "out") == modes_and_times(tree)
        run("tar", "czf", mount.path / "back.tar.gz", "-C", mount.path / "out", ".")
        (tmp_path / "back").mkdir()
        run("tar", "xzf", mount.shared / "back.tar.gz", "-C", tmp_path / "back")
        assert tree_of(tmp_path / "back") == tree_of(tree)

    def test_mv(self, mount: Mounted, tree: Path) -> None:
        wanted = tree_of(tree)
        run("cp", "-r", tree, mount.path / "one")
        (mount.path / "two").mkdir()
        run("mv", mount.path / "one", mount.path / "two" / "moved")
        assert tree_of(mount.shared / "two" / "moved") == wanted
        run("mv", mount.path / "two" / "moved" / "a", mount.path / "a")
        run("mv", "-f", mount.path / "a" / "file 1.dat", mount.path / "a" / "file 5.dat")
        assert digest(mount.shared / "a" / "file 5.dat") == wanted["a/file 1.dat"]
        assert not (mount.shared / "a" / "file 1.dat").exists()
        run("mv", mount.path / "a", tree.parent / "out")  # to another filesystem
        assert not (mount.shared / "a").exists()
        assert digest(tree.parent / "out" / "file 5.dat") == wanted["a/file 1.dat"]

    def test_rm_find_du(self, mount: Mounted, tree: Path) -> None:
        run("cp", "-r", tree, mount.path / "t")
        for command in (
            ["find", ".", "-type", "f", "-size", "+100k"],
            ["find", ".", "-empty"],
            ["du", "-ab", "--exclude=*", "."],
        ):
            there = sorted(run(*command, cwd=tree).splitlines())
            if command[0] == "du":  # folders have no size of their own here
                continue
            assert sorted(run(*command, cwd=mount.path / "t").splitlines()) == there
        sizes = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        assert int(run("du", "-sb", mount.path / "t").split()[0]) == sizes
        run("rm", "-r", mount.path / "t")
        assert names_in(mount.shared) == ["given"]

    def test_df(self, mount: Mounted) -> None:
        source, free = run("df", "-B1", "--output=source,avail", mount.path).splitlines()[1].split()
        assert source == mount.status()["channel"]
        behind = os.statvfs(mount.shared)
        assert abs(int(free) - behind.f_bavail * behind.f_frsize) < 4 << 30


@pytest.mark.peers("git")
class TestGit:
    def test_init_to_clone(self, mount: Mounted, tree: Path) -> None:
        repository = mount.path / "repository"
        run("cp", "-r", tree, repository)
        identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
        # The mount has its owner, whoever runs the tests.
        git = ("git", "-c", f"safe.directory={repository}", *identity)
        run(*git, "init", "-q", cwd=repository)
        run(*git, "add", "-A", cwd=repository)
        run(*git, "commit", "-q", "-m", "first", cwd=repository)
        (repository / "a" / "file 1.dat").write_text("changed\n")
        run(*git, "commit", "-q", "-am", "second", cwd=repository)
        run(*git, "branch", "side", "HEAD~1", cwd=repository)
        run(*git, "gc", "-q", cwd=repository)
        run(*git, "fsck", "--full", "--strict", cwd=repository)
        assert run(*git, "status", "--porcelain", cwd=repository) == ""
        clone = tree.parent / "clone"
        run(*git, "clone", "-q", repository, clone)
        assert (clone / "a" / "file 1.dat").read_text() == "changed\n"
        assert run(*git, "log", "--format=%s", cwd=clone).split() == ["second", "first"]
        # The client's own git finds the same, whole.
        there = ("git", "-c", f"safe.directory={mount.shared / 'repository'}")
        original = mount.shared / "repository"
        run(*there, "fsck", "--full", cwd=original)
        assert run(*there, "log", "--format=%s", cwd=original).split() == [
            "second",
            "first",
        ]


class TestDatabases:
    @pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
    def test_sqlite(self, mount: Mounted, journal: str) -> None:
        path = mount.path / "data.db"
        with sqlite3.connect(path, timeout=10) as database:
            # WAL's index is a shared mapping, which a FUSE mount on libfuse2 has only for one process.
            if journal == "wal":
                database.execute("pragma locking_mode = exclusive")
            assert database.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
            database.execute("create table t (id integer primary key, text text)")
        for number in range(5):
            with database:
                rows = [(f"{number} {i}",) for i in range(200)]
                database.executemany("insert into t (text) values (?)", rows)
        with pytest.raises(RuntimeError), database:
            database.execute("delete from t")
            raise RuntimeError("rolled back")
        assert database.execute("select count(*) from t").fetchone() == (1000,)
        database.close()
        with sqlite3.connect(f"file:{mount.shared}/data.db?immutable=1", uri=True) as behind:
            assert behind.execute("pragma integrity_check").fetchone() == ("ok",)
            assert behind.execute("select count(*), max(id) from t").fetchone() == (1000, 1000)
        behind.close()

    @pytest.mark.peers("sqlite3")
    def test_sqlite3_program(self, mount: Mounted) -> None:
        script = "create table t(x); insert into t values(1),(2); vacuum; pragma integrity_check;"
        assert run("sqlite3", mount.path / "p.db", text=script) == "ok\n"
        assert run("sqlite3", mount.shared / "p.db", "select sum(x) from t") == "3\n"

    def test_two_sqlite_connections(self, mount: Mounted) -> None:
        one, two = (sqlite3.connect(mount.path / "two.db", timeout=10) for _ in range(2))
        one.execute("create table t (x)")
        for number in range(20):
            with (one, two)[number % 2] as database:
                database.execute("insert into t values (?)", (number,))
        assert one.execute("select count(*) from t").fetchone() == (20,)
        one.close()
        two.close()

    def test_shelve(self, mount: Mounted) -> None:
        made: Any = dbm.dumb.open(str(mount.path / "shelf"), "c")  # noqa: SIM115 - the shelf closes it
        with shelve.Shelf[Any](made) as shelf:
            for number in range(100):
                shelf[f"key {number}"] = {"number": number}
            shelf["key 5"] = "replaced"
        found: Any = dbm.dumb.open(str(mount.shared / "shelf"), "r")  # noqa: SIM115
        with shelve.Shelf[Any](found) as shelf:
            assert len(shelf) == 100
            assert shelf["key 5"] == "replaced"
            assert shelf["key 99"] == {"number": 99}


class TestSaving:
    """What editors do."""

    def test_write_beside_and_rename_over(self, mount: Mounted) -> None:
        target = mount.path / "given" / "doc.txt"
        before = names_in(mount.shared / "given")
        for number in range(5):
            temporary = target.with_name(f".doc.txt.{number}")
            with temporary.open("w") as file:
                file.write(f"new {number}\n")
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(target, temporary)
            temporary.replace(target)
            assert target.read_text() == f"new {number}\n"
            mount.client_has("given/doc.txt", f"new {number}\n")
        assert target.stat().st_mode & 0o777 == 0o755  # 0o750, as umask 022 and the exec bit show it
        assert names_in(mount.shared / "given") == before

    def test_backup_by_rename(self, mount: Mounted) -> None:
        """vim's backupcopy=no: the old file becomes the backup, a new one is written."""
        target = mount.path / "doc.txt"
        target.write_text("old\n")
        target.rename(mount.path / "doc.txt~")
        with target.open("x") as file:
            file.write("new\n")
            file.flush()
            os.fsync(file.fileno())
        mount.client_has("doc.txt", "new\n")
        mount.client_has("doc.txt~", "old\n")
        (mount.path / "doc.txt~").unlink()

    @pytest.mark.parametrize("name", ["small.sh", "large.sh"])
    def test_overwriting_keeps_the_mode(self, mount: Mounted, name: str) -> None:
        content = b"y" * ((mount.path / "given" / name).stat().st_size + 1)
        (mount.path / "given" / name).write_bytes(content)
        mount.client_has(f"given/{name}", content)
        assert (mount.shared / "given" / name).stat().st_mode & 0o777 == 0o750

    def test_the_time_after_saving_is_the_one_that_stays(self, mount: Mounted) -> None:
        path = mount.path / "doc.txt"
        path.write_text("text")
        seen = path.stat().st_mtime_ns
        mount.client_has("doc.txt", "text")
        assert seen == (mount.shared / "doc.txt").stat().st_mtime_ns
        assert path.read_text() == "text"
        assert path.stat().st_mtime_ns == seen

    def test_scripts_run_with_o_exec(self, mount: Mounted) -> None:
        assert run(mount.path / "given" / "hello.sh") == "ran from the share\n"


class TestShell:
    def test_redirections(self, mount: Mounted) -> None:
        sh("echo one > log; echo two >> log; : > empty; cat log >> log2; echo x | tee -a log", mount.path)
        mount.client_has("log", "one\ntwo\nx\n")
        mount.client_has("log2", "one\ntwo\n")
        mount.client_has("empty", "")
        sh("echo shorter > log; sed -i s/shorter/replaced/ log", mount.path)
        mount.client_has("log", "replaced\n")

    def test_noclobber(self, mount: Mounted) -> None:
        sh("set -C; echo one > new; ! echo two > new", mount.path)
        mount.client_has("new", "one\n")

    def test_dd(self, mount: Mounted, tmp_path: Path) -> None:
        """The same on the share as on a local disk."""
        here, there = tmp_path / "disk", mount.path / "disk"
        run("dd", "if=/dev/urandom", f"of={here}", "bs=64k", "count=40")
        run("dd", f"if={here}", f"of={there}", "bs=64k", "conv=fsync")
        mount.client_has("disk", here.read_bytes())
        for command in (
            ["dd", "if=/dev/zero", "of=disk", "bs=1k", "seek=100", "count=3", "conv=notrunc,fsync"],
            ["truncate", "-s", "1000", "disk"],
            ["truncate", "-s", "+5000", "disk"],
            ["dd", "if=/proc/self/cmdline", "of=disk", "oflag=append", "conv=notrunc"],
            ["truncate", "-s", "0", "disk"],
        ):
            run(*command, cwd=tmp_path)
            run(*command, cwd=mount.path)
            mount.client_has("disk", here.read_bytes())
            run("cmp", here, there)

    def test_sort_and_split(self, mount: Mounted) -> None:
        (mount.path / "lines").write_text("".join(f"{n * 7919 % 1000:04}\n" for n in range(1000)))
        sh("sort -o lines lines; split -l 250 lines part.; cat part.* | cmp - lines", mount.path)
        mount.client_has("part.ab", "".join(f"{n:04}\n" for n in range(250, 500)))

    def test_touch_and_times(self, mount: Mounted) -> None:
        sh("touch -d '2001-02-03 04:05:06 UTC' old; touch new; test new -nt old; chmod 755 new", mount.path)
        assert (mount.path / "old").stat().st_mtime == 981173106
        assert (mount.path / "new").stat().st_mode & 0o777 == 0o755

    def test_what_a_share_cannot_hold(self, mount: Mounted) -> None:
        file = mount.path / "file"
        file.write_text("x")
        assert outcome(lambda: (mount.path / "link").symlink_to("file")) == errno.EPERM
        assert outcome(lambda: (mount.path / "hard").hardlink_to(file)) == errno.EPERM
        assert outcome(lambda: os.mkfifo(mount.path / "fifo")) == errno.EPERM
        assert outcome(lambda: os.setxattr(file, "user.x", b"1")) == errno.ENOTSUP
        assert outcome(lambda: os.chown(file, 12345, 12345)) == 0
        assert file.stat().st_uid == os.getuid()


class TestMapping:
    def test_private_and_shared_reads(self, mount: Mounted) -> None:
        content = (mount.shared / "given" / "mapped").read_bytes()
        with (mount.path / "given" / "mapped").open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                assert mapping[MIB : MIB + 10] == content[MIB : MIB + 10]
                assert bytes(mapping) == content

    def test_shared_writes(self, mount: Mounted) -> None:
        content = bytearray(os.urandom(MIB))
        (mount.path / "mapped").write_bytes(content)
        with (mount.path / "mapped").open("r+b") as file:
            with mmap.mmap(file.fileno(), 0) as mapping:
                mapping[5000:5005] = b"12345"
                mapping.flush()
                os.fsync(file.fileno())
                content[5000:5005] = b"12345"
                mount.client_has("mapped", content)
                mapping[9000:9002] = b"zz"
        content[9000:9002] = b"zz"
        assert (mount.path / "mapped").read_bytes() == content
        mount.client_has("mapped", content)
