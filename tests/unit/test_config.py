"""Where things are kept, and what a transfer may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvbridge import config
from hvbridge.config import GIB, KIB, Limits, Paths


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HVBRIDGE_RUNTIME_DIR", "HVBRIDGE_STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_root_has_system_folders(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(os, "geteuid", lambda: 0)
    assert Paths() == Paths(Path("/run/hvbridge"), Path("/var/lib/hvbridge"))


def test_a_user_has_xdg_folders(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(os, "geteuid", lambda: 1000)
    clean.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    clean.setenv("XDG_STATE_HOME", "/home/u/.local/state")
    assert Paths() == Paths(Path("/run/user/1000/hvbridge"), Path("/home/u/.local/state/hvbridge"))


@pytest.mark.parametrize("uid", [0, 1000])
def test_variables_override(clean: pytest.MonkeyPatch, uid: int) -> None:
    clean.setattr(os, "geteuid", lambda: uid)
    clean.setenv("HVBRIDGE_RUNTIME_DIR", "/a")
    clean.setenv("HVBRIDGE_STATE_DIR", "/b")
    assert (config.runtime_dir(), config.state_dir()) == (Path("/a"), Path("/b"))


def test_a_transfer_may_take_longer_the_larger_it_is() -> None:
    limits = Limits(operation=10.0, min_rate=64 * KIB)
    assert limits.transfer(0) == 10.0
    assert limits.transfer(64 * KIB) == 11.0
    assert limits.transfer(GIB) == 10.0 + GIB / (64 * KIB)


def test_waits_are_nested() -> None:
    """A request is within an operation, and QEMU outlives an operation that waits for a client."""
    limits = Limits()
    assert limits.silence <= limits.request <= limits.operation
    assert limits.grace < limits.operation
