"""What the checks read of a machine, which tests replace, and what the user asked about."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_S = 5.0  # seconds that a program of the system may take
LARGEST_FILE = 1 << 20  # bytes

# Takes the words of a command, and returns what it prints; None if it is missing or fails.
Run = Callable[[Sequence[str]], "str | None"]


def run_program(words: Sequence[str]) -> str | None:
    """Run a program of the system; return what it prints, or None if it is missing or fails."""
    # The texts of programs are in the language of the user otherwise.
    environ = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            env=environ,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True)
class Machine:
    """The files below `root`, the programs and the environment of a machine."""

    root: Path = Path("/")
    run: Run = run_program
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    architecture: str = field(default_factory=platform.machine)

    def path(self, name: str) -> Path:
        """Return the path of a file of the machine, such as "proc/meminfo"."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return the text of a small file; None if it is missing or cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                data = file.read(LARGEST_FILE)
        except OSError:
            return None
        # Files of a device tree end with a zero byte.
        return data.decode("utf-8", "replace").strip("\0\n ")

    def read_number(self, name: str) -> int | None:
        """Return the whole number that a file holds; None if it holds none."""
        try:
            return int(self.read(name) or "")
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[str]:
        """Return the names, without the root, of the files that match a pattern, sorted."""
        try:
            found = sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return [str(path.relative_to(self.root)) for path in found]

    @property
    def is_container(self) -> bool:
        """Whether this runs in a container, as far as that can be known."""
        marks = (".dockerenv", "run/.containerenv")
        return any(self.path(mark).exists() for mark in marks) or "container" in self.environ

    @property
    def jetson(self) -> str | None:
        """The model of a Jetson, such as "NVIDIA Jetson AGX Orin"; None for other machines."""
        model = self.read("proc/device-tree/model") or ""
        if "jetson" in model.lower():
            return model
        if self.path("etc/nv_tegra_release").exists():
            return model or "Jetson"
        return None


@dataclass(frozen=True)
class Subject:
    """What the user asked about: a bundle, the folder of its plans, and folders to write to.

    `server` is the address for engines that compute on one, and `station` a station file, which
    says what the others leave open.
    """

    bundle: Path | None = None
    cache: Path | None = None
    folders: tuple[Path, ...] = ()
    server: str | None = None
    station: Path | None = None
