"""A small SPICE client for tests, written against the protocol and not against hvbridge's codecs.

:class:`ClientEnd` is sans-IO; :class:`SocketClient` puts one on a socket.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable
from types import TracebackType

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

MAIN, WEBDAV = (1, 0), (11, 0)
AUTH_SELECTION, AUTH_SPICE, MINI_HEADER = 1, 2, 8
ALL_CAPS = AUTH_SELECTION | AUTH_SPICE | MINI_HEADER

SET_ACK, PING, DATA, MAIN_INIT, CHANNELS_LIST, PORT_INIT = 3, 4, 101, 103, 104, 201
C_ACK_SYNC, C_ACK, C_PONG, C_DISCONNECTING, C_DATA, C_ATTACH, C_PORT_EVENT = 1, 2, 3, 6, 101, 104, 201


def link_request(
    channel: tuple[int, int] = MAIN, connection_id: int = 0, common: int = ALL_CAPS, major: int = 2
) -> bytes:
    """SpiceLinkHeader and SpiceLinkMess."""
    mess = struct.pack("<IBBIII", connection_id, *channel, 1, 1, 18) + struct.pack("<II", common, 0)
    return struct.pack("<4sIII", b"REDQ", major, 2, len(mess)) + mess


def encrypt(public_key: bytes, password: bytes) -> bytes:
    """SpiceLinkEncryptedTicket."""
    key = load_der_public_key(public_key)
    assert isinstance(key, rsa.RSAPublicKey)
    return key.encrypt(password + b"\0", padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None))


class ClientEnd:
    """The client's end of one connection: :meth:`receive` bytes, send what :attr:`out` gathers."""

    def __init__(
        self,
        channel: tuple[int, int] = MAIN,
        connection_id: int = 0,
        password: bytes = b"",
        common: int = ALL_CAPS,
        *,
        acks: bool = True,
        pongs: bool = True,
    ) -> None:
        self.out = bytearray(link_request(channel, connection_id, common))
        self.error: int | None = None
        """The code in the link reply."""
        self.result: int | None = None
        """The code after the ticket."""
        self.public_key = b""
        self.messages: list[tuple[int, bytes]] = []
        """Type and body of all messages since the link."""
        self._common, self._password = common, password
        self._acks, self._pongs = acks, pongs
        self._window = self._unacked = self._serial = 0
        self._in = bytearray()
        self._step: Callable[[], bool] = self._reply

    @property
    def linked(self) -> bool:
        return self.result == 0

    @property
    def session_id(self) -> int | None:
        """From MAIN_INIT, once it came."""
        for kind, body in self.messages:
            if kind == MAIN_INIT:
                return int(struct.unpack_from("<I", body)[0])
        return None

    @property
    def data(self) -> bytes:
        """All DATA so far, joined."""
        return b"".join(body for kind, body in self.messages if kind == DATA)

    def send(self, kind: int, body: bytes = b"") -> None:
        """One message."""
        if self._mini:
            self.out += struct.pack("<HI", kind, len(body)) + body
        else:
            self._serial += 1
            self.out += struct.pack("<QHII", self._serial, kind, len(body), 0) + body

    def receive(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._in += data
        while self._step():
            pass

    @property
    def _mini(self) -> bool:
        return bool(self._common & MINI_HEADER)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._in[:size])
        del self._in[:size]
        return taken

    def _reply(self) -> bool:
        if len(self._in) < 16:
            return False
        magic, major, _minor, size = struct.unpack_from("<4sIII", self._in)
        assert (magic, major) == (b"REDQ", 2)
        if len(self._in) < 16 + size:
            return False
        body = self._take(16 + size)[16:]
        self.error, self.public_key, n_common, n_channel, offset = struct.unpack_from("<I162sIII", body)
        assert size == offset + 4 * (n_common + n_channel)
        if self.error == 0:
            (common,) = struct.unpack_from("<I", body, offset)
            assert common == ALL_CAPS
            if self._common & AUTH_SELECTION:
                self.out += struct.pack("<I", 1)
            self.out += encrypt(self.public_key, self._password)
        self._step = self._result
        return True

    def _result(self) -> bool:
        if len(self._in) < 4:
            return False
        (self.result,) = struct.unpack("<I", self._take(4))
        self._step = self._message
        return True

    def _message(self) -> bool:
        layout = "<HI" if self._mini else "<QHII"
        size = struct.calcsize(layout)
        if len(self._in) < size:
            return False
        fields = struct.unpack_from(layout, self._in)
        kind, length = fields[:2] if self._mini else fields[1:3]
        if len(self._in) < size + length:
            return False
        self._handle(kind, self._take(size + length)[size:])
        return True

    def _handle(self, kind: int, body: bytes) -> None:
        self.messages.append((kind, body))
        if self._window and self._acks:
            self._unacked += 1
            if self._unacked == self._window:
                self.send(C_ACK)
                self._unacked = 0
        if kind == SET_ACK:
            generation, self._window = struct.unpack("<II", body)
            self._unacked = 0
            self.send(C_ACK_SYNC, struct.pack("<I", generation))
        elif kind == PING and self._pongs:
            self.send(C_PONG, body)


class SocketClient:
    """A :class:`ClientEnd` on a connection to ``127.0.0.1:port``; waits end after ``timeout`` seconds."""

    def __init__(
        self, port: int, end: ClientEnd, *, tls: ssl.SSLContext | None = None, timeout: float = 10.0
    ) -> None:
        self.end = end
        self.timeout = timeout
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="127.0.0.1")

    def __enter__(self) -> SocketClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def flush(self) -> None:
        data = bytes(self.end.out)
        self.end.out.clear()
        self.sock.sendall(data)

    def until(self, done: Callable[[], bool]) -> None:
        """Exchange bytes until ``done()``; fails if the server closes or is silent first."""
        deadline = time.monotonic() + self.timeout
        self.flush()
        while not done():
            assert time.monotonic() < deadline, "the server did not do it in time"
            data = self.sock.recv(1 << 20)
            assert data, f"the server closed; error {self.end.error}, result {self.end.result}"
            self.end.receive(data)
            self.flush()

    def until_result(self) -> None:
        """Run the link stage to its end, whatever that is."""
        self.until(lambda: self.end.error not in (None, 0) or self.end.result is not None)

    def until_closed(self) -> None:
        """Exchange bytes until the server ends the connection."""
        try:
            self.flush()
            while data := self.sock.recv(1 << 20):
                self.end.receive(data)
                self.flush()
        except (ConnectionError, ssl.SSLError):
            pass
