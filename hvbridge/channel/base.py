"""Where I/O plugs into the channel: two small interfaces.

A :class:`Transport` is *one* period of an open port: a byte pipe that carries
mux frames until it ends. An :class:`Opener` makes them, one after the other:
it connects, or waits for the next peer. Everything above (sessions, streams,
HTTP) is the same for a unix socket, a SPICE client or a pty.
"""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    """A byte pipe to the peer. One thread reads, any thread writes (serialised above)."""

    @property
    def description(self) -> str:
        """Who is at the other end, for people (``unix:///run/x.sock``, ``client 10.1.2.3``)."""
        ...

    def read(self, max_bytes: int) -> bytes:
        """Wait for bytes; ``b""`` when the port or the pipe ended, never an exception for that.

        Raises :class:`~hvbridge.errors.ProtocolError` where the peer broke the
        carrying protocol (SPICE).
        """
        ...

    def write(self, data: bytes, timeout: float) -> None:
        """Send all of ``data``, which is one or more whole frames.

        ``timeout``: seconds without progress after which the peer counts as
        gone. Raises :class:`~hvbridge.errors.ChannelError`; the transport is
        then useless, since a part of a frame may have left.
        """
        ...

    def close(self) -> None:
        """End it, from any thread; a :meth:`read` under way returns ``b""``. Idempotent."""
        ...


class Opener(Protocol):
    """Makes transports from a channel URL; used by one thread at a time."""

    @property
    def url(self) -> str:
        """The URL it was made from, without secrets."""
        ...

    @property
    def once(self) -> bool:
        """True where no second transport can come (``stdio:``, ``fd:``)."""
        ...

    def open(self) -> Transport:
        """Connect, or wait for a peer; blocks until then, or until :meth:`close`.

        Raises :class:`~hvbridge.errors.ChannelError` when it did not work this
        time (the caller backs off and tries again) or after :meth:`close`.
        """
        ...

    def close(self) -> None:
        """Stop for good, from any thread: release the listener, wake :meth:`open`. Idempotent."""
        ...
