"""The one error tree.

::

    HvbridgeError                    something hvbridge can say in one line
    ├── UsageError                   the operator's argument; exit status 2
    ├── ChannelError                 the byte pipe to the sharing side
    │   ├── ProtocolError            the peer broke the protocol (its fault)
    │   ├── ChannelClosed            the port or the transport ended
    │   ├── ChannelTimeout           nothing came, or nothing left, in time
    │   └── LocalProtocolError       we called something out of turn (our fault)
    └── FsError                      what a filesystem operation can fail with
        ├── NotFound, Exists, IsDirectory, NotDirectory, NotEmpty
        ├── AccessDenied, ReadOnly, NotPermitted, NoSpace, TooLarge, TooManyFiles
        ├── InvalidName, NameTooLong, InvalidArgument, BadHandle
        ├── Unsupported, Locked
        ├── Changed                  the file changed on the client meanwhile
        ├── Offline                  no client is connected
        ├── TimedOut                 the client did not answer in time
        └── IOFailed                 the client answered nonsense, or an error
            └── ConnectionLost       the channel went in the middle: try again, or look
                └── SessionChanged   another client came: nothing was sent

Only :mod:`hvbridge.fuse` turns these into errno; only the CLI turns them into
exit statuses. Exceptions of libraries are translated once, at the boundary
where they appear, with ``raise … from exc``.
"""

from __future__ import annotations


class HvbridgeError(Exception):
    """Base of all errors; ``str()`` is one line that names the mend."""

    exit_code = 1


class UsageError(HvbridgeError):
    """An argument of the operator cannot be used as given."""

    exit_code = 2


class ChannelError(HvbridgeError):
    """The channel to the sharing side failed."""


class ProtocolError(ChannelError):
    """The peer sent what the protocol does not allow."""


class LocalProtocolError(ChannelError):
    """Our own side called a protocol object out of turn."""


class ChannelClosed(ChannelError):
    """The port is closed, or the transport under it ended."""


class ChannelTimeout(ChannelError):
    """A deadline passed while waiting for the peer."""


class FsError(HvbridgeError):
    """A filesystem operation failed; ``path`` is where, relative to the share."""

    def __init__(self, message: str = "", path: str | None = None) -> None:
        super().__init__(message or type(self).__name__)
        self.path = path

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}: {self.path!r}" if self.path is not None else text


class NotFound(FsError):
    """No such file or folder."""


class Exists(FsError):
    """The name is taken."""


class IsDirectory(FsError):
    """A folder stands where a file is needed."""


class NotDirectory(FsError):
    """A file stands where a folder is needed."""


class NotEmpty(FsError):
    """The folder has entries."""


class AccessDenied(FsError):
    """The client refuses (403, 401)."""


class ReadOnly(FsError):
    """The mount or the share is read-only."""


class NotPermitted(FsError):
    """The operation exists in POSIX and has no counterpart on a share."""


class NoSpace(FsError):
    """The client's disk (507) or the host's spool is full."""


class TooLarge(FsError):
    """Over a limit of the host."""


class TooManyFiles(FsError):
    """More open files than the mount allows."""


class InvalidName(FsError):
    """A name that the share cannot carry (not UTF-8)."""


class NameTooLong(FsError):
    """A name over 255 bytes."""


class InvalidArgument(FsError):
    """An argument that POSIX calls EINVAL."""


class BadHandle(FsError):
    """The handle is closed, or was not opened for this."""


class Unsupported(FsError):
    """Not implemented by a share at all."""


class Locked(FsError):
    """Somebody holds a WebDAV lock on it (423)."""


class Changed(FsError):
    """The file changed on the client while it was being read or edited here."""


class Offline(FsError):
    """No client is connected, or it left and the grace period passed."""


class TimedOut(FsError):
    """The client is connected and did not answer in time."""


class IOFailed(FsError):
    """The client's answer was an error or nonsense."""


class ConnectionLost(IOFailed):
    """The channel ended under a request: whether it took effect is unknown."""


class SessionChanged(ConnectionLost):
    """The request was meant for a client that left, and was not sent to the one that came."""
