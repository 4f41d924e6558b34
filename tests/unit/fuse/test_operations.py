"""FUSE's calls: conversions, and that only errno leaves."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from hvbridge import deadline
from hvbridge.vfs.filesystem import Filesystem
from hvbridge.vfs.memory import MemoryRemote
from tests.contract.expecting import fails

if TYPE_CHECKING:
    from hvbridge.fuse.operations import Operations

pytestmark = pytest.mark.peers("fuse")


class Case:
    def __init__(self, home: Path) -> None:
        from hvbridge.fuse.operations import Operations  # loads libfuse2

        self.remote = MemoryRemote()
        self.fs = Filesystem(self.remote, home)
        self.mounted = 0
        self.ops: Operations = Operations(self.fs, 12, 34, on_mounted=self._mounted)

    def _mounted(self) -> None:
        self.mounted += 1


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def info(flags: int = os.O_RDONLY) -> Any:
    return SimpleNamespace(fh=0, flags=flags, direct_io=False)


def test_attributes(case: Case) -> None:
    case.remote.write("/f", bytes(1000))
    case.remote.mkdir("/d")
    file, folder = case.ops("getattr", "/f"), case.ops("getattr", "/d")
    assert (file["st_mode"], folder["st_mode"]) == (stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755)
    assert (file["st_size"], file["st_blocks"], file["st_nlink"]) == (1000, 2, 1)
    assert (file["st_uid"], file["st_gid"]) == (12, 34)
    assert file["st_mtime"] == case.remote.stat("/f").mtime_ns


def test_errors_become_errno(case: Case) -> None:
    case.remote.mkdir("/d")
    case.remote.write("/d/f", b"")
    with fails(errno.ENOENT):
        case.ops("getattr", "/none")
    with fails(errno.ENOTEMPTY):
        case.ops("rmdir", "/d")
    with fails(errno.ENAMETOOLONG):
        case.ops("mkdir", "/" + "x" * 256, 0o755)
    fi = info()
    fi.fh = 99
    with fails(errno.EBADF):
        case.ops("read", "/d/f", 10, 0, fi)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no errno"), errno.EIO),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (ValueError("bug"), errno.EIO),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bug"), errno.EIO),
    ],
    ids=["no errno", "ENOSPC", "bug", "unicode"],
)
def test_whatever_is_raised_an_errno_leaves(
    case: Case, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: int
) -> None:
    def broken(*args: object) -> None:
        raise error

    monkeypatch.setattr(case.fs, "getattr", broken)
    with fails(expected):
        case.ops("getattr", "/f")


def test_operations_that_move_no_content_have_one_deadline(case: Case) -> None:
    seen: dict[str, float | None] = {}
    case.remote.write("/f", b"x")
    case.remote.before = lambda method, path: seen.update({method: deadline.remaining()})
    case.ops("getattr", "/f")
    left = seen["list"]
    assert left is not None
    assert 0 < left <= case.fs.limits.operation


def test_reading_and_writing(case: Case) -> None:
    fi = info(os.O_RDWR)
    case.ops("create", "/f", stat.S_IFREG | 0o640, fi)
    assert case.ops("write", "/f", b"0123456789", 0, fi) == 10
    case.ops("truncate", "/f", 8, fi)
    assert case.ops("read", "/f", 100, 2, fi) == b"234567"
    assert case.ops("getattr", "/f", fi)["st_size"] == 8
    case.ops("flush", "/f", fi)
    assert case.remote.tree() == {"/f": b"01234567"}
    case.ops("release", "/f", fi)
    assert case.ops("getattr", "/f")["st_mode"] & 0o777 == 0o640
    case.ops("truncate", "/f", 2)
    assert case.remote.tree() == {"/f": b"01"}


def test_a_deleted_file_has_no_path(case: Case) -> None:
    case.remote.write("/f", b"content")
    fi = info(os.O_RDWR)
    case.ops("open", "/f", fi)
    case.ops("unlink", "/f")
    assert case.ops("read", None, 100, 0, fi) == b"content"
    assert case.ops("getattr", None, fi)["st_size"] == 7
    case.ops("truncate", None, 3, fi)
    assert case.ops("read", None, 100, 0, fi) == b"con"
    case.ops("flush", None, fi)
    case.ops("release", None, fi)
    assert case.remote.tree() == {}


def test_o_trunc_comes_with_open(case: Case) -> None:
    case.remote.write("/f", b"content")
    fi = info(os.O_WRONLY | os.O_TRUNC)
    case.ops("open", "/f", fi)
    assert case.ops("getattr", "/f", fi)["st_size"] == 0
    case.ops("release", "/f", fi)
    assert case.remote.tree() == {"/f": b""}


def test_a_file_of_another_size_than_listed_bypasses_the_kernels_size(case: Case) -> None:
    case.remote.write("/f", b"short")
    case.ops("getattr", "/f")
    fi = info()
    case.ops("open", "/f", fi)
    assert not fi.direct_io
    case.ops("release", "/f", fi)
    case.remote.write("/g", b"short")
    case.fs.tree.forget()
    case.ops("getattr", "/g")
    case.remote.write("/g", b"longer than listed")
    case.ops("open", "/g", fi)
    assert fi.direct_io
    assert case.ops("read", "/g", 100, 0, fi) == b"longer than listed"


def test_readdir_has_attributes(case: Case) -> None:
    case.remote.write("/f", b"12345")
    case.remote.mkdir("/d")
    found = list(case.ops("readdir", "/", 0))
    assert found[:2] == [".", ".."]
    assert [(name, attrs["st_size"], stat.S_ISDIR(attrs["st_mode"])) for name, attrs, _ in found[2:]] == [
        ("d", 0, True),
        ("f", 5, False),
    ]


def test_utimens(case: Case) -> None:
    from hvbridge.fuse.operations import UTIME_NOW, UTIME_OMIT

    case.remote.write("/f", b"")
    case.ops("utimens", "/f", (1, 42_000_000_007))
    assert case.ops("getattr", "/f")["st_mtime"] == 42_000_000_007
    case.ops("utimens", "/f", (1, UTIME_OMIT))
    assert case.ops("getattr", "/f")["st_mtime"] == 42_000_000_007
    for now in ((1, UTIME_NOW), None):
        case.ops("utimens", "/f", (1, 42_000_000_007))
        case.ops("utimens", "/f", now)
        assert case.ops("getattr", "/f")["st_mtime"] > 10**18


def test_what_a_share_cannot_have(case: Case) -> None:
    case.remote.write("/f", b"")
    with fails(errno.EPERM):
        case.ops("symlink", "/link", "f")
    with fails(errno.EPERM):
        case.ops("link", "/link", "/f")
    with fails(errno.EPERM):
        case.ops("mknod", "/fifo", stat.S_IFIFO | 0o644, 0)
    with fails(errno.EINVAL):
        case.ops("readlink", "/f")
    with fails(errno.ENODATA):
        case.ops("getxattr", "/f", "user.x")
    with fails(errno.ENOTSUP):
        case.ops("setxattr", "/f", "user.x", b"", 0)
    assert case.ops("listxattr", "/f") == []
    assert case.ops("chown", "/f", 0, 0) == 0
    assert set(case.remote.tree()) == {"/f"}


def test_statfs(case: Case) -> None:
    space = case.ops("statfs", "/")
    assert space["f_bavail"] * space["f_frsize"] // 10**9 == 0
    assert space["f_bavail"] == 10**9 // 4096
    assert space["f_namemax"] == 255


def test_names_that_are_not_utf8_survive_the_codec() -> None:
    from hvbridge.fuse.operations import ENCODING

    raw = b"/latin-1 \xe9/\xff"
    assert raw.decode(ENCODING) == os.fsdecode(raw)
    assert raw.decode(ENCODING).encode(ENCODING) == raw
    assert "/ü".encode(ENCODING) == "/ü".encode()


def test_init_says_that_it_is_mounted(case: Case) -> None:
    case.ops("init", "/")
    assert case.mounted == 1


def test_mount_options() -> None:
    from hvbridge.fuse.mount import FuseOptions

    plain = FuseOptions("unix:///a,b\\c", 1, 2).arguments()
    assert plain["fsname"] == "unix:///a\\,b\\\\c"
    assert {name for name in ("nosuid", "nodev", "noexec", "default_permissions") if plain.get(name)} == {
        "nosuid",
        "nodev",
        "noexec",
        "default_permissions",
    }
    assert not plain.get("allow_other")
    assert not plain.get("ro")
    chosen = FuseOptions("x", 1, 2, read_only=True, allow_other=True, exec_=True, extra=("noatime", "a=b"))
    arguments = chosen.arguments()
    assert (arguments["ro"], arguments["allow_other"], arguments["noatime"], arguments["a"]) == (
        True,
        True,
        True,
        "b",
    )
    assert "noexec" not in arguments
