"""One line on a terminal that says what is still to be uploaded."""

from __future__ import annotations

from typing import Any, TextIO

from hvbridge.cli.common import human_size, printable


class ProgressLine:
    """Shows the progress of a stop on ``stream`` if that is a terminal; silent otherwise."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = False

    def __call__(self, state: dict[str, Any]) -> None:
        """``state``: see :func:`summary`."""
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{summary(state)}")
            self._stream.flush()
            self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False


def summary(state: dict[str, Any], width: int = 78) -> str:
    """What ``state["pending"]`` (as in a bridge's status) comes to, in one short line."""
    pending = [item for item in state.get("pending") or [] if isinstance(item, dict)]
    if not pending:
        return "unmounting"
    size = sum(item["size"] for item in pending if isinstance(item.get("size"), int))
    files = "1 file" if len(pending) == 1 else f"{len(pending)} files"
    return printable(f"uploading {files}, {human_size(size)}: {pending[0].get('path')}")[:width]
