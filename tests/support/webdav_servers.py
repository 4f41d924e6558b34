"""Real WebDAV servers on free loopback ports, each as a context manager, over TCP and over the mux."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hvbridge.channel.channel import Channel, State
from hvbridge.channel.session import Stream, spawn
from hvbridge.channel.sockets import SocketTransport
from hvbridge.channel.spice_listen import SpiceListenOpener
from hvbridge.config import Limits
from hvbridge.errors import ChannelClosed, ChannelError
from hvbridge.share.server import HttpShare, Share
from hvbridge.spice.mux import Role
from hvbridge.webdav.remote import WebdavRemote, connect_remote
from tests.support.spice_gtk import SpiceClient

START = 20.0
"""Seconds that a server may take to listen."""

CLIENT = 0x100000
"""Bytes that a relay moves at once."""


@dataclass(frozen=True)
class Served:
    """A folder and the remote that reaches it."""

    name: str
    folder: Path
    remote: WebdavRemote


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(argv: list[str], port: int, log: Path) -> Iterator[None]:
    """A server process, from when it listens on ``port`` to its end."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START
        while True:
            assert process.poll() is None, f"{argv[0]} ended: {log.read_text(errors='replace')}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, f"{argv[0]} does not listen: {log.read_text()}"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


APACHE = """
ServerRoot "{work}"
ServerName localhost
Listen 127.0.0.1:{port}
PidFile "{work}/pid"
Mutex pthread
User www-data
Group www-data
ErrorLog "{work}/error.log"
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule setenvif_module {modules}/mod_setenvif.so
LoadModule dir_module {modules}/mod_dir.so
LoadModule dav_module {modules}/mod_dav.so
LoadModule dav_fs_module {modules}/mod_dav_fs.so
DocumentRoot "{folder}"
DAVLockDB "{work}/locks"
AllowEncodedSlashes On
<Directory "{folder}">
  DAV On
  Require all granted
</Directory>
"""

NGINX = """
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
daemon off;
master_process off;
pid {work}/pid;
error_log {work}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    dav_methods PUT DELETE MKCOL COPY MOVE;
    dav_ext_methods PROPFIND OPTIONS;
  }}
}}
"""

WSGIDAV = """
import sys
from cheroot import wsgi
from wsgidav.wsgidav_app import WsgiDAVApp
app = WsgiDAVApp({{
    "provider_mapping": {{"/": {folder!r}}}, "simple_dc": {{"user_mapping": {{"*": True}}}},
    "logging": {{"enable": False}}, "verbose": 1, "lock_storage": True,
}})
wsgi.Server(("127.0.0.1", {port}), app, numthreads=8).start()
"""


@contextlib.contextmanager
def apache(folder: Path, work: Path) -> Iterator[str]:
    """Apache's mod_dav; as root it serves as ``www-data``."""
    port = free_port()
    if os.geteuid() == 0:
        for path in (folder, work):
            shutil.chown(path, "www-data")
    config = work / "apache.conf"
    config.write_text(APACHE.format(work=work, port=port, folder=folder, modules="/usr/lib/apache2/modules"))
    with running(["/usr/sbin/apache2", "-X", "-f", str(config)], port, work / "log"):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def nginx(folder: Path, work: Path) -> Iterator[str]:
    """nginx with its dav and dav-ext modules."""
    port = free_port()
    config = work / "nginx.conf"
    config.write_text(NGINX.format(work=work, port=port, folder=folder))
    with running(["/usr/sbin/nginx", "-c", str(config), "-e", f"{work}/early.log"], port, work / "log"):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def rclone(folder: Path, work: Path) -> Iterator[str]:
    """``rclone serve webdav``."""
    port = free_port()
    argv = ["rclone", "serve", "webdav", str(folder), "--addr", f"127.0.0.1:{port}"]
    argv += ["--config", "/dev/null", "--dir-cache-time", "0s", "--vfs-cache-mode", "off"]
    with running(argv, port, work / "log"):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def wsgidav(folder: Path, work: Path) -> Iterator[str]:
    """WsgiDAV as it comes, in cheroot."""
    port = free_port()
    script = WSGIDAV.format(folder=str(folder), port=port)
    with running([sys.executable, "-c", script], port, work / "log"):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def share(folder: Path, work: Path) -> Iterator[str]:
    """hvbridge's own sharing side, over TCP."""
    with HttpShare(folder) as server:
        yield server.url


TCP_SERVERS: dict[str, Callable[[Path, Path], contextlib.AbstractContextManager[str]]] = {
    "apache": apache,
    "nginx": nginx,
    "rclone": rclone,
    "wsgidav": wsgidav,
    "share": share,
}


# --- the mux ------------------------------------------------------------


class PairOpener:
    """One end of a socket pair as a channel that opens once."""

    once = True

    def __init__(self, sock: socket.socket) -> None:
        self._transport: SocketTransport | None = SocketTransport(sock, "socketpair")

    @property
    def url(self) -> str:
        """A name for logs."""
        return "fd:pair"

    def open(self) -> SocketTransport:
        """The transport, the first time."""
        transport, self._transport = self._transport, None
        if transport is None:
            raise ChannelClosed("the pair was used up")
        return transport

    def close(self) -> None:
        """Nothing waits here."""


def opener_pair() -> tuple[PairOpener, PairOpener]:
    """Two ends of one channel."""
    left, right = socket.socketpair()
    return PairOpener(left), PairOpener(right)


class Relay:
    """The sharing end of a channel that connects each stream to a TCP port, as a SPICE client does."""

    def __init__(self, opener: PairOpener, port: int) -> None:
        self._port = port
        self._channel = Channel(opener, Role.SHARE, on_state=self._state)

    def __enter__(self) -> Relay:
        self._channel.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def _state(self, state: State) -> None:
        if state is State.OPEN:
            session = self._channel.session(0)
            spawn("relay-accept", lambda: self._accept(session.accept))

    def _accept(self, accept: Callable[[], Stream | None]) -> None:
        while (stream := accept()) is not None:
            sock = socket.create_connection(("127.0.0.1", self._port), 10)
            sock.settimeout(60)
            spawn("relay-up", functools.partial(self._up, stream, sock))
            spawn("relay-down", functools.partial(self._down, stream, sock))

    def _up(self, stream: Stream, sock: socket.socket) -> None:
        with contextlib.suppress(ChannelError, OSError):
            while data := stream.read(CLIENT, None):
                sock.sendall(data)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _down(self, stream: Stream, sock: socket.socket) -> None:
        with contextlib.suppress(ChannelError, OSError):
            while data := sock.recv(CLIENT):
                stream.write(data)
        stream.close()
        sock.close()


@contextlib.contextmanager
def host_channel(opener: PairOpener | SpiceListenOpener) -> Iterator[Channel]:
    """The host's end of a channel, open."""
    channel = Channel(opener, Role.HOST)
    channel.start()
    try:
        assert channel.wait_state(State.OPEN, START), channel.last_error
        yield channel
    finally:
        channel.close()


@contextlib.contextmanager
def over_tcp(name: str, folder: Path, work: Path, limits: Limits | None = None) -> Iterator[Served]:
    """The server ``name`` by ``http://``."""
    with TCP_SERVERS[name](folder, work) as url:
        remote = connect_remote(None, url, limits)
        with contextlib.closing(remote):
            yield Served(name, folder, remote)


@contextlib.contextmanager
def over_mux(name: str, folder: Path, work: Path, limits: Limits | None = None) -> Iterator[Served]:
    """The server ``name`` behind the mux."""
    if name == "phodav":
        with phodav(folder, limits=limits) as served:
            yield served
        return
    near, far = opener_pair()
    with contextlib.ExitStack() as stack:
        if name == "share":
            sharing = Share(folder, far)
            thread = threading.Thread(target=sharing.run, daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(sharing.close)
        else:
            url = stack.enter_context(TCP_SERVERS[name](folder, work))
            stack.enter_context(Relay(far, int(url.rstrip("/").rpartition(":")[2])))
        channel = stack.enter_context(host_channel(near))
        remote = stack.enter_context(contextlib.closing(connect_remote(channel, limits=limits)))
        yield Served(name, folder, remote)


@contextlib.contextmanager
def phodav(folder: Path, *, read_only: bool = False, limits: Limits | None = None) -> Iterator[Served]:
    """A real SPICE client, spice-gtk with phodav, that shares ``folder``."""
    opener = SpiceListenOpener("127.0.0.1", 0)
    with contextlib.ExitStack() as stack:
        stack.callback(opener.close)
        uri = f"spice://127.0.0.1:{opener.port}"
        stack.enter_context(SpiceClient(uri, folder, read_only=read_only))
        channel = stack.enter_context(host_channel(opener))
        remote = stack.enter_context(contextlib.closing(connect_remote(channel, limits=limits)))
        yield Served("phodav", folder, remote)
