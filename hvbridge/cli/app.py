"""The command group, and the one place where errors become exit statuses."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence

import click

import hvbridge
from hvbridge.cli.common import Verbosity, printable, verbose_option
from hvbridge.cli.inspecting import doctor, status
from hvbridge.cli.mounting import mount
from hvbridge.cli.sharing import demo, share
from hvbridge.cli.unmounting import umount
from hvbridge.errors import HvbridgeError

EPILOG = """\b
Examples:
  hvbridge doctor
  hvbridge mount unix:///run/guest-webdav.sock ~/client --read-only
  hvbridge mount spice-listen://127.0.0.1:5930 /srv/client
  hvbridge share ~/Public unix-listen:///tmp/channel.sock
  hvbridge status --json
  hvbridge umount /srv/client

\b
Exit statuses:
  0  done
  1  it did not work, or not everything was uploaded: one line on stderr says which
  2  an argument cannot be used as given

'hvbridge COMMAND --help' tells more; so does man 1 hvbridge.
"""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=SETTINGS, epilog=EPILOG)
@click.version_option(hvbridge.__version__, "-V", "--version", prog_name="hvbridge")
@verbose_option
def cli() -> None:
    """Mount the folder that a SPICE client shares.

    The client of a remote desktop can share a folder over SPICE's WebDAV channel.
    hvbridge takes that channel on the host and mounts the folder with FUSE.
    """


for command in (mount, umount, status, share, doctor, demo):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; an error is one line on stderr."""
    verbosity = Verbosity()
    try:
        result = cli.main(
            None if arguments is None else list(arguments),
            prog_name="hvbridge",
            standalone_mode=False,
            obj=verbosity,
        )
        return result if isinstance(result, int) else 0
    except click.ClickException as exc:
        return _usage(exc)
    except HvbridgeError as exc:
        return _fail(str(exc), exc.exit_code, exc, verbosity)
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except BrokenPipeError:  # our reader (a pager, head) went away
        return 128 + signal.SIGPIPE
    except Exception as exc:  # noqa: BLE001 - a bug of ours: still one line, the rest on demand
        what = f"{type(exc).__name__}: {exc}"
        return _fail(f"unexpected {what} (run again with -vv for the traceback)", 1, exc, verbosity)


def _fail(text: str, status: int, exc: Exception, verbosity: Verbosity) -> int:
    if verbosity.level >= 2:
        traceback.print_exception(exc)
    print(f"hvbridge: {printable(text)}", file=sys.stderr)
    return status


def _usage(exc: click.ClickException) -> int:
    print(f"hvbridge: {printable(exc.format_message())}", file=sys.stderr)
    if isinstance(exc, click.UsageError) and exc.ctx is not None:
        print(f"Try '{exc.ctx.command_path} --help'.", file=sys.stderr)
    return exc.exit_code
