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
from flawline.benchmarks.sweep.shapes import FACTS, ROW
from flawline.runtime.console import first_line, warn
from flawline.runtime.files import read_small, write_atomically
from flawline.runtime.json_shapes import Shape, misfit

Row = dict[str, Any]

LARGEST_FILE = 64 << 20
# Trainings that a killed sweep has left behind end within this time.
LOCK_WAIT_S = 30.0
LOCK_POLL_S = 0.2


class SweepError(FlawlineError):
    """The sweep cannot start or continue."""


class DamagedFileError(SweepError):
    """A file holds something else than what a sweep wrote."""


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


def read_json(path: Path, shape: Shape) -> Any:
    """Return the content of a JSON file of this shape; None without a file.

    Raises DamagedFileError for any other content, and OSError for a file that exists and cannot be
    read.
    """
    try:
        content = json.loads(read_small(path, LARGEST_FILE))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        # Also invalid UTF-8.
        raise DamagedFileError(f"{path} is damaged ({first_line(error)})") from error
    reason = misfit(content, shape)
    if reason is not None:
        raise DamagedFileError(f"{path} is damaged ({reason})")
    return content


def read_record(path: Path, shape: Shape = FACTS) -> dict[str, Any] | None:
    """Return the object in a JSON file; None without a file, and for a damaged one with a warning.

    What a damaged file belongs to is then done again. Raises OSError for a file that exists and
    cannot be read.
    """
    record: dict[str, Any] | None = _read_or_warn(path, shape)
    return record


def read_rows(path: Path, shape: Shape = ROW) -> list[Row]:
    """Return the rows in a JSON file; none without a file, and for a damaged one with a warning."""
    rows: list[Row] = _read_or_warn(path, [shape]) or []
    return rows


def _read_or_warn(path: Path, shape: Shape) -> Any:
    try:
        return read_json(path, shape)
    except DamagedFileError as error:
        warn(f"warning: {error}; it is made again")
        return None


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
