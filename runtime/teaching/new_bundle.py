"""From what was learned to a bundle: manifest, thresholds, a checked graph and golden images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flawline.commands import command_line
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle, BundleError, write_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import log, log_notes
from flawline.runtime.drift.learn import MOST_IMAGES, learn_reference
from flawline.runtime.drift.reference import DriftReference
from flawline.runtime.drift.watch import learned_notes
from flawline.runtime.engines import (
    Engine,
    EngineOptions,
    engine_class,
    engines_of_machine,
    open_engine,
    open_reference,
)
from flawline.runtime.engines.auto import default_precision, first_selection
from flawline.runtime.golden import Golden
from flawline.runtime.golden_images import golden_places
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.image import Image, Map
from flawline.runtime.manifest import Manifest, Spread
from flawline.runtime.precisions import FP32
from flawline.runtime.scratch import work_beside
from flawline.runtime.teaching import TeachError
from flawline.runtime.teaching.base import Learned
from flawline.runtime.teaching.features import Features, inputs_of_frame
from flawline.runtime.teaching.learning import Setup, Taught
from flawline.runtime.teaching.pictures import Pictures
from flawline.runtime.threshold import Rates
from flawline.runtime.tolerances import Tolerances, tolerance_of

# Pictures on which the graph is compared with the published form, and among which the golden images
# are chosen.
COMPARED = 50


@dataclass(frozen=True)
class NewBundle:
    """The contents of a bundle that was not written yet: `models` are its graphs by precision."""

    manifest: Manifest
    calibration: Calibration
    models: Mapping[str, bytes]
    golden: Golden


def make_bundle(
    setup: Setup,
    taught: Taught,
    pictures: Pictures,
    features: Features,
    rates: Rates,
    appended: tuple[Pictures, Features] | None = None,
) -> NewBundle:
    """Set the thresholds, and prove the graph on some of the pictures.

    `appended` are the false rejects that were added to what the bundle knew, if any. The manifest
    is that of the old bundle with other statistics: what it says about the images and its
    provenance are for the caller to replace. Raises CalibrationError, EngineError, and TeachError
    if the graph is not what was learned.
    """
    old = setup.bundle
    manifest = replace(
        _with_statistics(old.manifest, taught.good), drift=_drift(pictures, taught.good, setup)
    )
    calibration = taught.good.calibrate(rates, manifest)
    model = setup.graph.with_constants(taught.learned.constants)
    inputs = _deciding_inputs(setup, taught.learned, features, len(pictures))
    good = _prove(setup, taught, (pictures, features), inputs, manifest)
    added = []
    if appended is not None:
        # Those by which the old bundle rejected them, where what was added has an effect.
        inputs = _deciding_inputs(setup, setup.teacher.known(), appended[1], len(appended[0]))
        added = _prove(setup, taught, appended, inputs, manifest)
    golden = _golden(setup, model, good, added, calibration.threshold, manifest)
    return NewBundle(manifest, calibration, {FP32.name: model}, golden)


def _deciding_inputs(
    setup: Setup, learned: Learned, features: Features, pictures: int
) -> list[int]:
    """Return the inputs of the graph that decide the scores of some pictures."""
    chosen = np.linspace(0, pictures - 1, min(pictures, COMPARED)).astype(int).tolist()
    if features.per_frame == 1:
        return features.inputs_of(chosen)
    return setup.scores(learned, features, chosen).deciding


class _Proven(NamedTuple):
    """An input of the graph, and its score by its features."""

    image: Image
    score: float


def _golden(
    setup: Setup,
    model: bytes,
    good: Sequence[_Proven],
    added: Sequence[_Proven],
    threshold: float,
    manifest: Manifest,
) -> Golden:
    """Choose among good parts, and those golden images of the old bundle that it rejects.

    Those of the old bundle may be of defective parts. The self-test is to notice an engine that
    computes wrongly what was added: the last image is the lowest-scoring one of `added`, unless it
    is rejected. The whole graph must give the same scores as the features. Raises TeachError.
    """
    old = setup.bundle
    tolerance = manifest.score_tolerance
    with closing(open_reference(model, old.map_size, threads=setup.threads)) as engine:
        others = [_compute(engine, image) for image in old.golden().images]
        others = [other for other in others if other.score > threshold]
        known = np.array([*(one.score for one in good), *(one.score for one in others)])
        chosen = []
        for place in golden_places(known, good[0].image.nbytes, threshold, tolerance):
            if place < len(good):
                chosen.append(_checked(engine, good[place], manifest))
            else:
                chosen.append(others[place - len(good)])
        lowest = min(added, key=lambda one: one.score, default=None)
        if lowest is not None and lowest.score < threshold - tolerance:
            chosen.append(_checked(engine, lowest, manifest))
    return Golden(
        np.stack([one.image for one in chosen]),
        np.array([one.score for one in chosen], np.float32),
        np.stack([one.anomaly_map for one in chosen]),
    )


def _checked(engine: Engine, proven: _Proven, manifest: Manifest) -> _Computed:
    """Compute an input whose score is known. Raises TeachError if it is another one."""
    computed = _compute(engine, proven.image)
    _require_off_by(abs(computed.score - proven.score), manifest, "scores")
    return computed


class _Computed(NamedTuple):
    """An input of a graph, and what the graph makes of it."""

    image: Image
    score: float
    anomaly_map: Map


def _compute(engine: Engine, image: Image) -> _Computed:
    score, anomaly_map = engine(image[None])
    # The next call overwrites the map.
    return _Computed(image, float(score[0]), anomaly_map[0].copy())


def _require_off_by(error: float, manifest: Manifest, what: str) -> None:
    """Raise TeachError for what differs by more than the tolerance, or is NaN."""
    tolerance = Tolerances.of(manifest).score
    if not error <= tolerance:
        raise TeachError(
            f"the taught graph's {what} are off by {error:.3g}, the tolerance is {tolerance:.3g}; "
            f"build the bundle again from its checkpoint, or report this bundle"
        )


def _with_statistics(old: Manifest, good: GoodScores) -> Manifest:
    score = Spread.of(good.scores)
    map_peak = Spread.of(good.peaks)
    # Some methods allow their maps more than their scores.
    factor = old.map_tolerance / tolerance_of(old.map_peak)
    return replace(
        old,
        score=score,
        map_peak=map_peak,
        score_tolerance=tolerance_of(score),
        map_tolerance=factor * tolerance_of(map_peak),
        folds=good.folds,
        training=None,
    )


def _drift(pictures: Pictures, good: GoodScores, setup: Setup) -> DriftReference | None:
    """Return what a stream compares its frames with: the statistics of the good pictures."""
    most = min(len(pictures), MOST_IMAGES)
    chosen = np.linspace(0, len(pictures) - 1, most).astype(int)
    images = [pictures.frames[place] for place in chosen]
    reference = learn_reference(images, good.scores, setup.graph_input)
    log_notes(learned_notes(reference))
    return reference


def _prove(
    setup: Setup,
    taught: Taught,
    shown: tuple[Pictures, Features],
    inputs: Sequence[int],
    manifest: Manifest,
) -> list[_Proven]:
    """Compare the distances of the graph with those of the published form, on some inputs.

    Raises TeachError.
    """
    pictures, features = shown
    head = setup.head(taught.learned, features)
    worst = 0.0
    proven = []
    for place in inputs:
        values = features.values[place]
        score, _, distances = head(values)
        proven.append(_Proven(_image(setup, pictures, place), score))
        errors = np.abs(distances - taught.learned.distances(values))
        # Also NaN is an error.
        worst = float(np.maximum(worst, errors.max()))
    log(
        f"parity on {len(inputs)} images: largest error of a distance {worst:.2e} "
        f"({worst / max(manifest.score.std, 1e-9):.1e} of the good images' standard deviation)"
    )
    _require_off_by(worst, manifest, "distances")
    return proven


def _image(setup: Setup, pictures: Pictures, place: int) -> Image:
    """Return an input of the graph by its index."""
    frame, number = divmod(place, setup.graph_input.inputs_per_frame)
    tiles = inputs_of_frame(pictures.frames[frame], setup.graph_input)
    return np.ascontiguousarray(tiles[number])


def write_tested(
    new: NewBundle,
    out: Path,
    engine: str,
    options: EngineOptions,
    note: str | None = None,
) -> Bundle:
    """Write a bundle in a folder of its own, run its self-test there, then write it to `out`.

    An existing bundle there is replaced only if the test passes. `note` is for the audit log.
    Raises BundleError and EngineError.
    """
    contents = (new.manifest, new.calibration, new.models, new.golden)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with work_beside(out) as work:
            staged = write_bundle(work / out.name, *contents, shown=out)
            with closing(_opened(staged, engine, options)) as opened:
                log(f"self-test passed: {opened.description}")
    except OSError as error:
        raise BundleError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error
    return write_bundle(out, *contents, "teach", note)


def _opened(bundle: Bundle, engine: str, options: EngineOptions) -> Engine:
    if engine == "auto" and bundle.calibration.scored_by is None:
        # No times of a new bundle were measured. What `auto` says about that would name this
        # folder, which does not last.
        first = first_selection(bundle, options, engines_of_machine())
        engine, options = first.engine, replace(options, precision=first.precision)
    elif engine != "auto" and options.precision == "auto":
        # A taught bundle may lack the graph of the engine's default.
        precision = default_precision(engine_class(engine), bundle)
        options = replace(options, precision=precision)
    return open_engine(bundle, engine, options)


def log_precisions(old: Bundle, new: Bundle) -> None:
    """Log which graphs of the old bundle the new one does not have, and how to add them."""
    absent = [name for name in old.precisions if not new.has_graph(name)]
    if not absent:
        return
    commands = []
    for name in absent:
        words = ("--bundle", new.path, "--precision", name, "--data", "DATA")
        commands.append(command_line("build", *words))
    log(
        f"note: the {' and '.join(absent)} graph of {old.path} holds what was learned before, and "
        f"was left out; add it where the training package is installed: {'; '.join(commands)}"
    )
