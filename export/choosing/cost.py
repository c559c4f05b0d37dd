"""The time per frame of a method, before it is trained for minutes.

The time of a graph does not depend on how well it is trained. One step on a few images gives a
graph with the same operations and sizes, so that detectors that are too slow need no training.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawline.cameras.decode import read_image
from flawline.export import ExportError
from flawline.export.add_precision import write_graph
from flawline.export.assemble import manifest_of
from flawline.export.choosing.candidates import Candidate
from flawline.export.choosing.engines import (
    CONDITIONS,
    EnginePlan,
    Place,
    frame_call,
    medians_of,
    still_hold,
)
from flawline.export.choosing.store import Store
from flawline.export.exported import export_graph
from flawline.export.graphs import WRITERS, GraphContext, evenly_spaced
from flawline.export.measured_choice import turn_of
from flawline.export.parity import score_images
from flawline.runtime.bundle import Bundle, BundleError, add_model, write_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.engines import EngineError
from flawline.runtime.golden import Golden
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.json_shapes import Shape
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.runtime.precisions import FP32
from flawline.train import TrainError
from flawline.train.data import PreparedImages
from flawline.train.fitting import Fit
from flawline.train.judging import map_peaks
from flawline.train.progress import Bars, no_progress

COST = "cost"
RECORD: Shape = {
    "costs": [{"engine": str, "precision": str, "milliseconds": float, "measured": bool}],
    "left_out": {str: str},
    "conditions?": CONDITIONS,
}
# Good images that a graph is fitted on before it is timed.
TRIAL_IMAGES = 16
GOLDEN_IMAGES = 2
# Candidates whose engines take turns, and are in memory together.
TOGETHER = 4
# Turns that find the time of FP32 before the other graphs are written.
QUICK_TURNS = 3
# No precision is more than so many times as fast as FP32. The graph of one that would still be too
# slow is not written.
LARGEST_SPEEDUP = 4.0


@dataclass(frozen=True)
class Cost:
    """The median time of a frame in an engine and precision.

    With `measured` false, it is a lower bound, which follows from the time of another precision.
    """

    engine: str
    precision: str
    milliseconds: float
    measured: bool = True

    @property
    def place(self) -> Place:
        return Place(self.engine, self.precision)


@dataclass(frozen=True)
class Costs:
    """The costs of a candidate, and why it could not be timed in other places.

    `left_out` holds a reason by the text of a place; "" is the candidate as a whole.
    """

    costs: tuple[Cost, ...]
    left_out: dict[str, str]


def measure_costs(
    candidates: Sequence[Candidate],
    training: Sequence[Path],
    plan: EnginePlan,
    budget_ms: float,
    store: Store,
) -> dict[str, Costs]:
    """Return the costs of candidates by their names; those that the store has are not repeated.

    training: the good images that the candidates will be trained on.
    """
    known: dict[str, Costs] = {}
    missing = []
    conditions = plan.conditions()
    for candidate in candidates:
        costs = _read_costs(store, candidate.name, plan, conditions)
        if costs is not None and _covers(costs, plan, budget_ms):
            known[candidate.name] = costs
        else:
            missing.append(candidate)
    with Bars() as bars:
        for first in range(0, len(missing), TOGETHER):
            group = missing[first : first + TOGETHER]
            for name, costs in _measure_group(group, training, plan, budget_ms).items():
                # What was wrong with a candidate as a whole may be repaired, such as --weights.
                if "" not in costs.left_out:
                    store.write(COST, name, {**asdict(costs), "conditions": conditions})
                known[name] = costs
            bars("candidates timed", first + len(group), len(missing))
    return known


def _read_costs(
    store: Store, name: str, plan: EnginePlan, conditions: Mapping[str, Any]
) -> Costs | None:
    """Return the recorded costs in the places of a plan; None where none hold now."""
    record = store.read(COST, name, RECORD)
    if record is None or not still_hold(record, conditions):
        return None
    costs = []
    for entry in record["costs"]:
        place = Place(entry["engine"], entry["precision"])
        # A run before may have compared more.
        if place in plan.places:
            costs.append(Cost(*place, entry["milliseconds"], entry["measured"]))
    texts = [str(place) for place in plan.places]
    left_out = {text: reason for text, reason in record["left_out"].items() if text in texts}
    return Costs(tuple(costs), left_out)


def _covers(costs: Costs, plan: EnginePlan, budget_ms: float) -> bool:
    """Whether every place was timed, could not be, or is too slow by a bound."""
    settled = set(costs.left_out)
    for cost in costs.costs:
        if cost.measured or cost.milliseconds > budget_ms:
            settled.add(str(cost.place))
    return {str(place) for place in plan.places} <= settled


@dataclass
class _Trial:
    """A candidate that is timed: calls by place, bounds, and reasons for other places."""

    calls: dict[Place, Callable[[], object]]
    bounds: dict[Place, float]
    left_out: dict[str, str]


def _measure_group(
    group: Sequence[Candidate], training: Sequence[Path], plan: EnginePlan, budget_ms: float
) -> dict[str, Costs]:
    trials: dict[str, _Trial] = {}
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
        for candidate in group:
            trial = _Trial({}, {}, {})
            try:
                few = _few(candidate, training)
                bundle = trial_bundle(candidate, few, len(training), Path(folder) / candidate.name)
                _open_places(bundle, few, plan, budget_ms, trial, stack)
            except (TrainError, ExportError, EngineError, BundleError) as error:
                trial.left_out[""] = str(error)
            trials[candidate.name] = trial
        calls = [call for trial in trials.values() for call in trial.calls.values()]
        medians = iter(medians_of(calls))
        return {name: _costs(trial, medians) for name, trial in trials.items()}


def _costs(trial: _Trial, medians: Iterator[float]) -> Costs:
    costs = []
    for place in trial.calls:
        costs.append(Cost(*place, round(next(medians), 3)))
    for place, bound in trial.bounds.items():
        costs.append(Cost(*place, round(bound, 3), measured=False))
    return Costs(tuple(costs), trial.left_out)


def _few(candidate: Candidate, training: Sequence[Path]) -> PreparedImages:
    recipe = candidate.recipe
    paths = evenly_spaced(training, TRIAL_IMAGES)
    return PreparedImages(paths, recipe.settings.geometry, recipe.bit_depth)


def trial_bundle(candidate: Candidate, few: PreparedImages, available: int, folder: Path) -> Bundle:
    """Write a bundle whose graph has the size of a trained one, after one step on a few images.

    available: the number of good images that the candidate will be trained on. The bundle judges
    nothing. Raises TrainError, ExportError and BundleError.
    """
    recipe = candidate.recipe
    kind = recipe.method_class
    method = kind(kind.settings_to_time(recipe.settings, len(few), available))
    method.load_weights(recipe.weights, recipe.seed, few)
    method.fit(Fit(few, steps=1, seed=recipe.seed))
    method.eval()
    exported = export_graph(method)
    map_size = (0, 0)
    if exported.outputs == GRAPH_OUTPUTS:
        map_size = method.settings.size
    images = few[:GOLDEN_IMAGES]
    results = score_images(exported.model, FP32.name, map_size, images, no_progress)
    good = GoodScores(images.paths, results.scores, map_peaks(results.maps))
    manifest = manifest_of(method, exported, good)
    calibration = Calibration(manifest.score.mean, 0.5, (0.0, 1.0), 0.95, GOLDEN_IMAGES)
    golden = Golden(np.stack(list(images)), results.scores, results.maps)
    return write_bundle(folder, manifest, calibration, {FP32.name: exported.model}, golden)


def _open_places(
    bundle: Bundle,
    few: PreparedImages,
    plan: EnginePlan,
    budget_ms: float,
    trial: _Trial,
    stack: ExitStack,
) -> None:
    """Open the bundle in every place, with the graphs that it needs; `stack` closes them."""
    frame = read_image(few.paths[0], few.bit_depth)
    fastest = math.inf
    for place in plan.places:
        bound = fastest / LARGEST_SPEEDUP
        if place.precision in WRITERS and math.isfinite(fastest) and bound > budget_ms:
            trial.bounds[place] = bound
            continue
        try:
            bundle = _with_graph(bundle, place.precision, few)
            engine = plan.open_untested(bundle, place)
        except (EngineError, BundleError, ExportError) as error:
            trial.left_out[str(place)] = str(error)
            continue
        stack.callback(engine.close)
        call = frame_call(engine, bundle, frame)
        trial.calls[place] = call
        if place.precision == FP32.name:
            for _ in range(QUICK_TURNS):
                # The shortest call, because a disturbance must not exclude what depends on it.
                fastest = min(fastest, *turn_of(call))


def _with_graph(bundle: Bundle, precision: str, few: PreparedImages) -> Bundle:
    """Add the graph of a precision, with everything in it that may be; it is only timed."""
    if precision not in WRITERS or precision in bundle.precisions:
        return bundle
    islands = bundle.manifest.fp32_islands
    context = GraphContext(islands, few, score_std=math.inf)
    return add_model(
        bundle, precision, write_graph(bundle.model().read_bytes(), precision, context)
    )
