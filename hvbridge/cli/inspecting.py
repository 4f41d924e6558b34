"""``hvbridge status`` and ``hvbridge doctor``: what is, and what is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from hvbridge import control, mounts
from hvbridge.cli.common import human_size, printable, verbose_option
from hvbridge.cli.unmounting import runtime_for
from hvbridge.config import MIB, Paths
from hvbridge.errors import HvbridgeError

MAX_NOTE = MIB
"""Bytes of a spool note that are read; real ones have 300."""


@click.command()
@click.argument("mountpoint", type=Path, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose_option
def status(mountpoint: Path | None, as_json: bool) -> int:
    """Show your mounts, or the one on MOUNTPOINT.

    Names the client, the traffic, files that are not uploaded yet, mounts whose
    bridge crashed, and content that a crashed bridge left in the spool.
    """
    if mountpoint is not None:
        found = {"mounts": [_one(mounts.canonical(mountpoint))], "dead": [], "left_over": []}
    else:
        found = _all(Paths())
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(describe(found))
    return 0


def _one(path: Path) -> dict[str, Any]:
    try:
        return control.ask_status(control.socket_path(runtime_for(path), path))
    except control.NoBridge as exc:
        there = mounts.mount_at(path)
        if there is not None and there.ours:
            raise HvbridgeError(
                f"the bridge of {path} is gone: clean up with hvbridge umount {path}"
            ) from exc
        raise HvbridgeError(f"{path} has no hvbridge that answers here") from exc


def _all(paths: Paths) -> dict[str, list[dict[str, Any]]]:
    live = []
    for path in control.sockets(paths.runtime):
        try:
            live.append(control.ask_status(path))
        except control.NoBridge:
            control.remove_stale(path)
        except HvbridgeError as exc:
            live.append({"mountpoint": None, "socket": str(path), "state": "unknown", "error": str(exc)})
    served = {state.get("mountpoint") for state in live}
    dead = [
        {"mountpoint": str(mount.mountpoint), "channel": mount.source}
        for mount in mounts.mounts()
        if mount.ours
        and mount.belongs_to(os.geteuid())
        and str(mount.mountpoint) not in served
        # A live one without a control socket here is some other program's.
        and mounts.is_dead(mount.mountpoint)
    ]
    pids = {state.get("pid") for state in live}
    return {"mounts": live, "dead": dead, "left_over": left_over(paths.state, pids)}


def left_over(state: Path, live_pids: set[Any]) -> list[dict[str, Any]]:
    """Content in the spool that belongs to no bridge that is alive, by path.

    Reads the notes ``<state>/spool/<mount-id>/<hex>.json``; one that cannot be
    read is reported, too, since its content may matter to somebody.
    """
    found = []
    for note in sorted((state / "spool").glob("*/*.json")):
        try:
            with note.open("rb") as file:
                entry = json.loads(file.read(MAX_NOTE))
            if entry["pid"] in live_pids:
                continue
            entry["spool"] = str(note.parent / Path(entry["data"]).name)
        except FileNotFoundError:
            continue  # uploaded meanwhile
        except (OSError, ValueError, TypeError, KeyError) as exc:
            entry = {"spool": str(note), "path": None, "error": f"note cannot be read: {exc}"}
        found.append(entry)
    return found


def describe(found: dict[str, list[dict[str, Any]]]) -> str:
    """The status for people."""
    lines = [line for state in found["mounts"] for line in _mount_lines(state)]
    for dead in found["dead"]:
        lines.append(f"{dead['mountpoint']}  dead: its bridge is gone")
        lines.append(f"  → hvbridge umount {dead['mountpoint']}")
    if found["left_over"]:
        lines.append("left over in the spool by bridges that are gone:")
        lines += [_file_line("", item) for item in found["left_over"]]
    return "\n".join(printable(line) for line in lines) or "no mounts"


def _mount_lines(state: dict[str, Any]) -> list[str]:
    if state.get("mountpoint") is None:
        return [f"{state.get('socket')}  does not answer: {state.get('error')}"]
    mode = "read-only" if state.get("read_only") else "read-write"
    client = state.get("client") or "no client"
    server = f" ({state['server']})" if state.get("client") and state.get("server") else ""
    traffic = f"{human_size(state.get('bytes_in') or 0)} in, {human_size(state.get('bytes_out') or 0)} out"
    cache = state.get("cache") or {}
    lines = [
        f"{state['mountpoint']}  {state.get('state')}, {mode}: {client}{server}",
        f"  channel  {state.get('channel')}",
        f"  since    {state.get('since')}, process {state.get('pid')}",
        f"  traffic  {traffic}, {state.get('streams')} streams",
        f"  cached   {human_size(cache.get('bytes') or 0)} in {cache.get('files') or 0} files, "
        f"{state.get('open_files')} files open",
    ]
    if state.get("last_error"):
        lines.append(f"  error    {state['last_error']}")
    failed = state.get("failed") or []
    lines += [_file_line("pending ", item) for item in state.get("pending") or [] if item not in failed]
    lines += [_file_line("failed  ", item) for item in failed]
    return lines


def _file_line(label: str, item: dict[str, Any]) -> str:
    size = human_size(item["size"]) if isinstance(item.get("size"), int) else "?"
    where = f"{item['mountpoint']}: " if item.get("mountpoint") else ""
    reason = f": {item['error']}" if item.get("error") else ""
    kept = f"; content in {item['spool']}" if item.get("spool") else ""
    return f"  {label} {where}{item.get('path')}  {size}, {item.get('state')}{reason}{kept}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose_option
def doctor(as_json: bool) -> int:
    """Say what this host lacks, and the command that mends it.

    The exit status is 0 if all that 'hvbridge mount' needs is there.
    """
    from hvbridge import doctor as checks
    from hvbridge.host import Host

    found = checks.examine(Host())
    if as_json:
        click.echo(json.dumps([check.as_dict() for check in found], indent=2))
    else:
        click.echo(checks.report(found))
    return 0 if checks.fit_for(found, "mount") else 1
