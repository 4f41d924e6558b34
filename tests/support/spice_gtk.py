"""The real SPICE client, spice-gtk with phodav, as a context manager."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pytest

PYTHON = "/usr/bin/python3"
"""The system's, since gi's typelibs belong to it."""

SCRIPT = Path(__file__).with_name("spice_gtk_main.py")

Event = dict[str, Any]


def missing() -> str | None:
    """Why spice-gtk cannot be used here; ``None`` if it can."""
    probe = (
        "import gi; gi.require_version('SpiceClientGLib', '2.0'); from gi.repository import SpiceClientGLib"
    )
    try:
        found = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, timeout=30)
    except OSError as exc:
        return f"{PYTHON}: {exc.strerror}"
    return None if found.returncode == 0 else "spice-gtk is missing: apt install gir1.2-spiceclientglib-2.0"


def require() -> None:
    """Skip the test where spice-gtk is missing; in CI (``CI`` is set) that is a failure."""
    if (reason := missing()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class SpiceClient:
    """A client process that connects to ``uri`` and shares ``folder``.

    ``uri``: ``spice://host:port``. ``ca_file``: connect with TLS to that port
    and demand a certificate of this authority for the host's name. The process
    ends with the ``with`` block.
    """

    def __init__(
        self,
        uri: str,
        folder: Path | str,
        read_only: bool = False,
        password: str | None = None,
        ca_file: Path | str | None = None,
    ) -> None:
        self.events: list[Event] = []
        """What the client reported, oldest first; grows from another thread."""
        where = urlsplit(uri)
        self._options: dict[str, Any] = {
            "uri": f"spice://{where.hostname}:{where.port}",
            "folder": str(folder),
            "read_only": read_only,
            "password": password,
        }
        if ca_file is not None:
            self._options |= {
                "uri": f"spice://{where.hostname}?tls-port={where.port}",
                "tls_port": where.port,
                "ca_file": str(ca_file),
            }
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> SpiceClient:
        self._process = subprocess.Popen(
            [PYTHON, str(SCRIPT), json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A proxy or a desktop session of the one who runs the tests has no say in them.
            env={k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "PYTHONPATH"},
        )
        self._reader = threading.Thread(target=self._read, name="spice-gtk", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    @property
    def pid(self) -> int:
        """The client's process id."""
        assert self._process is not None
        return self._process.pid

    def wait_for(self, wanted: Callable[[Event], bool], timeout: float = 15.0) -> Event:
        """The first event that is ``wanted``, past ones included; fails after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            seen = 0
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise AssertionError(f"not within {timeout:g} s; the client reported {self.events}")

    def wait_port_open(self, timeout: float = 15.0) -> None:
        """Until the client says that its webdav port is open."""
        self.wait_for(lambda event: event["event"] == "port" and event["opened"], timeout)

    def wait_channel_event(self, channel: str, what: str, timeout: float = 15.0) -> Event:
        """Until ``channel`` (``main``, ``webdav``) reported ``what`` (``opened``, ``error-auth``…)."""
        return self.wait_for(
            lambda event: (
                event["event"] == "channel-event" and (event["channel"], event["what"]) == (channel, what)
            ),
            timeout,
        )

    def settle(self, timeout: float = 15.0) -> None:
        """Until the client has dealt with all that has reached it: its files are as they stay."""
        assert self._process is not None
        assert self._process.stdin is not None
        for _ in range(2):  # what one event leads to may be another
            before = sum(event["event"] == "idle" for event in self.events)
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            self.wait_for(
                lambda _event, before=before: (  # type: ignore[misc]
                    sum(event["event"] == "idle" for event in self.events) > before
                ),
                timeout,
            )

    def leave(self, timeout: float = 10.0) -> None:
        """Disconnect in good order and end; killed if that takes longer than ``timeout`` seconds."""
        if (process := self._process) is None or process.stdin is None or process.stdout is None:
            return
        if not process.stdin.closed:
            process.stdin.close()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._reader is not None:
            self._reader.join(timeout)
        process.stdout.close()

    def kill(self) -> None:
        """Kill it (SIGKILL), as a crash would, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
