"""The bundles of the candidates that are fast enough, and their scores in every place that fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from flawline.cameras.decode import read_image
from flawline.export import ExportError
from flawline.export.add_precision import add_graph
from flawline.export.assemble import ExportOptions, build_bundle
from flawline.export.choosing.candidates import Candidate
from flawline.export.choosing.engines import (
    CONDITIONS,
    EnginePlan,
    Place,
    frame_call,
    medians_of,
    still_hold,
)
from flawline.export.choosing.scoring import Scores, TrialSet, score_trial_set
from flawline.export.choosing.store import Store
from flawline.export.graphs import WRITERS
from flawline.runtime.bundle import Bundle, BundleError, read_bundle
from flawline.runtime.console import log
from flawline.runtime.engines import Engine, EngineError, open_engine
from flawline.runtime.json_shapes import Shape
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.threshold import CalibrationError
from flawline.train import TrainError
from flawline.train.checkpoint import load_checkpoint
from flawline.train.progress import Bars, Progress
from flawline.train.training import train

SCORES = "scores"
RECORD: Shape = {
    "model_sha256": str,
    "good": [float],
    "anomalies": {str: {str: [float]}},
    "conditions?": CONDITIONS,
}
# Bundles whose engines take turns, and are in memory together.
TOGETHER = 4
FAILURES = (TrainError, ExportError, EngineError, BundleError, CalibrationError)


class OutOfTimeError(ExportError):
    """--minutes are used up before a candidate is trained."""


@dataclass(frozen=True)
class Result:
    """A candidate in one place: its time, and the scores of the trial set where it is used.

    A candidate is used in one of the places that fit the budget. `good` are the scores of the good
    images; it is empty in the other places.
    """

    name: str
    place: Place
    milliseconds: float
    good: Sequence[float] = ()
    anomalies: Scores = field(default_factory=dict)

    @property
    def used(self) -> bool:
        return bool(self.good)


class Clock:
    """The minutes that trainings may take in all; None for any."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def remaining(self) -> float | None:
        """Return the minutes that are left, or None. Raises OutOfTimeError if there are none."""
        if self._end is None:
            return None
        left = (self._end - time.monotonic()) / 60
        if left <= 0:
            raise OutOfTimeError("--minutes are used up; the same command continues")
        return left


def train_candidate(
    candidate: Candidate, places: Sequence[Place], store: Store, clock: Clock
) -> Bundle:
    """Return the bundle of a candidate, with the graphs that its places need.

    A bundle that the store has is not built again, and a checkpoint is continued. No test image is
    read. Raises one of FAILURES.
    """
    path = store.bundle(candidate.name)
    data = candidate.recipe.data
    if path.exists():
        bundle = read_bundle(path)
    else:
        checkpoint = store.checkpoint(candidate.name)
        recipe = replace(candidate.recipe, max_minutes=clock.remaining())
        train(recipe, checkpoint)
        trained = load_checkpoint(checkpoint)
        if not trained.finished:
            raise OutOfTimeError("--minutes cut its training short; the same command continues")
        bundle = build_bundle(trained, data, path, ExportOptions(parity_images=0))
    for precision in sorted({place.precision for place in places}):
        if precision in WRITERS and not bundle.has_graph(precision):
            try:
                bundle = add_graph(bundle, precision, data, test_images=0)
            except ExportError as error:
                # The other precisions are not affected.
                log(f"note: {candidate.name}: {error}")
    return bundle


@dataclass(frozen=True)
class _Opened:
    name: str
    place: Place
    bundle: Bundle
    engine: Engine
    call: Callable[[], object]


class Judge:
    """Times bundles in turns, and scores the trial set with those that fit the budget.

    `left_out` holds the reasons for places without a result, by "NAME ENGINE PRECISION".
    """

    def __init__(
        self, plan: EnginePlan, trial: TrialSet, frame: Path, budget_ms: float, store: Store
    ) -> None:
        """`frame` is an image file of the size that the camera gives."""
        self.plan = plan
        self.trial = trial
        self.frame = frame
        self.budget_ms = budget_ms
        self.store = store
        self.left_out: dict[str, str] = {}
        self._conditions = plan.conditions()

    def results(self, bundles: Mapping[str, tuple[Bundle, Sequence[Place]]]) -> list[Result]:
        """Return the results of bundles, by the names of candidates, with the places to run in."""
        results = []
        names = list(bundles)
        with Bars() as bars:
            for first in range(0, len(names), TOGETHER):
                with ExitStack() as stack:
                    opened = []
                    for name in names[first : first + TOGETHER]:
                        opened += self._open(name, *bundles[name], stack)
                    results += self._score(opened, bars)
        return results

    def _score(self, opened: Sequence[_Opened], progress: Progress) -> list[Result]:
        """Time engines in turns, and score the trial set where each candidate is used."""
        medians = medians_of([one.call for one in opened])
        used: dict[str, tuple[float, float]] = {}
        for one, median in zip(opened, medians, strict=True):
            if median <= self.budget_ms:
                key = _preference(one.place, median)
                used[one.name] = min(key, used.get(one.name, key))
        results = []
        for one, median in zip(opened, medians, strict=True):
            result = Result(one.name, one.place, median)
            if used.get(one.name) == _preference(one.place, median):
                good, anomalies = self._scores(one, progress)
                result = replace(result, good=good, anomalies=anomalies)
            results.append(result)
        return results

    def _open(
        self, name: str, bundle: Bundle, places: Sequence[Place], stack: ExitStack
    ) -> list[_Opened]:
        """Open a bundle in every place that passes its self-test; `stack` closes the engines."""
        frame = read_image(self.frame, bundle.manifest.file_bit_depth)
        opened = []
        for place in places:
            try:
                self.plan.compile(bundle, place)
                engine = open_engine(bundle, place.engine, self.plan.options(place))
            except (EngineError, BundleError) as error:
                self.left_out[f"{name} {place}"] = str(error)
                continue
            stack.callback(engine.close)
            call = frame_call(engine, bundle, frame)
            opened.append(_Opened(name, place, bundle, engine, call))
        return opened

    def _scores(self, one: _Opened, progress: Progress) -> tuple[list[float], Scores]:
        """Return the scores of the good images and of the anomalies, from the store if it can."""
        name = f"{one.name}-{one.place.engine}-{one.place.precision}"
        model = one.bundle.model_sha256(one.place.precision)
        record = self.store.read(SCORES, name, RECORD)
        known = record is not None and still_hold(record, self._conditions)
        if record is None or not known or record["model_sha256"] != model:
            geometry = one.bundle.manifest.geometry
            label = f"{one.name} {one.place}"
            good, anomalies = score_trial_set(one.engine, geometry, self.trial, progress, label)
            record = {"model_sha256": model, "good": good, "anomalies": anomalies}
            self.store.write(SCORES, name, {**record, "conditions": self._conditions})
        return record["good"], record["anomalies"]


def _preference(place: Place, milliseconds: float) -> tuple[float, float]:
    """Order the places that fit: the most exact precision is first, then the fastest engine."""
    return PRECISIONS[place.precision].score_factor, milliseconds
