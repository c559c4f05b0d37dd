"""The commands of Flawline, and how a message writes a command that can be copied into a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "flawline"


@dataclass(frozen=True)
class Command:
    """A command: "module:function", which takes the arguments and returns the exit status."""

    target: str
    summary: str


COMMANDS = {
    "train": Command("flawline.train.fit:main", "train a detector on images of good parts"),
    "build": Command(
        "flawline.export.build:main", "export a detector to a bundle, prepare this machine's engine"
    ),
    "choose": Command(
        "flawline.export.choose:main", "rank the methods that fit a time per frame on this machine"
    ),
    "stream": Command(
        "flawline.runtime.infer_stream:main", "judge every frame of a camera, folder or video"
    ),
    "calibrate": Command(
        "flawline.runtime.calibrate:main", "set the threshold on the box from good parts"
    ),
    "teach": Command(
        "flawline.runtime.teach:main", "teach a detector on the box from good parts, without torch"
    ),
    "masters": Command(
        "flawline.runtime.masters.__main__:main", "check that known parts are judged as known"
    ),
    "recipe": Command(
        "flawline.runtime.station.recipe:main", "change the recipe of a station while it runs"
    ),
    "audit": Command(
        "flawline.runtime.audit.__main__:main", "check the log of who changed a bundle or a recipe"
    ),
    "sign": Command(
        "flawline.runtime.signing.__main__:main", "sign a bundle, so that a box accepts no other"
    ),
    "station": Command(
        "flawline.runtime.station.service.__main__:main", "set up a station as a service of systemd"
    ),
    "doctor": Command(
        "flawline.runtime.doctor.__main__:main", "check this machine, and say what to do"
    ),
    "bench": Command("flawline.benchmarks.run:main", "measure speed and accuracy of bundles"),
    "sweep": Command(
        "flawline.benchmarks.sweep.__main__:main",
        "train and measure methods, backbones, data sets and engines",
    ),
    "report": Command(
        "flawline.benchmarks.bundle_report.__main__:main",
        "write an HTML report of a bundle's verdicts",
    ),
    "triton": Command("flawline.export.triton:main", "write a model repository for NVIDIA Triton"),
    "demo": Command("flawline.benchmarks.demo:main", "run every step on built-in data"),
}


def program_of(command: str) -> str:
    """Return the name of a command in its help and messages, such as "flawline train"."""
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not one of {', '.join(COMMANDS)}")
    return f"{PROGRAM} {command}"


def command_line(command: str, *words: str | Path) -> str:
    """Return a command with its arguments, quoted for a shell, as it works on this machine.

    A virtual environment that is not active has no `flawline` on the search path, or another one;
    the command is then run with the interpreter of this process.
    """
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not one of {', '.join(COMMANDS)}")
    start = [PROGRAM] if _is_on_search_path() else [sys.executable, "-m", PROGRAM]
    return shell_line([*start, command, *words])


def command_line_elsewhere(command: str, *words: str | Path) -> str:
    """Return a command for another machine, where this interpreter does not exist."""
    return shell_line([*program_of(command).split(), *words])


def shell_line(words: Sequence[str | Path]) -> str:
    """Return words quoted for a shell and joined by spaces."""
    return shlex.join([str(word) for word in words])


def _is_on_search_path() -> bool:
    """Whether the shell finds the program that was installed with this interpreter."""
    found = shutil.which(PROGRAM)
    if found is None:
        return False
    return os.path.samefile(Path(found).parent, Path(sys.executable).parent)
