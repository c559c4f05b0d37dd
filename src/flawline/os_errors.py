"""The remedy of an operating system error, which every message about a file ends with."""

from __future__ import annotations

import errno

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason_of(error: OSError) -> str:
    """Return what the operating system reports, for example "Permission denied"."""
    return error.strerror or str(error) or type(error).__name__


def remedy_of(error: OSError, flag: str | None = None) -> str:
    """Say what the user can do about an error of the operating system.

    `flag` is the command-line flag that names the file, if there is one.
    """
    if error.errno in ABSENT:
        remedy = "check the path"
    elif error.errno in FORBIDDEN:
        remedy = "check the permissions"
    elif error.errno in FULL:
        remedy = "free disk space"
    else:
        remedy = "check the path, its permissions and the free disk space"
    if flag is None:
        return remedy
    return f"{remedy}, or choose another {flag}"
