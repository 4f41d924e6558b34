"""One function that opens any channel."""

from __future__ import annotations

from pathlib import Path

from hvbridge.channel.base import Opener
from hvbridge.channel.files import DeviceOpener, fd_opener, stdio_opener
from hvbridge.channel.sockets import tcp_listen_opener, tcp_opener, unix_listen_opener, unix_opener
from hvbridge.channel.url import (
    ChannelURL,
    ChardevURL,
    FdURL,
    SpiceListenURL,
    StdioURL,
    TcpListenURL,
    TcpURL,
    UnixListenURL,
    UnixURL,
    parse,
)
from hvbridge.errors import UsageError

SECRET_BYTES = 4096
"""Bytes that a password file may hold."""


def open_channel(url: ChannelURL | str) -> Opener:
    """The opener for a channel URL. Listeners are bound when this returns.

    Raises :class:`UsageError` where the URL cannot be used as it is,
    :class:`~hvbridge.errors.ChannelError` where an address is taken.
    """
    if isinstance(url, str):
        url = parse(url)
    match url:
        case UnixURL(path):
            return unix_opener(str(url), path)
        case UnixListenURL(path, mode):
            return unix_listen_opener(str(url), path, mode)
        case TcpURL(host, port):
            return tcp_opener(str(url), host, port)
        case TcpListenURL(host, port):
            return tcp_listen_opener("tcp-listen", host, port)
        case SpiceListenURL():
            return _spice_listen(url)
        case ChardevURL(path):
            return DeviceOpener(str(url), path)
        case StdioURL():
            return stdio_opener(str(url))
        case FdURL(fd):
            return fd_opener(str(url), fd)
    raise UsageError(f"{url} is plain WebDAV, which has no mux: only mount takes it")


def read_password(path: Path) -> str:
    """The first line of a password file.

    Raises :class:`UsageError` if there is none, or if others could read it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_BYTES)
            mode = path.stat().st_mode
    except OSError as exc:
        raise UsageError(f"cannot read the password file {path}: {exc.strerror}") from exc
    if mode & 0o004:
        raise UsageError(f"everybody can read the password file {path}: chmod 600 {path}")
    try:
        password = data.split(b"\n", 1)[0].rstrip(b"\r").decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"the password file {path} is not UTF-8: write the password as text") from exc
    if not password:
        raise UsageError(f"the password file {path} is empty: write the password as its first line")
    return password


def _spice_listen(url: SpiceListenURL) -> Opener:
    # The SPICE endpoint brings cryptography: only who listens pays for the import.
    from hvbridge.channel.spice_listen import SpiceListenOpener

    for file in (url.tls_cert, url.tls_key):
        if file is not None and not file.is_file():
            raise UsageError(f"{file} does not exist: create it, or name another file")
    password = read_password(url.password_file) if url.password_file is not None else None
    return SpiceListenOpener(
        url.host, url.port, password=password, tls_cert=url.tls_cert, tls_key=url.tls_key
    )
