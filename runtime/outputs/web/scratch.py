"""Folders beside a bundle that last as long as the process that uses them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

LOCK = "lock"


class Scratch:
    """A hidden folder beside a bundle, for pictures and for what is made of them.

    Not in the folder for temporary files, which is in memory on many systems. Folders that other
    processes left behind when they were killed are removed: no one holds their locks. Raises
    OSError.
    """

    def __init__(self, bundle: Path) -> None:
        bundle = bundle.resolve()
        prefix = f".{bundle.name}.page-"
        _remove_abandoned(bundle.parent, prefix)
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=bundle.parent))
        try:
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        # One without a lock is just being made.
        with suppress(OSError):
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
