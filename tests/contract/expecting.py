"""The one assertion of the contract suite that pytest lacks."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def fails(*numbers: int) -> Generator[None, None, None]:
    """The block raises ``OSError`` with one of these errno values."""
    with pytest.raises(OSError) as caught:
        yield
    wanted = "/".join(errno.errorcode[number] for number in numbers)
    got = caught.value.errno
    assert got in numbers, f"{errno.errorcode.get(got or 0)} ({os.strerror(got or 0)}), not {wanted}"
