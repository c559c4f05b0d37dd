"""The files of a sweep: where they are, how they are read and written, and who may write them."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flawline import FlawlineError
from flawline.runtime.console import warn
from flawline.runtime.files import read_small, write_atomically

Row = dict[str, Any]

LARGEST_FILE = 64 << 20
# Trainings that a killed sweep has left behind end within this time.
LOCK_WAIT_S = 30.0
LOCK_POLL_S = 0.2


class SweepError(FlawlineError):
    """The sweep cannot start or continue."""


@dataclass(frozen=True)
class Store:
    """The folder of a sweep."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    def bundle(self, cell: str) -> Path:
        return self.root / "trained" / cell

    def checkpoint(self, cell: str) -> Path:
        return self._file("trained", cell, "pt")

    def facts(self, cell: str) -> Path:
        return self._file("trained", cell, "json")

    def log(self, stage: str, cell: str) -> Path:
        """The messages of a cell in a stage, which is the name of a folder."""
        return self._file(stage, cell, "log")

    def measured(self, cell: str) -> Path:
        return self._file("measured", cell, "json")

    def robustness(self, cell: str) -> Path:
        return self._file("robustness", cell, "json")

    def speed(self, data: str) -> Path:
        return self._file("speed", data, "json")

    def _file(self, folder: str, name: str, suffix: str) -> Path:
        # Not with_suffix: a name may have a dot of its own.
        return self.root / folder / f"{name}.{suffix}"


def write_json(path: Path, content: object) -> None:
    """Write a file atomically, and create its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None without a file, and for a damaged one with a warning.

    What a damaged file belongs to is then done again. Raises OSError for a file that exists and
    cannot be read.
    """
    content = _read(path)
    if content is None or isinstance(content, dict):
        return content
    _damaged(path, "no object")
    return None


def read_rows(path: Path) -> list[Row]:
    """Return the rows in a JSON file; none without a file, and for a damaged one with a warning."""
    content = _read(path)
    if content is None:
        return []
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return content
    _damaged(path, "no list of rows")
    return []


def _read(path: Path) -> Any:
    try:
        return json.loads(read_small(path, LARGEST_FILE))
    except FileNotFoundError:
        return None
    except ValueError as error:
        # Also invalid UTF-8.
        _damaged(path, str(error))
        return None


def _damaged(path: Path, reason: str) -> None:
    warn(f"warning: {path} is damaged ({reason}); it is made again")


@contextmanager
def only_one_sweep(store: Store) -> Iterator[IO[bytes]]:
    """Hold the lock of the folder, so that no two sweeps write the same files.

    Its file is given to the trainings, which hold the lock as well: those that a killed sweep has
    left behind must have ended before the same cells are trained again. Raises SweepError if
    another sweep has the lock.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / ".lock").open("wb") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _lock(file):
            if time.monotonic() > deadline:
                raise SweepError(
                    f"{store.root} is in use by another sweep; wait for its end, "
                    "or use another --out"
                )
            time.sleep(LOCK_POLL_S)
        yield file


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks.
        return True
    return True
