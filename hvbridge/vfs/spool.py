"""The spool: content that was written here and that the client has not got yet.

Two files an upload in ``<state>/spool/<mount-id>/``: ``<hex>.data``, sparse, and
``<hex>.json``, which says whose content it is and what became of it. Both go
once the client has the file. What a crash or a failed upload leaves behind is
found by ``hvbridge status`` and never removed by itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from hvbridge.errors import NoSpace
from hvbridge.vfs.extents import Extents
from hvbridge.vfs.sparse import SparseFile

log = logging.getLogger(__name__)


class SpoolFile:
    """One file's local content: ``have`` says which bytes are valid, the rest is the base's."""

    def __init__(self, folder: Path, mountpoint: str, path: str) -> None:
        name = secrets.token_hex(8)
        self.data_path = folder / f"{name}.data"
        self._note_path = folder / f"{name}.json"
        self.file = SparseFile(folder, self.data_path)
        self.have = Extents()
        self._note: dict[str, Any] = {
            "path": path,
            "mountpoint": mountpoint,
            "pid": os.getpid(),
            "data": self.data_path.name,
            "created": int(time.time()),
            "size": 0,
            "state": "writing",
            "error": None,
        }
        try:
            self._save()
        except OSError as exc:
            self.remove()
            raise NoSpace(f"the host's spool: {exc.strerror}") from exc

    @property
    def state(self) -> str:
        """``writing``, ``uploading`` or ``failed``."""
        return str(self._note["state"])

    def describe(self) -> dict[str, Any]:
        """For ``hvbridge status``."""
        keys = ("path", "size", "state", "error")
        return {key: self._note[key] for key in keys} | {"spool": str(self.data_path)}

    def annotate(self, **changes: object) -> None:
        """Change the note, on disk too if there is room: an upload needs none, and must not fail for it."""
        self._note.update(changes)
        try:
            self._save()
        except OSError as exc:
            log.warning("the note of %s is not up to date: %s", self.data_path, exc.strerror)

    def _save(self) -> None:
        """Replace the note atomically."""
        temporary = self._note_path.with_suffix(".new")
        temporary.write_text(json.dumps(self._note))
        temporary.replace(self._note_path)

    def sync(self) -> None:
        """Make content and note durable on the host."""
        with contextlib.suppress(OSError):
            os.fdatasync(self.file.fd)

    def close(self) -> None:
        """Close, leaving both files where they are."""
        self.file.close()

    def remove(self) -> None:
        """The client has it (or nobody wants it): remove both files."""
        self.close()
        for path in (self._note_path, self.data_path):
            with contextlib.suppress(OSError):
                path.unlink()


def make_folder(state: Path, mount_id: str) -> Path:
    """The spool folder of one mount, private to its user. Raises :class:`NoSpace`."""
    folder = state / "spool" / mount_id
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise NoSpace(f"cannot make the spool {folder}: {exc.strerror}") from exc
    return folder
