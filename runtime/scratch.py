"""Hidden folders beside a file or a folder, each of which one process uses at a time.

They are locked while in use, so that what a killed process left is known from what is in use.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from flawline.runtime.console import warn

# What the folders are for: pictures of the live page, and folders that are being written.
PAGE, WORK = "page", "work"
LOCK = "lock"
# In a folder of WORK while folders change their names: what it has then may be needed.
EXCHANGING = "exchanging"
# The end of a name that `tempfile` made.
MADE = re.compile(r"[a-z0-9_]+")


class Scratch:
    """A hidden folder beside a path, on the same file system.

    Not in the folder for temporary files, which is in memory on many systems. Raises OSError.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=_prefix(path, kind), dir=path.parent))
        try:
            self._lock = _locked(self.folder)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def close(self, keep: bool = False) -> None:
        """Remove the folder, or leave it to another process, which finds it among `abandoned`."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _locked(folder: Path) -> int:
    """Return the descriptor of a locked file LOCK. Raises OSError."""
    # Under another name until it is locked: a process that looks for abandoned folders takes
    # one with an unlocked file for its own.
    making = folder / f"{LOCK}.new"
    descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        making.rename(folder / LOCK)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def abandoned(path: Path, kind: str) -> Iterator[list[Path]]:
    """Give the folders beside a path whose processes have ended, also those that were killed.

    They are locked in the block, and after it those are removed that are still in the list. If the
    block fails, all stay.
    """
    prefix = _prefix(path, kind)
    with ExitStack() as stack:
        folders = []
        for folder in sorted(path.parent.glob(f"{glob.escape(prefix)}*")):
            # The name of another path may begin with this prefix.
            if not MADE.fullmatch(folder.name.removeprefix(prefix)) or folder.is_symlink():
                continue
            # One without a lock is just being made.
            with suppress(OSError):
                descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folders.append(folder)
        yield folders
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def work_beside(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside a path, for what is moved there or tested first.

    Those that killed processes left beside the path are removed before, so that they take no space.
    It is removed after the block, unless it has a file EXCHANGING. Raises OSError.
    """
    with abandoned(path, WORK) as folders:
        for folder in list(folders):
            if (folder / EXCHANGING).exists():
                folders.remove(folder)
                warn(
                    f"warning: a process was killed while it put a folder in the place of {path}, "
                    f"and {folder} may have what was there before; look at it, and remove it"
                )
    scratch = Scratch(path, WORK)
    try:
        yield scratch.folder
    finally:
        scratch.close(keep=(scratch.folder / EXCHANGING).exists())


def _prefix(path: Path, kind: str) -> str:
    return f".{path.name}.{kind}-"
