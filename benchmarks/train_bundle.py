"""One training from images to a bundle, as a user would run it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from flawline.export import build, build_arguments
from flawline.runtime.signals import SIGNAL_CODE, Terminated
from flawline.train import TrainError

# Flags of `flawline build` that decide what is read and written here, or that build nothing.
SET_HERE = (
    "--data",
    "--out",
    "--seed",
    "--save-checkpoint",
    "--checkpoint",
    "--bundle",
    "--help",
    "-h",
)


def train_bundle(
    data: Path, seed: int, flags: Sequence[str], bundle: Path, checkpoint: Path
) -> float | None:
    """Train and export on one data set, with a fifth of the good images held out.

    `flags` go to `flawline build`. Returns the minutes that it took, or None when the build ended
    with an error, which it has reported itself. Raises TrainError for flags that are set here, and
    Terminated when a signal has ended it.
    """
    start = time.monotonic()
    require_not_set_here(flags)
    command = ["--data", str(data), "--out", str(bundle), "--seed", str(seed), "--folds", "0"]
    # The list of one of many trainings is of no use.
    command += ["--no-doubtful", *flags, "--save-checkpoint", str(checkpoint)]
    code = build.main(command)
    if code > SIGNAL_CODE:
        # A signal has ended the build, and must end what called it, too.
        raise Terminated(code - SIGNAL_CODE)
    if code != 0:
        return None
    return (time.monotonic() - start) / 60


def require_not_set_here(flags: Sequence[str], set_here: Sequence[str] = SET_HERE) -> None:
    """Raise TrainError for a flag of `set_here`: the last of two values would count."""
    for word in flags:
        flag = word.partition("=")[0]
        if flag in set_here:
            raise TrainError(f"{flag} is set by this command; leave it out")


def require_build_flags(flags: Sequence[str]) -> None:
    """Refuse flags that `flawline build` does not have, before work that comes ahead of a training.

    Ends the process as a parser does, and raises TrainError for a flag of another method.
    """
    build_arguments.parse(["--data", ".", *flags])
