"""The engine that `auto` stands for: that of the threshold, the fastest measured, or the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flawline.commands import command_line
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, warn
from flawline.runtime.engines.base import Engine, EngineError, EngineOptions
from flawline.runtime.engines.choice import (
    Figure,
    current_conditions,
    fastest,
    may_choose,
    read_choice,
    record_path,
)
from flawline.runtime.scored_by import scored_by
from flawline.runtime.strict_json import SchemaError

# In a command, a folder of good parts that the user has to name.
GOOD_PARTS = "GOOD_PARTS"


@dataclass(frozen=True)
class Machine:
    """The engines of this machine, by their names in ENGINES and in that order.

    `usable` are the classes of those that can be used, at least one, and `missing` says what must
    be installed for the others.
    """

    usable: Mapping[str, type[Engine]]
    missing: Mapping[str, str]


class Selection(NamedTuple):
    """An engine of ENGINES and one of its precisions."""

    engine: str
    precision: str


def select_engine(bundle: Bundle, options: EngineOptions, machine: Machine) -> Selection:
    """Choose the engine for a bundle, and log why.

    A threshold from the scores of a lossy precision decides it. Otherwise it is the fastest of a
    measurement that holds here, or else the first that can be used. Nothing is measured here,
    because a stream must start. Raises EngineError.
    """
    owner = bundle.calibration.scored_by
    if owner is not None and options.precision in ("auto", owner.precision):
        if owner.engine not in machine.usable:
            reason = machine.missing.get(owner.engine, "this version has no such engine")
            raise owner_unusable(bundle, options, machine, reason)
        log(f"auto takes {owner}, whose scores set the threshold")
        return Selection(owner.engine, owner.precision)
    first = first_selection(bundle, options, machine)
    fastest_one = None
    if len(_alternatives(bundle, options, machine)) > 1:
        fastest_one = _measured(bundle, options, machine, first)
    if fastest_one is not None:
        return fastest_one
    default = machine.usable[first.engine].precisions[0]
    if options.precision == "auto" and first.precision != default:
        words = ("--bundle", bundle.path, "--precision", default, "--data", "DATA")
        log(
            f"{first.engine} computes in {first.precision}, because {bundle.path} holds no "
            f"{default} graph; add it where onnx is installed: {command_line('build', *words)}"
        )
    return first


def _measured(
    bundle: Bundle, options: EngineOptions, machine: Machine, first: Selection
) -> Selection | None:
    """Return the fastest engine of a measurement that holds; None, and log why, without one."""
    measure = measure_command(bundle, options)
    path = record_path(bundle, options)
    try:
        figure = _recorded(bundle, options, machine, path)
    except SchemaError as error:
        warn(
            f"warning: {path}: {error}; auto takes {first.engine}, the first engine that can be "
            f"used; measure again which is fastest: {measure}"
        )
        return None
    except _NoFigure as none:
        log(
            f"auto takes {first.engine}, the first engine that can be used, because {none}; "
            f"measure which is fastest: {measure}"
        )
        return None
    log(f"auto takes {figure}, the fastest that was measured: {figure.milliseconds:.1f} ms")
    return Selection(figure.engine, figure.precision)


class _NoFigure(Exception):
    """No measurement decides; the message says why, as the continuation of a sentence."""


def _recorded(bundle: Bundle, options: EngineOptions, machine: Machine, path: Path) -> Figure:
    """Return the fastest engine of the record. Raises SchemaError and _NoFigure."""
    choice = read_choice(path)
    if choice is None:
        raise _NoFigure("no measured times are recorded for this bundle")
    try:
        now = current_conditions(bundle, options.threads, machine.usable)
    except EngineError as error:
        raise _NoFigure(f"the recorded times cannot be checked ({error})") from error
    difference = choice.conditions.difference(now)
    if difference is not None:
        raise _NoFigure(f"the recorded times do not hold: {difference}")
    figure = fastest(choice.figures, bundle.calibration.scored_by, options.precision)
    if figure is None:
        raise _NoFigure(f"no recorded time is of the precision {options.precision}")
    return figure


def default_precision(kind: type[Engine], bundle: Bundle) -> str:
    """Return the first precision of an engine that the bundle has a graph for."""
    held = [precision for precision in kind.precisions if bundle.has_graph(precision)]
    return held[0] if held else kind.precisions[0]


def first_selection(bundle: Bundle, options: EngineOptions, machine: Machine) -> Selection:
    """Return the first engine that can be used, or that runs the wanted precision.

    Where any precision will do, it is one that the bundle has a graph for. Raises EngineError.
    """
    for name, kind in machine.usable.items():
        if options.precision == "auto":
            return Selection(name, default_precision(kind, bundle))
        if options.precision in kind.precisions:
            return Selection(name, options.precision)
    runs = [f"{name} runs {', '.join(kind.precisions)}" for name, kind in machine.usable.items()]
    raise EngineError(
        f"no engine of this machine runs {options.precision}; choose another --precision: "
        f"{'; '.join(runs)}"
    )


def _alternatives(bundle: Bundle, options: EngineOptions, machine: Machine) -> list[Selection]:
    """Return all engines and precisions that a measurement could choose from."""
    found = []
    for name, kind in machine.usable.items():
        for precision in kind.precisions:
            allowed = may_choose(name, precision, bundle.calibration.scored_by, options.precision)
            if allowed and bundle.has_graph(precision):
                found.append(Selection(name, precision))
    return found


def owner_unusable(
    bundle: Bundle, options: EngineOptions, machine: Machine, reason: str
) -> EngineError:
    """Return the error about the engine of the threshold, which cannot be used here."""
    owner = bundle.calibration.scored_by
    others = [name for name in machine.usable if owner is None or name != owner.engine]
    command = calibrate_command(bundle, (others or list(machine.usable))[0], "auto", options)
    # The remedy at the end of the reason is for a threshold that fits every engine.
    cause = reason.partition("; ")[0]
    return EngineError(
        f"the threshold of {bundle.path} was set with the scores of {owner}, which cannot be used "
        f"here ({cause}); set it with another engine: {command}"
    )


def other_scores(bundle: Bundle, engine: Engine, options: EngineOptions) -> str | None:
    """Say that the threshold was set with scores that this engine does not give, or return None."""
    owner = bundle.calibration.scored_by
    # None is a threshold for every engine, except in a lossy precision.
    if owner == scored_by(engine.name, engine.precision):
        return None
    scores = f"the scores of {owner}"
    if owner is None:
        scores = "other scores"
    command = calibrate_command(bundle, engine.name, engine.precision, options)
    return (
        f"the threshold was set with {scores}, and those of {engine.name} {engine.precision} "
        f"differ from them; set it with this engine: {command}"
    )


def calibrate_command(bundle: Bundle, engine: str, precision: str, options: EngineOptions) -> str:
    """Return the command that sets the threshold with the scores of an engine."""
    words: list[str | Path] = ["--bundle", bundle.path, "--images", GOOD_PARTS, "--engine", engine]
    if precision != "auto":
        words += ["--precision", precision]
    review = bundle.calibration.review
    if review is not None:
        words += ["--review-rate", f"{review.rate:g}"]
    return command_line("calibrate", *words, *options_of_machine(options))


def measure_command(bundle: Bundle, options: EngineOptions) -> str:
    """Return the command that measures the engines and records the choice."""
    words: list[str | Path] = ["--bundle", bundle.path, "--engine", "auto"]
    return command_line("build", *words, *options_of_machine(options))


def options_of_machine(options: EngineOptions) -> list[str | Path]:
    """Return the flags that a command needs to find the same record, plans and server."""
    words: list[str | Path] = []
    if options.threads is not None:
        words += ["--threads", str(options.threads)]
    if options.cache is not None:
        words += ["--engine-cache", options.cache]
    if options.server is not None:
        words += ["--server", options.server]
    return words
