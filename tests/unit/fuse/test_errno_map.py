from __future__ import annotations

import errno

import pytest

from hvbridge import errors
from hvbridge.fuse.errno_map import ERRNO, errno_of

CLASSES = sorted(
    (c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.FsError)),
    key=lambda c: c.__name__,
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_error_has_an_errno(cls: type[errors.FsError]) -> None:
    number = errno_of(cls("text", "/path"))
    assert number in errno.errorcode
    mapped = any(c in ERRNO for c in cls.__mro__)
    assert mapped or cls is errors.FsError, "EIO by choice, not by omission"


def test_those_that_tools_tell_apart() -> None:
    assert errno_of(errors.NotEmpty()) == errno.ENOTEMPTY
    assert errno_of(errors.NotPermitted()) == errno.EPERM
    assert errno_of(errors.ConnectionLost()) == errno.EIO
    assert errno_of(errors.Changed()) == errno.EIO
    assert errno_of(errors.Offline()) not in (errno.ENOTCONN, errno.ENOENT)


def test_none_says_not_found_by_accident() -> None:
    assert [c for c in CLASSES if errno_of(c()) == errno.ENOENT] == [errors.NotFound]
