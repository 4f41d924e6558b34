"""Channels over files: ``chardev`` (pty, virtio port), ``stdio``, ``fd``."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hvbridge.channel.sockets import LOOK
from hvbridge.channel.waiting import GONE, Wake, Woken, wait
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout, UsageError

PIPE_SIZE = 1 << 20
"""Bytes asked of a pipe's buffer: the default of 64 KiB is one mux frame."""

PIPE_BUF = 4096
"""Bytes that a pipe which polls writable takes at once, without blocking (pipe(7))."""

RETRY = 0.2
"""Seconds between looks whether a virtio port's other end has come: poll(2) cannot wait
for the end of a hangup."""


class _End(Protocol):
    """One direction of a file transport; raises :class:`BlockingIOError` where it would wait.

    ``may_block``: it would rather wait, if written to while poll says no.
    """

    @property
    def may_block(self) -> bool: ...

    def fileno(self) -> int: ...

    def read(self, size: int) -> bytes: ...

    def write(self, data: memoryview) -> int: ...

    def close(self) -> None: ...


class FileTransport:
    """Two descriptors, or one twice, read and written with poll; see ``Transport``."""

    def __init__(self, source: _End, sink: _End, description: str) -> None:
        self._source, self._sink, self._description = source, sink, description
        self._wake = Wake()
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._closed = False

    @property
    def description(self) -> str:
        """The URL it came from."""
        return self._description

    def read(self, max_bytes: int) -> bytes:
        """See :meth:`Transport.read`. EIO is how a terminal says that its other end closed."""
        with self._reading, contextlib.suppress(Woken, OSError):
            while not self._closed:
                if wait(self._source.fileno(), select.POLLIN, self._wake, None) & (select.POLLIN | GONE):
                    with contextlib.suppress(BlockingIOError):
                        return self._source.read(max_bytes)
        return b""

    def write(self, data: bytes, timeout: float) -> None:
        """See :meth:`Transport.write`."""
        view = memoryview(data)
        progress = time.monotonic()
        with self._writing:
            while view:
                try:
                    sent = 0 if self._closed else self._write_some(view, timeout)
                except Woken:
                    sent = 0
                except OSError as exc:
                    raise ChannelClosed(f"{self._description}: {exc.strerror}") from exc
                if self._closed:
                    raise ChannelClosed(f"{self._description} is closed")
                view = view[sent:]
                if sent:
                    progress = time.monotonic()
                elif time.monotonic() - progress >= timeout:
                    raise ChannelTimeout(f"{self._description} took nothing for {timeout:g} s")

    def close(self) -> None:
        """See :meth:`Transport.close`."""
        self._closed = True
        self._wake.set()
        with self._reading, self._writing:
            self._source.close()
            self._sink.close()

    def _write_some(self, view: memoryview, timeout: float) -> int:
        """Bytes that went out: 0 after a moment in which none could."""
        ready = wait(self._sink.fileno(), select.POLLOUT, self._wake, min(timeout, LOOK))
        if ready & GONE:
            raise ChannelClosed(f"{self._description}: the other end is closed")
        if not ready and self._sink.may_block:
            return 0
        try:
            return self._sink.write(view)
        except BlockingIOError:
            return 0


# --- the two kinds of ends ----------------------------------------------


class _SocketEnd:
    """A socket whose flags are not ours to change: it may be shared with other processes."""

    may_block = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self, size: int) -> bytes:
        return self._sock.recv(size, socket.MSG_DONTWAIT)

    def write(self, data: memoryview) -> int:
        return self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        # Descriptors elsewhere may keep the socket open: say that we are done.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class _FileEnd:
    """A pipe or a device; ``most`` is what one write may carry."""

    def __init__(self, fd: int, most: int, *, may_block: bool) -> None:
        self._fd, self._most, self.may_block = fd, most, may_block

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def write(self, data: memoryview) -> int:
        return os.write(self._fd, data[: self._most])

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _end(fd: int, *, writing: bool) -> _End:
    """The end for an inherited ``fd``, which it takes over.

    ``O_NONBLOCK`` belongs to the open file, which a parent may share: it is set
    on one that is opened anew, and where that cannot be, writes stay small
    enough not to block.
    """
    os.set_inheritable(fd, False)
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _SocketEnd(socket.socket(fileno=fd))
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    if writing and not stat.S_ISREG(mode):
        with contextlib.suppress(OSError):
            fresh = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.close(fd)
            return _FileEnd(fresh, PIPE_SIZE, may_block=False)
    return _FileEnd(fd, PIPE_BUF, may_block=True)


# --- openers ------------------------------------------------------------


class OnceOpener:
    """Hands out the one transport that there is."""

    once = True

    def __init__(self, url: str, make: Callable[[], FileTransport]) -> None:
        self._url, self._make = url, make
        self._lock = threading.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        """See :attr:`Opener.url`."""
        return self._url

    def open(self) -> FileTransport:
        """See :meth:`Opener.open`."""
        with self._lock:
            if self._closed:
                raise ChannelClosed(f"{self._url} is closed")
            self._closed = True
            return self._make()

    def close(self) -> None:
        """See :meth:`Opener.close`."""
        with self._lock:
            self._closed = True


class DeviceOpener:
    """Opens a character device, again and again; waits while its other end is closed."""

    once = False

    def __init__(self, url: str, path: Path) -> None:
        self._url, self._path = url, path
        self._wake = Wake()

    @property
    def url(self) -> str:
        """See :attr:`Opener.url`."""
        return self._url

    def open(self) -> FileTransport:
        """See :meth:`Opener.open`."""
        try:
            wait(None, 0, self._wake, 0)
            fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except Woken:
            raise ChannelClosed(f"{self._url} is closed") from None
        except OSError as exc:
            raise ChannelError(f"cannot open {self._path}: {exc.strerror}") from exc
        try:
            self._prepare(fd)
        except BaseException:
            os.close(fd)
            raise
        end = _FileEnd(fd, PIPE_SIZE, may_block=False)
        return FileTransport(end, end, self._url)

    def close(self) -> None:
        """See :meth:`Opener.close`."""
        self._wake.set()

    def _prepare(self, fd: int) -> None:
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            raise ChannelError(f"{self._path} is no character device: use unix:// for a socket")
        if os.isatty(fd):
            _make_raw(self._path, fd)
            if wait(fd, select.POLLIN, self._wake, 0) & GONE:
                raise ChannelError(f"nobody holds the other end of {self._path}")
            return
        try:
            # Keep it open: to QEMU an open virtio port is a guest that is ready.
            while wait(fd, select.POLLIN | select.POLLOUT, self._wake, 0) & GONE:
                wait(None, 0, self._wake, RETRY)
        except Woken:
            raise ChannelClosed(f"{self._url} is closed") from None


def _make_raw(path: Path, fd: int) -> None:
    """No echo, no line editing, no translation: the bytes are not text."""
    try:
        tty.setraw(fd, termios.TCSANOW)
    except termios.error as exc:
        code: Any = exc.args[0]
        raise ChannelError(f"cannot set {path} raw: {os.strerror(code)}") from exc


def stdio_opener(url: str) -> OnceOpener:
    """The mux on standard input and output, which are taken away from everybody else at once.

    What the process prints from now on goes to standard error: a stray line
    must not get between the frames. Raises :class:`UsageError` on a terminal.
    """
    for fd, name in ((0, "input"), (1, "output")):
        try:
            if os.isatty(fd):
                raise UsageError(
                    f"standard {name} is a terminal: connect stdio: by a pipe, or run it over ssh"
                )
            os.fstat(fd)
        except OSError as exc:
            raise UsageError(f"standard {name} is closed: connect stdio: by a pipe") from exc
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return OnceOpener(url, lambda: FileTransport(_end(source, writing=False), _end(sink, writing=True), url))


def fd_opener(url: str, fd: int) -> OnceOpener:
    """An inherited descriptor, which becomes ours. Raises :class:`UsageError` if it is of no use."""
    try:
        mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as exc:
        raise UsageError(
            f"{url} is not open: pass it on when starting hvbridge, as in hvbridge … {fd}<>PATH"
        ) from exc
    if fd <= 2:
        raise UsageError(f"{url} is a standard stream: write stdio:, or pass a number above 2")
    if not stat.S_ISSOCK(mode) and flags & os.O_ACCMODE != os.O_RDWR:
        raise UsageError(f"{url} goes one way only: pass a socket, or a device open for reading and writing")
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise UsageError(f"{url} is a file on disk: pass a socket, or a device")
    os.set_inheritable(fd, False)
    return OnceOpener(url, lambda: _inherited(url, fd))


def _inherited(url: str, fd: int) -> FileTransport:
    if os.isatty(fd):
        _make_raw(Path(f"/dev/fd/{fd}"), fd)
    try:
        second = os.dup(fd)
        return FileTransport(_end(fd, writing=False), _end(second, writing=True), url)
    except OSError as exc:
        code = errno.errorcode.get(exc.errno or 0, "")
        raise ChannelError(f"{url}: {exc.strerror} ({code})") from exc
