"""A headless SPICE client that shares a folder; run by the system's Python, which has spice-gtk.

One argument: a JSON object with ``uri``, ``folder`` and perhaps ``read_only``,
``password``, ``tls_port``, ``ca_file``. Prints one JSON object a line for what
happens; a line on stdin is answered with ``idle`` once all events are dealt with.
Ends when stdin does (the parent's exit included).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import gi

gi.require_version("SpiceClientGLib", "2.0")
from gi.repository import GLib, GObject, SpiceClientGLib  # noqa: E402

Session, Channel = SpiceClientGLib.Session, SpiceClientGLib.Channel
# The classes' own ``connect`` methods shadow that of GObject.
connect_signal = GObject.Object.connect


# GLib prints its messages to stdout, too: that goes to stderr, and events keep a copy.
events = os.fdopen(os.dup(sys.stdout.fileno()), "w")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def say(event: str, **details: Any) -> None:
    print(json.dumps({"event": event, **details}), file=events, flush=True)


def name_of(channel: Any) -> str:
    return str(type(channel).__name__.removesuffix("Channel").lower())


def on_channel_event(channel: Any, event: Any) -> None:
    say("channel-event", channel=name_of(channel), what=event.value_nick)
    if event.value_nick.startswith("error"):
        error = channel.get_error()
        say("error", channel=name_of(channel), message=error.message if error is not None else "")


def on_port(channel: Any, _property: Any) -> None:
    say("port", opened=bool(channel.props.port_opened), name=channel.props.port_name)


def on_channel_new(_session: Any, channel: Any) -> None:
    say("channel-new", channel=name_of(channel))
    connect_signal(channel, "channel-event", on_channel_event)
    if name_of(channel) == "webdav":
        connect_signal(channel, "notify::port-opened", on_port)
    if name_of(channel) in ("main", "webdav"):
        Channel.connect(channel)


def make_session(options: dict[str, Any]) -> Any:
    session = Session()
    session.props.uri = options["uri"]
    session.props.shared_dir = options["folder"]
    session.props.share_dir_ro = bool(options.get("read_only"))
    if options.get("password") is not None:
        session.props.password = options["password"]
    if options.get("tls_port") is not None:
        session.props.tls_port = str(options["tls_port"])
    if options.get("ca_file") is not None:
        session.props.ca_file = options["ca_file"]
        session.props.verify = SpiceClientGLib.SessionVerify.HOSTNAME
    return session


def on_idle() -> bool:
    """Nothing is left to do at the moment."""
    say("idle")
    return False


def main() -> None:
    loop = GLib.MainLoop()
    session = make_session(json.loads(sys.argv[1]))
    connect_signal(session, "channel-new", on_channel_new)
    connect_signal(session, "disconnected", lambda _session: say("disconnected"))

    def on_stdin(_source: Any, _condition: Any) -> bool:
        if os.read(sys.stdin.fileno(), 1024):
            GLib.idle_add(on_idle, priority=GLib.PRIORITY_LOW + 1)
            return True
        Session.disconnect(session)
        GLib.idle_add(loop.quit)
        return False

    GLib.io_add_watch(sys.stdin.fileno(), GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, on_stdin)
    say("connecting", result=bool(Session.connect(session)))
    loop.run()


if __name__ == "__main__":
    main()
