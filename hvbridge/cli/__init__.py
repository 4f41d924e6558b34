"""The command line: arguments to calls, errors to one line and an exit status."""

from hvbridge.cli.app import main

__all__ = ["main"]
