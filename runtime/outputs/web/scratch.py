"""Hidden folders beside a bundle, each of which one process uses at a time."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

LOCK = "lock"


class Scratch:
    """A hidden folder beside a bundle, for pictures and for what is made of them.

    Not in the folder for temporary files, which is in memory on many systems. Raises OSError.
    """

    def __init__(self, bundle: Path) -> None:
        bundle = bundle.resolve()
        self.folder = Path(tempfile.mkdtemp(prefix=_prefix(bundle), dir=bundle.parent))
        try:
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def close(self, keep: bool = False) -> None:
        """Remove the folder, or leave it to another process, which finds it among `abandoned`."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def abandoned(bundle: Path) -> Iterator[list[Path]]:
    """Give the folders beside a bundle whose processes have ended, also those that were killed.

    They are locked in the block, and removed after it. If the block fails, they stay.
    """
    bundle = bundle.resolve()
    with ExitStack() as stack:
        folders = []
        for folder in sorted(bundle.parent.glob(f"{glob.escape(_prefix(bundle))}*")):
            # One without a lock is just being made.
            with suppress(OSError):
                descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folders.append(folder)
        yield folders
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(bundle: Path) -> str:
    return f".{bundle.name}.page-"
