"""The engines and precisions that are compared, and how they are opened and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flawline.export.measured_choice import medians_in_turns
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import warn
from flawline.runtime.cores import allowed_cores
from flawline.runtime.engines import (
    Engine,
    EngineError,
    EngineOptions,
    engines_of_machine,
    require_usable,
)
from flawline.runtime.environment import versions
from flawline.runtime.image import Image, prepare
from flawline.runtime.json_shapes import Shape
from flawline.runtime.load import is_busy, read_cpu, share_of_others

AUTO = "auto"
# Of the conditions in a record, which one of an earlier version does not have.
CONDITIONS: Shape = {"cores": int, "versions": {str: str}, "engines": {str: str}}


class Place(NamedTuple):
    """Where a graph runs: an engine of ENGINES, and a precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class EnginePlan:
    """Which engines and precisions are compared, and how they are opened.

    Attributes:
        kinds: the classes of the engines, by their names in ENGINES.
        places: the engines with their precisions, the default precision of an engine first.
        threads: of a CPU engine; None for the cores that this process may use.
        build_options: what compiled plans are built for, by the name of the engine.
    """

    kinds: Mapping[str, type[Engine]]
    places: Sequence[Place]
    threads: int | None
    build_options: Mapping[str, Any]

    def conditions(self) -> dict[str, Any]:
        """Return what times and scores of this plan hold for, as JSON.

        The engines have the versions of their libraries and their devices. Raises EngineError for
        an engine whose library cannot be loaded.
        """
        return {
            "cores": allowed_cores(),
            "versions": versions(),
            "engines": {name: kind.installed() for name, kind in self.kinds.items()},
        }

    def options(self, place: Place) -> EngineOptions:
        """Return how an engine is opened."""
        return EngineOptions(self.threads, place.precision, None)

    def compile(self, bundle: Bundle, place: Place) -> None:
        """Build the plan of an engine that compiles. Raises EngineError."""
        kind = self.kinds[place.engine]
        if kind.compiles:
            kind.build(bundle, place.precision, self.build_options.get(place.engine), None)

    def open_untested(self, bundle: Bundle, place: Place) -> Engine:
        """Open an engine without its self-test, for a graph that is only timed.

        Raises EngineError and BundleError.
        """
        self.compile(bundle, place)
        engine = self.kinds[place.engine].open(bundle, self.options(place))
        engine.name = place.engine
        return engine


def still_hold(record: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a record was made under the conditions of a plan; it may have further engines."""
    then = record.get("conditions")
    if then is None or (then["cores"], then["versions"]) != (now["cores"], now["versions"]):
        return False
    engines = then["engines"]
    return all(engines.get(name) == state for name, state in now["engines"].items())


def plan_engines(
    engine: str,
    precisions: Sequence[str] | None,
    threads: int | None,
    build_options: Mapping[str, Any],
) -> EnginePlan:
    """Return the engines of this machine that are compared; `auto` stands for all of them.

    precisions: names in PRECISIONS, or None for all that an engine runs. Raises EngineError where
    the engine cannot be used, or runs none of them, and for a wrong number of threads.
    """
    # Its error would otherwise be taken for that of one candidate after the other.
    EngineOptions(threads)
    if engine == AUTO:
        kinds = dict(engines_of_machine().usable)
    else:
        kinds = {engine: require_usable(engine)}
        if kinds[engine].needs_server:
            raise EngineError(
                f"--engine {engine} computes on a server, which has one model and not every "
                f"candidate; choose another --engine"
            )
    places = []
    for name, kind in kinds.items():
        for precision in kind.precisions:
            if precisions is None or precision in precisions:
                places.append(Place(name, precision))
    if not places:
        raise EngineError(
            f"--engine {engine} runs none of the precisions {', '.join(precisions or ())} on this "
            f"machine; leave --precision out"
        )
    return EnginePlan(kinds, places, threads, build_options)


def frame_call(engine: Engine, bundle: Bundle, frame: Image) -> Callable[[], object]:
    """Return a call that judges a frame as a detector does: it is resized, then the graph runs.

    frame: uint8 [h, w, 3] BGR or [h, w] mono, as a camera gives it.
    """
    geometry = bundle.manifest.geometry
    return lambda: engine(prepare(frame, geometry)[None])


def medians_of(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Time calls in alternating turns; return the median milliseconds of each.

    Warns where other processes kept the machine busy, because a budget is in absolute time.
    """
    start = read_cpu()
    medians = medians_in_turns(calls)
    others = share_of_others(start, read_cpu())
    if others is not None and is_busy(others):
        warn(
            f"warning: other processes used {others:.0%} of the CPU during the timing, so that "
            f"detectors near the budget may be on its wrong side; stop them and run again"
        )
    return medians
