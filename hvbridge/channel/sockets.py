"""Channels over sockets: ``unix``, ``unix-listen``, ``tcp``, ``tcp-listen``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvbridge.channel.session import spawn
from hvbridge.channel.waiting import Wake, Woken, wait
from hvbridge.errors import ChannelClosed, ChannelError, ChannelTimeout, UsageError

log = logging.getLogger(__name__)

CONNECT = 10.0
"""Seconds that one address may take to answer a connect."""

UNIX_BUFFER = 1 << 20
"""Bytes asked for a unix socket's buffers; the kernel gives what ``wmem_max`` allows.
More would only delay what comes behind it. TCP's are left alone: a fixed size would
end the kernel's own tuning."""

LOOK = 0.1
"""Seconds between tries to send while poll(2) says no: it says yes only when a large
part of the buffer is free again, and a slow line may need minutes for that."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
"""A peer that vanished without a word counts as gone after 40 s."""

Address = tuple[socket.AddressFamily, Any]


class SocketTransport:
    """A connected stream socket; see :class:`~hvbridge.channel.base.Transport`."""

    def __init__(self, sock: socket.socket, description: str) -> None:
        self._sock = sock
        self._description = description
        self._closing = threading.Lock()
        self._closed = False
        # The descriptor is closed only while neither is held: its number may
        # become another file's at once, and a thread must not meet that.
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        _tune(sock)

    @property
    def description(self) -> str:
        """Who is at the other end."""
        return self._description

    @property
    def hung_up(self) -> bool:
        """True if it was closed here, or the peer has gone (whatever is still to be read)."""
        with self._closing:
            if self._closed:
                return True
            poll = select.poll()
            poll.register(self._sock, select.POLLRDHUP)
            return bool(poll.poll(0))

    def read(self, max_bytes: int) -> bytes:
        """See :meth:`Transport.read`."""
        with self._reading:
            while not self._closed:
                try:
                    return self._sock.recv(max_bytes)
                except OSError as exc:
                    log.debug("%s: %s", self._description, exc)
                    return b""
        return b""

    def write(self, data: bytes, timeout: float) -> None:
        """See :meth:`Transport.write`."""
        view = memoryview(data)
        progress = time.monotonic()
        with self._writing:
            while view:
                if self._closed:
                    raise ChannelClosed(f"{self._description} is closed")
                if sent := self._send(view, timeout):
                    view = view[sent:]
                    progress = time.monotonic()
                elif time.monotonic() - progress >= timeout:
                    raise ChannelTimeout(f"{self._description} took nothing for {timeout:g} s")

    def close(self) -> None:
        """See :meth:`Transport.close`."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes recv and poll
        with self._reading, self._writing:
            self._sock.close()

    def _send(self, view: memoryview, timeout: float) -> int:
        """Bytes that went out: 0 after a moment in which none could."""
        try:
            return self._sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            poll.poll(int(min(timeout, LOOK) * 1000))
            return 0
        except OSError as exc:
            raise ChannelClosed(f"{self._description}: {exc.strerror}") from exc


class ConnectOpener:
    """Connects to one of the ``addresses`` (asked anew each time: names move)."""

    once = False

    def __init__(self, url: str, addresses: Callable[[], list[Address]]) -> None:
        self._url, self._addresses = url, addresses
        self._wake = Wake()

    @property
    def url(self) -> str:
        """See :attr:`Opener.url`."""
        return self._url

    def open(self) -> SocketTransport:
        """See :meth:`Opener.open`."""
        problem = "no address"
        for family, address in self._addresses():
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._connect(sock, address)
            except OSError as exc:
                sock.close()
                problem = exc.strerror or str(exc)
            except Woken:
                sock.close()
                raise ChannelClosed(f"{self._url} is closed") from None
            else:
                sock.setblocking(True)
                return SocketTransport(sock, self._url)
        raise ChannelError(f"cannot connect to {self._url}: {problem}")

    def close(self) -> None:
        """See :meth:`Opener.close`."""
        self._wake.set()

    def _connect(self, sock: socket.socket, address: Any) -> None:
        wait(None, 0, self._wake, 0)  # raises if closed already
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            if not wait(sock.fileno(), select.POLLOUT, self._wake, CONNECT):
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {CONNECT:g} s")
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))


class ListenOpener:
    """Takes one peer at a time from a listening socket; a second one is closed at once.

    A peer that comes while the last one's end has not been noticed yet is kept:
    it is the same client, back within milliseconds. ``cleanup`` runs at the close.
    """

    once = False

    def __init__(
        self,
        url: str,
        sock: socket.socket,
        describe: Callable[[socket.socket, Any], str],
        cleanup: Callable[[], None] = lambda: None,
    ) -> None:
        self._url, self._sock, self._describe, self._cleanup = url, sock, describe, cleanup
        self._wake = Wake()
        self._changed = threading.Condition()
        self._current: SocketTransport | None = None
        self._next: SocketTransport | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """With the port that was taken, if 0 was asked for."""
        return self._url

    def open(self) -> SocketTransport:
        """See :meth:`Opener.open`."""
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = spawn("hvbridge-listen", self._accept_all)
            self._changed.wait_for(lambda: self._closed or self._next is not None)
            if self._closed or self._next is None:
                raise ChannelClosed(f"{self._url} is closed")
            self._current, self._next = self._next, None
            return self._current

    def close(self) -> None:
        """See :meth:`Opener.close`."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waiting, self._next = self._next, None
            self._changed.notify_all()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._sock.close()
        self._cleanup()
        if waiting is not None:
            waiting.close()

    def _accept_all(self) -> None:
        while True:
            try:
                wait(self._sock.fileno(), select.POLLIN, self._wake, None)
                sock, address = self._sock.accept()
            except Woken:
                return
            except OSError as exc:
                # The peer left before it was accepted, or there are no descriptors left.
                log.warning("%s: accept: %s", self._url, exc.strerror)
                with contextlib.suppress(Woken):
                    wait(None, 0, self._wake, 0.1)
                continue
            sock.setblocking(True)
            self._offer(SocketTransport(sock, self._describe(sock, address)))

    def _offer(self, peer: SocketTransport) -> None:
        with self._changed:
            if self._next is not None and self._next.hung_up:
                self._next.close()
                self._next = None
            busy = self._next or (self._current if self._current and not self._current.hung_up else None)
            if busy is None and not self._closed:
                self._next = peer
                self._changed.notify_all()
                return
        if busy is not None:
            log.warning("%s: turned away, %s is connected", peer.description, busy.description)
        peer.close()


# --- openers by kind ----------------------------------------------------


def unix_opener(url: str, path: Path) -> ConnectOpener:
    """For ``unix:///path``."""
    return ConnectOpener(url, lambda: [(socket.AF_UNIX, str(path))])


def unix_listen_opener(url: str, path: Path, mode: int) -> ListenOpener:
    """For ``unix-listen:///path``: bound when this returns, removed at the close.

    Raises :class:`UsageError` where the path cannot be used, :class:`ChannelError`
    where somebody listens there already.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind_unix(sock, path)
        path.chmod(mode)  # nobody can connect before listen()
        ours = path.stat()
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)

    def remove() -> None:
        with contextlib.suppress(OSError):
            now = path.lstat()
            if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
                path.unlink()

    return ListenOpener(url, sock, lambda peer, _address: f"{url} ({_credentials(peer)})", remove)


def tcp_opener(url: str, host: str, port: int) -> ConnectOpener:
    """For ``tcp://host:port``."""
    return ConnectOpener(url, lambda: _resolve(url, host, port))


def tcp_listen_opener(scheme: str, host: str, port: int) -> ListenOpener:
    """For ``tcp-listen://host:port``: bound when this returns, on the name's first address."""
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}:{port}"
    family, address = _resolve(url, host, port)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1)
    except OSError as exc:
        sock.close()
        raise ChannelError(f"cannot listen on {url}: {exc.strerror}: choose another address or port") from exc
    sock.setblocking(False)
    url = f"{scheme}://{shown}:{sock.getsockname()[1]}"
    return ListenOpener(url, sock, lambda _peer, address: f"client {address[0]} port {address[1]}")


def _bind_unix(sock: socket.socket, path: Path) -> None:
    for last in (False, True):
        try:
            sock.bind(str(path))
            return
        except FileNotFoundError as exc:
            raise UsageError(f"cannot listen on {path}: create the folder {path.parent} first") from exc
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or last:
                raise UsageError(f"cannot listen on {path}: {exc.strerror}: choose another path") from exc
        _remove_stale(path)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on (its owner died); raise if it is anything else."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise UsageError(f"{path} exists and is no socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise ChannelError(f"somebody listens on {path} already: stop it, or choose another path")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _resolve(url: str, host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ChannelError(f"{url}: cannot find {host}: {exc.strerror}") from exc
    return [(family, address) for family, _type, _proto, _name, address in found]


def _credentials(sock: socket.socket) -> str:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return f"pid {pid}, uid {uid}"


def _tune(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, UNIX_BUFFER)
    elif sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
