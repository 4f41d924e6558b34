"""The composition root: channel → streams → WebDAV → filesystem → FUSE.

One :class:`Bridge` is one mount. It lives in one process; the main thread waits,
libfuse's threads serve the kernel, one thread reads the channel. The process
never touches its own mountpoint: that would wait for itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hvbridge.channel.channel import Channel, State
from hvbridge.channel.opening import open_channel, read_password
from hvbridge.channel.url import ChannelURL, ChardevURL, FdURL, HttpURL, StdioURL, TcpURL, UnixURL, parse
from hvbridge.config import GIB, Limits, Paths
from hvbridge.errors import HvbridgeError
from hvbridge.fuse.mount import FuseMount, FuseOptions
from hvbridge.spice.mux import Role
from hvbridge.vfs.filesystem import Filesystem, Settings
from hvbridge.webdav.remote import WebdavRemote, connect_remote

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

MAX_CACHE = 8 * GIB
"""Default bound of the content cache, if half of the free disk is not less."""

MUX_BASE_URL = "http://share.hvbridge.invalid/"
"""What requests over a channel are addressed to; phodav does not look at it."""

AT_ONCE = (UnixURL, TcpURL, ChardevURL, StdioURL, FdURL)
"""Channels whose peer is usually there: what follows the mount command shall find the files."""

FIRST_CLIENT = 1.0
"""Seconds that mounting waits for such a channel to open; it mounts in any case."""

PROGRESS_EVERY = 0.2
"""Seconds between two reports of what is left."""

LAST_CLOSE = 1.0
"""Seconds that the users of a detached mount have to close their files."""

LAST_UPLOADS = 60.0
"""Seconds for uploads that are left when somebody unmounted without asking us."""


@dataclass(frozen=True)
class MountOptions:
    """What an operator may choose for a mount; ``None``: the default."""

    read_only: bool = False
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0o022
    exec_: bool = False
    suid: bool = False
    dev: bool = False
    extra: tuple[str, ...] = ()
    """Further ``-o`` options for libfuse."""
    cache_size: int | None = None
    """Bytes of content kept on disk."""
    grace: float | None = None
    """Seconds that operations wait for a client that left."""
    timeout: float | None = None
    """Seconds that one operation may take."""
    actimeo: float | None = None
    """Seconds that a listing is believed (the name is nfs(5)'s)."""
    spool: Path | None = None
    """Where content waits until the client has it."""


class Bridge:
    """One mount of one channel. Methods may be called from any thread.

    Raises :class:`~hvbridge.errors.UsageError` for a URL that cannot be.
    """

    def __init__(
        self,
        channel_url: str,
        mountpoint: Path,
        options: MountOptions,
        limits: Limits | None = None,
        paths: Paths | None = None,
    ) -> None:
        self._url = parse(channel_url)
        self._where = str(self._url)
        self._mountpoint = mountpoint
        self._options = options
        self._limits = _chosen(limits or Limits(), options)
        self._paths = paths or Paths()
        self._since = datetime.now(UTC)
        self._stopping = threading.Lock()
        self._stopped = False
        self._mounted = False
        self._abandoned = threading.Event()
        """Unmounted, but open files keep the kernel's end alive: leaving ends it."""
        self._channel: Channel | None = None
        self._remote: WebdavRemote | None = None
        self._fs: Filesystem | None = None
        self._mount: FuseMount | None = None

    # --- life -----------------------------------------------------------

    def start(self) -> None:
        """Open the channel and mount; returns when the kernel has the mount.

        Raises :class:`HvbridgeError`; nothing is left mounted or open then.
        """
        try:
            self._remote = self._connect(self._url)
            self._note_spool()
            self._fs = Filesystem(
                self._remote,
                self._options.spool or self._paths.state,
                limits=self._limits,
                settings=self._settings(),
                connection=self._channel,
            )
            self._mount = FuseMount(self._fs, self._mountpoint, self._fuse_options())
            self._mount.start()
        except BaseException:
            self._close()
            raise
        self._mounted = True
        if self._channel is not None:
            self._on_state(self._channel.state)
        if self._channel is not None:
            self._channel.start()
        log.info("%s is mounted on %s", self._where, self._mountpoint)

    def wait(self) -> int:
        """Block until the mount is gone; 0, or 1 if uploads failed."""
        assert self._mount is not None and self._fs is not None
        while not self._mount.ended.wait(0.2) and not self._abandoned.is_set():
            pass
        with self._stopping:
            clean = self._fs.drain(0.0 if self._stopped else LAST_UPLOADS)
            failed = self._fs.failed() + self._fs.pending()
            self._close()
        for upload in failed:
            log.error(
                "%s has not reached the client (%s); its content is in %s",
                upload["path"],
                upload["error"] or upload["state"],
                upload["spool"],
            )
        return 0 if clean else 1

    def stop(self, *, deadline: float, progress: Progress | None = None) -> bool:
        """Finish uploads for at most ``deadline`` seconds, then unmount.

        ``progress`` gets ``{"pending": [...]}``, as in :meth:`status`, now and then.
        True if the client has everything. A second call during the first one
        unmounts at once.
        """
        if self._mount is None or self._fs is None:
            return True
        if not self._stopping.acquire(blocking=False):
            self._mount.unmount()
            return False
        try:
            self._stopped = True
            clean = self._drain(self._fs, deadline, progress or (lambda event: None))
            self._mount.unmount()
            if not self._mount.ended.wait(LAST_CLOSE):
                log.warning("%s is detached while somebody has files open there", self._mountpoint)
                self._abandoned.set()
            if not clean and self._channel is not None:
                # Who still waits for the client fails now, not after the grace period.
                self._channel.close()
            return clean
        finally:
            self._stopping.release()

    @staticmethod
    def _drain(fs: Filesystem, seconds: float, progress: Progress) -> bool:
        """Upload what is left, in a thread that is left behind when the time is over."""
        clean: list[bool] = []
        worker = threading.Thread(
            target=lambda: clean.append(fs.drain(seconds)), name="hvbridge-drain", daemon=True
        )
        worker.start()
        ends_at = time.monotonic() + seconds
        worker.join(PROGRESS_EVERY)
        while worker.is_alive() and time.monotonic() < ends_at:
            progress({"pending": fs.pending()})
            worker.join(PROGRESS_EVERY)
        return clean == [True]

    def _close(self) -> None:
        if self._fs is not None:
            self._fs.close()
        if self._remote is not None:
            self._remote.close()
        if self._channel is not None:
            self._channel.close()

    # --- parts ----------------------------------------------------------

    def _note_spool(self) -> None:
        """A spool elsewhere is linked from the usual place: ``status`` looks there after a crash."""
        if self._options.spool is None:
            return
        folder = self._paths.state / "spool"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        usual = folder / mount_id(self._mountpoint)
        chosen = self._options.spool.absolute() / "spool" / mount_id(self._mountpoint)
        if usual.is_symlink():
            usual.unlink()
        if not usual.exists():
            usual.symlink_to(chosen)

    def _connect(self, url: ChannelURL) -> WebdavRemote:
        if isinstance(url, HttpURL):
            auth = None
            if url.user is not None:
                auth = (url.user, read_password(url.password_file) if url.password_file else "")
            return connect_remote(None, url.base, self._limits, auth)
        opener = open_channel(url)
        self._where = opener.url  # with the port that was taken, where 0 was asked for
        self._channel = Channel(opener, Role.HOST, on_state=self._on_state)
        return connect_remote(self._channel, MUX_BASE_URL, self._limits)

    def _on_state(self, state: State) -> None:
        """A channel that can never come back (``stdio:``) takes its mount with it."""
        if state is State.CLOSED and self._mounted and not self._stopped:
            threading.Thread(target=self._end, name="hvbridge-end", daemon=True).start()

    def _end(self) -> None:
        try:
            self.stop(deadline=0.0)
        except HvbridgeError as exc:
            log.error("%s", exc)

    def _settings(self) -> Settings:
        state = self._options.spool or self._paths.state
        cache_size = self._options.cache_size
        return Settings(
            read_only=self._options.read_only,
            umask=self._options.umask,
            cache_size=cache_size if cache_size is not None else _default_cache(state),
            mountpoint=str(self._mountpoint),
            mount_id=mount_id(self._mountpoint),
        )

    def _fuse_options(self) -> FuseOptions:
        chosen = self._options
        return FuseOptions(
            source=self._where,
            uid=os.getuid() if chosen.uid is None else chosen.uid,
            gid=os.getgid() if chosen.gid is None else chosen.gid,
            read_only=chosen.read_only,
            allow_other=chosen.allow_other,
            exec_=chosen.exec_,
            suid=chosen.suid,
            dev=chosen.dev,
            extra=chosen.extra,
        )

    # --- looking --------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The state of the mount, JSON-able; asks the client nothing."""
        assert self._fs is not None and self._remote is not None
        usage = self._fs.usage()
        return {
            "mountpoint": str(self._mountpoint),
            "channel": self._where,
            "pid": os.getpid(),
            "since": self._since.isoformat(timespec="seconds"),
            "server": self._remote.traits.server,
            "read_only": self._options.read_only,
            "cache": {"bytes": usage["bytes"], "files": usage["files"]},
            "open_files": usage["open_files"],
            "pending": self._fs.pending(),
            "failed": self._fs.failed(),
            **self._channel_status(),
        }

    def _channel_status(self) -> dict[str, Any]:
        channel = self._channel
        if channel is None:
            return {
                "state": State.OPEN.value,
                "client": self._where,
                "streams": 0,
                "bytes_in": 0,
                "bytes_out": 0,
                "last_error": None,
            }
        session = channel.current
        counters = session.counters if session is not None else None
        return {
            "state": channel.state.value,
            "client": session.transport.description if session is not None else None,
            "streams": session.open_streams if session is not None else 0,
            "bytes_in": counters.bytes_in if counters is not None else 0,
            "bytes_out": counters.bytes_out if counters is not None else 0,
            "last_error": channel.last_error,
        }


def mount_id(mountpoint: Path) -> str:
    """Name of a mount's spool folder."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


def _chosen(limits: Limits, options: MountOptions) -> Limits:
    if options.grace is not None:
        limits = replace(limits, grace=options.grace)
    if options.actimeo is not None:
        limits = replace(limits, fresh=options.actimeo)
    if options.timeout is not None:
        limits = replace(
            limits,
            operation=options.timeout,
            request=min(limits.request, options.timeout),
            silence=min(limits.silence, options.timeout),
        )
    return limits


def _default_cache(state: Path) -> int:
    existing = next(p for p in (state, *state.parents) if p.is_dir())
    return min(MAX_CACHE, shutil.disk_usage(existing).free // 2)
