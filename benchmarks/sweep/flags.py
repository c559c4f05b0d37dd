"""The flags of `flawline build` that a sweep is given for single methods."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr

from flawline.benchmarks.sweep.store import SweepError
from flawline.benchmarks.train_bundle import SET_HERE
from flawline.export.build_arguments import parse
from flawline.runtime.console import first_line
from flawline.train import METHODS, TrainError

# Flags of `flawline build` that the sweep sets, and its own flags for the same.
OWN_FLAGS = {
    "--data": "--data",
    "--seed": "--seeds",
    "--method": "--methods",
    "--backbone": "--backbones",
    "--weights": "--weights",
    "--engine": "--engines",
    "--precision": "--engines",
    "--threads": "--threads",
}
# Without a counterpart: every training holds out a fifth, which also sets the threshold of pixels.
SET_BY_SWEEP = (*SET_HERE, "--folds")


def parse_flags(texts: Sequence[str]) -> dict[str, str]:
    """Return the flags of each method from texts METHOD=FLAGS. Raises SweepError."""
    flags = {}
    for text in texts:
        method, equals, words = text.partition("=")
        if not equals:
            raise SweepError(f'--flags {text!r} is not METHOD="FLAGS"')
        flags[method] = words
    return flags


def check_flags(method: str, flags: str) -> None:
    """Raise SweepError for flags that a training of the method cannot be given."""
    if method not in METHODS:
        raise SweepError(f"--flags {method}=...: known methods are {', '.join(METHODS)}")
    given = f'--flags {method}="{flags}"'
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise SweepError(f"{given}: {error}; correct the quotes") from error
    for word in words:
        flag = word.partition("=")[0]
        if flag in OWN_FLAGS:
            raise SweepError(f"{given}: the sweep sets {flag}; use its own {OWN_FLAGS[flag]}")
        if flag in SET_BY_SWEEP:
            raise SweepError(f"{given}: the sweep sets {flag}; leave it out")
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):
            parse(["--method", method, *words])
    except TrainError as error:
        raise SweepError(f"{given}: {error}") from error
    except SystemExit as error:
        # The parser has printed what is wrong.
        raise SweepError(f"{given}: {first_line(messages.getvalue())}") from error
