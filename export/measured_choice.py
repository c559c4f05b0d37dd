"""Time the engines of this machine in turns, and record the fastest that decides as it must.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flawline.export import ExportError
from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.console import log, warn
from flawline.runtime.engines import (
    Engine,
    EngineError,
    EngineOptions,
    engines_of_machine,
    open_engine,
)
from flawline.runtime.engines.auto import (
    Machine,
    calibrate_command,
    measure_command,
    owner_unusable,
)
from flawline.runtime.engines.choice import (
    Choice,
    Figure,
    current_conditions,
    fastest,
    record_path,
    require_writable,
    write_choice,
)
from flawline.runtime.image import Image
from flawline.runtime.load import is_busy, read_cpu, share_of_others
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.timing import time_calls

ROUNDS = 9
# Untimed at the beginning of a turn: the threads of the engine before may still be spinning.
SETTLE_S = 0.03
TURN_S = 0.1
# A lossy engine is worth a threshold of its own if it takes at most so much of the time.
WORTHWHILE = 0.95

# Returns the milliseconds of each call of an engine with an image, in one turn.
TimeTurn = Callable[[Engine, Image], Sequence[float]]


def time_turn(engine: Engine, image: Image) -> list[float]:
    """Time the calls of an engine with one image for a tenth of a second, and at least once."""
    return turn_of(lambda: engine(image))


def turn_of(call: Callable[[], object]) -> list[float]:
    """Time a call for a tenth of a second, and at least once; return the milliseconds of each."""
    time_calls(call, warm_up=0, seconds=SETTLE_S)
    return time_calls(call, warm_up=0, seconds=TURN_S)


def medians_in_turns(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Time calls in alternating turns, and return the median milliseconds of each.

    A disturbance of the machine then affects all of them.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for number, call in enumerate(calls):
            times[number] += turn_of(call)
    return [statistics.median(values) for values in times]


@dataclass
class _Candidate:
    """An opened engine that passed, and the milliseconds of its calls."""

    engine: Engine
    times: list[float] = field(default_factory=list)

    @property
    def figure(self) -> Figure:
        milliseconds = round(statistics.median(self.times), 4)
        return Figure(self.engine.name, self.engine.precision, milliseconds)


def choose_by_measurement(
    bundle: Bundle,
    options: EngineOptions,
    build_options: Mapping[str, Any],
    data: Path | None = None,
    turn: TimeTurn = time_turn,
) -> Figure:
    """Time every engine and precision that passes, record and log the choice, and return it.

    Args:
        bundle: the bundle to run; the record is written next to its plans.
        options: the threads and the cache. A precision is logged with its fastest engine, and
            changes nothing about the record.
        build_options: what the plans of an engine are built for, by the name of the engine.
        data: the data set of the bundle. A lossy precision is compared on its images; without it,
            on the golden images alone.
        turn: times an engine.

    Raises EngineError if no engine passes, if the one that the threshold was set with does not, or
    if the record cannot be written.
    """
    machine = engines_of_machine()
    path = record_path(bundle, options)
    require_writable(path)
    for name, reason in machine.missing.items():
        log(f"left out {name}: {reason}")
    with ExitStack() as stack:
        candidates = _open_candidates(bundle, options, build_options, data, machine, stack)
        figures = _measure(bundle, options, candidates, turn)
    chosen = fastest(figures, bundle.calibration.scored_by)
    if chosen is None:
        raise _nothing_to_choose(bundle, options, machine)
    # First, so that the figures are seen whatever happens to the record.
    _log_table(bundle, figures, chosen)
    conditions = current_conditions(bundle, options.threads, machine.usable)
    write_choice(path, Choice(tuple(figures), conditions))
    if options.precision not in ("auto", *(figure.precision for figure in figures)):
        log(f"note: no engine of this machine passes with {options.precision}")
    log(f"wrote {path}")
    _log_adoption(bundle, options, figures, chosen)
    return chosen


def _open_candidates(
    bundle: Bundle,
    options: EngineOptions,
    build_options: Mapping[str, Any],
    data: Path | None,
    machine: Machine,
    stack: ExitStack,
) -> list[_Candidate]:
    """Open every engine in every precision that passes; log the others. `stack` closes them."""
    parity = None
    if data is not None:
        # Imported here because it reads data sets, which a machine that only inspects has none of.
        from flawline.export.lossy_parity import LossyParity

        parity = LossyParity(bundle, data)
    candidates = []
    for name, kind in machine.usable.items():
        for precision in kind.precisions:
            if not bundle.has_graph(precision):
                log(f"left out {name} {precision}: the bundle has no {precision} graph")
                continue
            try:
                if kind.compiles:
                    kind.build(bundle, precision, build_options.get(name), options.cache)
                engine = open_engine(bundle, name, replace(options, precision=precision))
                stack.callback(engine.close)
                if PRECISIONS[precision].lossy and parity is not None:
                    parity.require(engine)
            except (EngineError, BundleError, ExportError) as error:
                log(f"left out {name} {precision}: {error}")
                continue
            candidates.append(_Candidate(engine))
    return candidates


def _measure(
    bundle: Bundle, options: EngineOptions, candidates: Sequence[_Candidate], turn: TimeTurn
) -> list[Figure]:
    """Time the candidates in alternating turns, each with one golden image per call.

    A disturbance of the machine then affects all of them. Returns the figures, fastest first.
    """
    if len(candidates) > 1:
        log(f"timing {len(candidates)} engines and precisions in turns, {ROUNDS} rounds")
    start = read_cpu()
    images = bundle.golden().images
    for number in range(ROUNDS):
        index = number % len(images)
        for candidate in candidates:
            candidate.times += turn(candidate.engine, images[index : index + 1])
    others = share_of_others(start, read_cpu())
    if others is not None and is_busy(others):
        warn(
            f"warning: other processes used {others:.0%} of the CPU while the engines were timed, "
            f"which may decide between engines of about the same speed; stop them and measure "
            f"again: {measure_command(bundle, options)}"
        )
    figures = [candidate.figure for candidate in candidates]
    return sorted(figures, key=lambda figure: figure.milliseconds)


def _nothing_to_choose(bundle: Bundle, options: EngineOptions, machine: Machine) -> EngineError:
    if bundle.calibration.scored_by is not None:
        return owner_unusable(bundle, options, machine, "see the lines above")
    return EngineError(
        f"no engine of this machine passes the self-test of {bundle.path}, see the lines above; "
        f"update the engines, or build the bundle again"
    )


def input_name(bundle: Bundle) -> str:
    """Return what one input of the graph, and so one golden image, is: "image" or "tile"."""
    return "image" if bundle.manifest.tiles is None else "tile"


def _log_table(bundle: Bundle, figures: Sequence[Figure], chosen: Figure) -> None:
    """Log one line per engine and precision, fastest first."""
    width = max(len(str(figure)) for figure in figures)
    unit = input_name(bundle)
    for figure in figures:
        note = ""
        if figure == chosen:
            note = "  chosen"
        elif PRECISIONS[figure.precision].lossy:
            note = "  its threshold would have to be set with its own scores"
        elif bundle.calibration.scored_by is not None:
            note = "  the threshold was set with other scores"
        log(f"  {figure!s:<{width}}  {figure.milliseconds:8.2f} ms per {unit}{note}")


def _log_adoption(
    bundle: Bundle, options: EngineOptions, figures: Sequence[Figure], chosen: Figure
) -> None:
    """Log how to use a lossy precision that is clearly faster, or that was asked for."""
    for figure in figures:
        if not PRECISIONS[figure.precision].lossy or figure == chosen:
            continue
        ratio = figure.milliseconds / chosen.milliseconds
        if ratio < WORTHWHILE or figure.precision == options.precision:
            log(adoption(bundle, options, figure, f"{ratio:.0%} of the time of {chosen}"))
            return


def adoption(bundle: Bundle, options: EngineOptions, figure: Figure, takes: str) -> str:
    """Return the line with the command that lets `auto` choose a lossy precision.

    A threshold from the scores of an engine decides by itself, so nothing is measured again.
    """
    calibrate = calibrate_command(bundle, figure.engine, figure.precision, options)
    return f"{figure} takes {takes}; to use it, set the threshold with its scores: {calibrate}"
