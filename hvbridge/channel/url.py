"""Channel URLs: text to frozen values and back, without I/O.

==============================  =====================================================
``unix:///path``                connect to a unix socket
``unix-listen:///path``         listen on one; ``?mode=0660`` sets its permissions
``tcp://host:port``             connect
``tcp-listen://host:port``      listen; port 0 takes a free one
``spice-listen://host:port``    a SPICE endpoint of our own;
                                ``?tls-cert=F&tls-key=F&password-file=F``
``chardev:///dev/…``            a pty or a virtio port
``stdio:``                      the mux on standard input and output
``fd:N``                        an inherited file descriptor
``http://host:port/path``       plain WebDAV, without a mux (also ``https://``);
                                ``user@`` with ``?password-file=F``
==============================  =====================================================

Percent-encoding (RFC 3986) holds in paths and options, IPv6 literals stand in
brackets. A password is never part of a URL, since URLs are seen in process
lists and logs.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

from hvbridge.errors import UsageError

SUN_PATH = 107
"""Bytes in the path of a unix socket: ``sun_path`` (unix(7)) less its NUL."""

_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[^:]*))?")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_MODE = re.compile(r"0?[0-7]{3}")


class ChannelURL:
    """Base of all channel URLs; ``str()`` is the URL again and holds no secret."""

    __slots__ = ()

    @property
    def is_plain(self) -> bool:
        """True for HTTP without a mux: nothing for :func:`~hvbridge.channel.opening.open_channel`."""
        return False


@dataclass(frozen=True, slots=True)
class UnixURL(ChannelURL):
    """Connect to the unix socket at ``path``."""

    path: Path

    def __str__(self) -> str:
        return f"unix://{_path_text(self.path)}"


@dataclass(frozen=True, slots=True)
class UnixListenURL(ChannelURL):
    """Listen on a unix socket at ``path`` with permission bits ``mode``."""

    path: Path
    mode: int = 0o600

    def __str__(self) -> str:
        options = "" if self.mode == 0o600 else f"?mode={self.mode:04o}"
        return f"unix-listen://{_path_text(self.path)}{options}"


@dataclass(frozen=True, slots=True)
class TcpURL(ChannelURL):
    """Connect to ``host``:``port``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{_authority_text(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class TcpListenURL(ChannelURL):
    """Listen on ``host``:``port``; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp-listen://{_authority_text(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class SpiceListenURL(ChannelURL):
    """A SPICE endpoint on ``host``:``port``, with TLS if both files are named."""

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None
    password_file: Path | None = None

    def __str__(self) -> str:
        options = {"tls-cert": self.tls_cert, "tls-key": self.tls_key, "password-file": self.password_file}
        return f"spice-listen://{_authority_text(self.host, self.port)}{_options_text(options)}"


@dataclass(frozen=True, slots=True)
class ChardevURL(ChannelURL):
    """A character device: a pty, a virtio port."""

    path: Path

    def __str__(self) -> str:
        return f"chardev://{_path_text(self.path)}"


@dataclass(frozen=True, slots=True)
class StdioURL(ChannelURL):
    """Standard input and output."""

    def __str__(self) -> str:
        return "stdio:"


@dataclass(frozen=True, slots=True)
class FdURL(ChannelURL):
    """An inherited file descriptor, readable and writable."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class HttpURL(ChannelURL):
    """A WebDAV server by plain HTTP; ``path`` stays percent-encoded as it was given."""

    scheme: str
    host: str
    port: int
    path: str = "/"
    user: str | None = None
    password_file: Path | None = None

    @property
    def is_plain(self) -> bool:
        """Always true."""
        return True

    @property
    def base(self) -> str:
        """What an HTTP client takes: without user and options."""
        return f"{self.scheme}://{_authority_text(self.host, self.port)}{self.path}"

    def __str__(self) -> str:
        user = "" if self.user is None else quote(self.user, safe="") + "@"
        options = _options_text({"password-file": self.password_file})
        return f"{self.scheme}://{user}{_authority_text(self.host, self.port)}{self.path}{options}"


def parse(text: str) -> ChannelURL:
    """The value of a channel URL; :class:`UsageError` says in one line what to write instead."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in _PARSERS:
        known = ", ".join(_FORMS[name] for name in _PARSERS)
        raise UsageError(f"no channel is called {_shown(text)!r}: write one of {known}")
    if "#" in rest:
        _refuse(scheme, "'#' has no meaning here: write it as %23 in a name")
    body, _, query = rest.partition("?")
    return _PARSERS[scheme](scheme, body, _options(scheme, query))


# --- one parser a scheme ------------------------------------------------


class _Options(dict[str, str]):
    """Options not used yet; what a parser does not take is an error."""


def _unix(scheme: str, body: str, options: _Options) -> ChannelURL:
    path = _socket_path(scheme, body)
    _no_more(scheme, options)
    return UnixURL(path)


def _unix_listen(scheme: str, body: str, options: _Options) -> ChannelURL:
    path = _socket_path(scheme, body)
    mode = options.pop("mode", "0600")
    if not _MODE.fullmatch(mode):
        _refuse(scheme, f"mode={mode} is no permission: write three octal digits, as in mode=0660")
    _no_more(scheme, options)
    return UnixListenURL(path, int(mode, 8))


def _tcp(scheme: str, body: str, options: _Options) -> ChannelURL:
    host, port = _host_port(scheme, body)
    if port == 0:
        _refuse(scheme, "port 0 cannot be connected to: write the peer's port")
    _no_tls(scheme, options)
    _no_more(scheme, options)
    return TcpURL(host, port)


def _tcp_listen(scheme: str, body: str, options: _Options) -> ChannelURL:
    host, port = _host_port(scheme, body)
    _no_tls(scheme, options)
    _no_more(scheme, options)
    return TcpListenURL(host, port)


def _spice_listen(scheme: str, body: str, options: _Options) -> ChannelURL:
    host, port = _host_port(scheme, body)
    cert, key = _file(scheme, options, "tls-cert"), _file(scheme, options, "tls-key")
    password = _file(scheme, options, "password-file")
    if (cert is None) != (key is None):
        _refuse(scheme, "tls-cert and tls-key belong together: name both files, or none")
    _no_more(scheme, options)
    return SpiceListenURL(host, port, cert, key, password)


def _chardev(scheme: str, body: str, options: _Options) -> ChannelURL:
    path = _path(scheme, body)
    _no_more(scheme, options)
    return ChardevURL(path)


def _stdio(scheme: str, body: str, options: _Options) -> ChannelURL:
    if body not in ("", "//"):
        _refuse(scheme, "nothing follows it: write stdio:")
    _no_more(scheme, options)
    return StdioURL()


def _fd(scheme: str, body: str, options: _Options) -> ChannelURL:
    if not re.fullmatch(r"[0-9]{1,7}", body):
        _refuse(scheme, f"{body!r} is no file descriptor: write fd:N with a number, as in fd:3")
    _no_more(scheme, options)
    return FdURL(int(body))


def _http(scheme: str, body: str, options: _Options) -> ChannelURL:
    if not body.startswith("//"):
        _refuse(scheme, f"write {_FORMS[scheme]}")
    authority, slash, path = body[2:].partition("/")
    userinfo, at, hostport = authority.rpartition("@")
    if ":" in userinfo:
        _refuse(scheme, "a password in the URL would be seen by others: write user@ and ?password-file=FILE")
    if at and not userinfo:
        _refuse(scheme, "no user stands before the '@'")
    host, port = _authority(scheme, hostport, 443 if scheme == "https" else 80)
    if port == 0:
        _refuse(scheme, "port 0 cannot be connected to: write the server's port")
    if re.search(r"[^!-~]", path) or re.search(r"%(?![0-9A-Fa-f]{2})", path):
        _refuse(scheme, "the path holds characters that a URL cannot: percent-encode them, a space as %20")
    password = _file(scheme, options, "password-file")
    if password is not None and not at:
        _refuse(scheme, "password-file needs a user: write user@ before the host")
    _no_more(scheme, options)
    return HttpURL(scheme, host, port, slash + path or "/", unquote(userinfo) if at else None, password)


_PARSERS: dict[str, Callable[[str, str, _Options], ChannelURL]] = {
    "unix": _unix,
    "unix-listen": _unix_listen,
    "tcp": _tcp,
    "tcp-listen": _tcp_listen,
    "spice-listen": _spice_listen,
    "chardev": _chardev,
    "stdio": _stdio,
    "fd": _fd,
    "http": _http,
    "https": _http,
}

_FORMS = {
    "unix": "unix:///path",
    "unix-listen": "unix-listen:///path",
    "tcp": "tcp://host:port",
    "tcp-listen": "tcp-listen://host:port",
    "spice-listen": "spice-listen://host:port",
    "chardev": "chardev:///dev/…",
    "stdio": "stdio:",
    "fd": "fd:N",
    "http": "http://host:port/path",
    "https": "https://host:port/path",
}


# --- parts --------------------------------------------------------------


def _refuse(scheme: str, why: str) -> NoReturn:
    raise UsageError(f"channel {_FORMS[scheme]}: {why}")


def _shown(text: str) -> str:
    """A text that is no channel URL, short and without what may be a password."""
    text = re.sub(r"//[^/@]*@", "//…@", re.sub(r"\?.*", "?…", text, flags=re.DOTALL))
    return text if len(text) <= 60 else text[:60] + "…"


def _unquote(scheme: str, text: str, what: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        _refuse(scheme, f"{what} is not UTF-8 after percent-decoding")
    if "\0" in plain:
        _refuse(scheme, f"{what} holds a NUL byte")
    return plain


def _options(scheme: str, query: str) -> _Options:
    options = _Options()
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if name == "password":
            _refuse(scheme, "a password in the URL would be seen by others: write password-file=FILE")
        if not equals or not value:
            _refuse(scheme, f"option {name!r} needs a value: write {name}=…")
        if name in options:
            _refuse(scheme, f"option {name!r} stands there twice: keep one")
        options[name] = _unquote(scheme, value, f"option {name!r}")
    return options


def _no_more(scheme: str, options: _Options) -> None:
    for name in options:
        _refuse(scheme, f"unknown option {name!r}: leave it out")


def _no_tls(scheme: str, options: _Options) -> None:
    if "tls-cert" in options or "tls-key" in options:
        _refuse(scheme, "no TLS here: use spice-listen://, or carry stdio: over ssh")


def _path(scheme: str, body: str) -> Path:
    path = body[2:] if body.startswith("//") else body
    if not path.startswith("/"):
        _refuse(scheme, f"{path!r} is not absolute: write {scheme}:///absolute/path")
    plain = _unquote(scheme, path, "the path")
    if plain.endswith("/"):
        _refuse(scheme, "the path ends with '/': name the file itself")
    return Path(plain)


def _socket_path(scheme: str, body: str) -> Path:
    path = _path(scheme, body)
    if len(bytes(path)) > SUN_PATH:
        _refuse(scheme, f"a unix socket's path has at most {SUN_PATH} bytes: choose a shorter one")
    return path


def _file(scheme: str, options: _Options, name: str) -> Path | None:
    value = options.pop(name, None)
    if value is None:
        return None
    if not value.startswith("/"):
        _refuse(scheme, f"{name}={value} is not absolute: write {name}=/absolute/path")
    return Path(value)


def _host_port(scheme: str, body: str) -> tuple[str, int]:
    if not body.startswith("//"):
        _refuse(scheme, f"write {_FORMS[scheme]}")
    return _authority(scheme, body[2:].removesuffix("/"), None)


def _authority(scheme: str, text: str, default_port: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        _refuse(scheme, f"{text!r} is not host:port (an IPv6 address stands in brackets, as in [::1]:5900)")
    return _host(scheme, match), _port(scheme, match["port"], default_port)


def _host(scheme: str, match: re.Match[str]) -> str:
    if match["v6"] is not None:
        try:
            return str(ipaddress.IPv6Address(unquote(match["v6"])))
        except ValueError:
            _refuse(scheme, f"[{match['v6']}] is not an IPv6 address")
    host = match["host"]
    if not host:
        _refuse(scheme, "no host: write 127.0.0.1 for this machine alone, [::] for all of its addresses")
    if not _HOST.fullmatch(host):
        _refuse(scheme, f"{host!r} is no host name")
    return host


def _port(scheme: str, text: str | None, default: int | None) -> int:
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        _refuse(scheme, f"{text or ''!r} is no port: write a number up to 65535 after the host")
    return int(text)


def _path_text(path: Path) -> str:
    return quote(str(path), safe="/")


def _authority_text(host: str, port: int) -> str:
    shown = f"[{host.replace('%', '%25')}]" if ":" in host else host
    return f"{shown}:{port}"


def _options_text(options: dict[str, Path | None]) -> str:
    given = [f"{name}={_path_text(value)}" for name, value in options.items() if value is not None]
    return "?" + "&".join(given) if given else ""
