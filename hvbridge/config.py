"""Every limit and every path default, in one place, each with its reason.

Sizes are bytes, times are seconds. The SPICE client is a stranger: nothing that
it sends is taken without one of these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may make the host do, hold or wait for."""

    operation: float = 30.0
    """One filesystem operation that moves no file content. QEMU's vvfat and MTP read
    synchronously: a longer wait would freeze the VM beyond what its users bear."""

    request: float = 20.0
    """One WebDAV request without content, from first byte sent to last received."""

    silence: float = 15.0
    """A transfer during which nothing at all arrives, or can be sent."""

    min_rate: int = 64 * KIB
    """Bytes per second below which a transfer counts as a stall: see :meth:`transfer`."""

    grace: float = 10.0
    """How long operations wait for a client that left (a reconnect takes about 1 s)."""

    listing_bytes: int = 64 * MIB
    """A PROPFIND answer: some 100,000 entries."""

    listing_entries: int = 100_000
    """Entries of one folder."""

    xml_depth: int = 32
    """Nesting of an answer's XML; real ones have 6."""

    path_depth: int = 128
    """Folders below one another."""

    name_bytes: int = 255
    """One name (NAME_MAX of the VFS)."""

    error_body: int = 64 * KIB
    """Body of an answer that only its status matters for."""

    fresh: float = 5.0
    """How long a listing answers lookups before it is asked for again."""

    small_file: int = 128 * KIB
    """Content up to this size is cached in memory, larger in sparse files."""

    memory_cache: int = 64 * MIB
    """All small content together."""

    open_files: int = 4096
    """Handles at once; each may hold a file descriptor."""

    streams: int = 12
    """HTTP connections (mux streams) at once. phodav has one thread; a dozen hides 100 ms."""

    def transfer(self, size: int) -> float:
        """Seconds that moving ``size`` bytes may take in all."""
        return self.operation + size / self.min_rate


@dataclass(frozen=True, slots=True)
class Paths:
    """Where hvbridge keeps what outlives an operation."""

    runtime: Path = field(default_factory=lambda: runtime_dir())
    """Control sockets, one a mount. Gone after a reboot."""

    state: Path = field(default_factory=lambda: state_dir())
    """The spool: content that the client has not got yet. Survives a reboot."""


def runtime_dir() -> Path:
    """``/run/hvbridge`` for root, else below ``$XDG_RUNTIME_DIR``; ``HVBRIDGE_RUNTIME_DIR`` overrides.

    Never a predictable name in ``/tmp``: without a runtime directory, below the state's.
    """
    if override := os.environ.get("HVBRIDGE_RUNTIME_DIR"):
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/hvbridge")
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "hvbridge"
    usual = Path(f"/run/user/{os.geteuid()}")
    return usual / "hvbridge" if usual.is_dir() else state_dir() / "run"


def state_dir() -> Path:
    """``/var/lib/hvbridge`` for root, else ``~/.local/state/hvbridge``; ``HVBRIDGE_STATE_DIR`` overrides."""
    if override := os.environ.get("HVBRIDGE_STATE_DIR"):
        return Path(override)
    if os.geteuid() == 0:
        return Path("/var/lib/hvbridge")
    return platformdirs.user_state_path("hvbridge")
