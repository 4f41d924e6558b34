"""The sharing side: what a SPICE client does with its folder, without SPICE."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from hvbridge.channel.base import Opener
from hvbridge.channel.channel import Channel, State
from hvbridge.channel.session import Session, Stream
from hvbridge.errors import ChannelError, UsageError
from hvbridge.share.app import Application
from hvbridge.share.connection import DavServer, StreamServer
from hvbridge.spice.mux import Role

log = logging.getLogger(__name__)

FAREWELL = 5.0
"""Seconds that requests under way may take to notice the end of their channel."""


class Share:
    """Serves ``directory`` to whoever opens streams on the channel.

    The channel is the authentication. ``on_event`` gets one line of text for
    each change of the channel and each request; it is called from several
    threads. Raises :class:`UsageError` if ``directory`` is none.
    """

    def __init__(
        self,
        directory: Path,
        opener: Opener,
        *,
        read_only: bool = False,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        _check_directory(directory)
        self._on_event = on_event or (lambda text: None)
        app = Application(directory, read_only=read_only, on_request=self._request)
        self._server = StreamServer(app)
        self._channel = Channel(opener, Role.SHARE, on_state=self._state)
        self._serving: set[threading.Thread] = set()
        self._changed = threading.Condition()

    @property
    def channel(self) -> Channel:
        """The channel, for its state and its counters."""
        return self._channel

    def run(self) -> None:
        """Serve until the channel has ended for good: by :meth:`close`, or as ``stdio:`` does."""
        self._channel.start()
        self._channel.wait_state(State.CLOSED, threading.TIMEOUT_MAX)
        deadline = time.monotonic() + FAREWELL
        with self._changed:
            self._changed.wait_for(lambda: not self._serving, max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the channel, from any thread; :meth:`run` returns. Idempotent."""
        self._channel.close()

    def _state(self, state: State) -> None:
        if state is State.OPEN:
            try:
                session = self._channel.session(0)
            except ChannelError:
                return  # gone already
            self._on_event(f"connected: {session.transport.description}")
            self._spawn("hvbridge-accept", lambda: self._accept(session))
        else:
            self._on_event(f"{state.value}: {self._channel.opener.url}")

    def _accept(self, session: Session) -> None:
        while (stream := session.accept()) is not None:
            self._start(stream)

    def _start(self, stream: Stream) -> None:
        self._spawn(f"hvbridge-serve-{stream.id}", lambda: self._server.answer(stream))

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._serving.discard(thread)
                    self._changed.notify_all()

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._changed:
            self._serving.add(thread)
        thread.start()

    def _request(self, method: str, path: str, status: str) -> None:
        self._on_event(f"{method} {path!r}: {status}")


class HttpShare:
    """The same share as plain HTTP on a loopback port, for ``http://`` channels and tests.

    Anybody on this machine can reach it. Use as a context manager.
    """

    def __init__(
        self, directory: Path, *, host: str = "127.0.0.1", port: int = 0, read_only: bool = False
    ) -> None:
        _check_directory(directory)
        self.app = Application(directory, read_only=read_only)
        self._server = DavServer((host, port), self.app, numthreads=8, max=64, timeout=60, shutdown_timeout=1)
        self._server.keep_alive_conn_limit = 64
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT/``."""
        host, port = self._server.bind_addr[:2]
        return f"http://{host}:{port}/"

    def __enter__(self) -> HttpShare:
        self._server.prepare()
        self._thread = threading.Thread(target=self._server.serve, name="hvbridge-http", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        if self._thread is not None:
            self._thread.join(5)


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise UsageError(f"{directory} is no folder: create it, or name another one")
