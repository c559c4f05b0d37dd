"""Small file systems in memory, which root may mount."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size, such as "200k", on a new folder; skip where not allowed."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs the command mount")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"needs root to mount a file system ({made.stderr.strip()})")
    try:
        yield folder
    finally:
        # Lazily: an output that failed may have a file open.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Use up the space of a disk; return the file that holds it."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for block in (4096, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                continue
    return path
