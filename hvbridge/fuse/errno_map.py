"""The one place where errors become errno."""

from __future__ import annotations

import errno

from hvbridge import errors as e

ERRNO: dict[type[e.FsError], int] = {
    e.NotFound: errno.ENOENT,
    e.Exists: errno.EEXIST,
    e.IsDirectory: errno.EISDIR,
    e.NotDirectory: errno.ENOTDIR,
    e.NotEmpty: errno.ENOTEMPTY,
    e.AccessDenied: errno.EACCES,
    e.ReadOnly: errno.EROFS,
    # What vfat answers to symlink, link and mknod: cp, rsync, tar and git cope with it.
    e.NotPermitted: errno.EPERM,
    e.NoSpace: errno.ENOSPC,
    e.TooLarge: errno.EFBIG,
    e.TooManyFiles: errno.ENFILE,
    e.InvalidName: errno.EILSEQ,
    e.NameTooLong: errno.ENAMETOOLONG,
    e.InvalidArgument: errno.EINVAL,
    e.BadHandle: errno.EBADF,
    e.Unsupported: errno.ENOTSUP,
    e.Locked: errno.EAGAIN,
    # Not ENOTCONN: that is what a mount says whose bridge has died.
    e.Offline: errno.EHOSTDOWN,
    e.TimedOut: errno.ETIMEDOUT,
    # ESTALE would make the kernel ask again; a torn read must fail, and stay failed.
    e.Changed: errno.EIO,
    e.IOFailed: errno.EIO,
}


def errno_of(error: e.FsError) -> int:
    """The errno of an error, by the nearest class in its ancestry; EIO by default."""
    for cls in type(error).__mro__:
        if cls in ERRNO:
            return ERRNO[cls]
    return errno.EIO
