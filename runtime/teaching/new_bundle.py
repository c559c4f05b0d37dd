"""From a lesson to a bundle: manifest, thresholds, a proven graph, golden images, the self-test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flawline.commands import command_line
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle, BundleError, write_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import log
from flawline.runtime.engines import EngineOptions, open_engine, open_reference
from flawline.runtime.golden import Golden
from flawline.runtime.golden_images import choose_golden
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.image import Image
from flawline.runtime.manifest import Manifest, Spread
from flawline.runtime.precisions import FP32
from flawline.runtime.teaching import TeachError
from flawline.runtime.teaching.features import Features, inputs_of_frame
from flawline.runtime.teaching.lesson import Lesson, Setup
from flawline.runtime.teaching.pictures import Pictures
from flawline.runtime.threshold import Rates
from flawline.runtime.tolerances import Tolerances, tolerance_of

# Pictures on which the graph is compared with the published form, and among which the golden images
# are chosen.
COMPARED = 50


@dataclass(frozen=True)
class NewBundle:
    """The contents of a bundle that was not written yet."""

    manifest: Manifest
    calibration: Calibration
    model: bytes
    golden: Golden


def make_bundle(
    setup: Setup, lesson: Lesson, pictures: Pictures, features: Features, rates: Rates
) -> NewBundle:
    """Set the thresholds, and prove the graph on some of the pictures.

    The manifest is that of the old bundle with other statistics: what it says about the images and
    its provenance are for the caller to replace. Raises CalibrationError, EngineError, and
    TeachError if the graph is not what was learned.
    """
    old = setup.bundle
    manifest = _with_statistics(old.manifest, lesson.good)
    calibration = lesson.good.calibrate(rates, manifest)
    model = setup.graph.with_constants(lesson.learned.constants)
    frames = np.linspace(0, len(pictures) - 1, min(len(pictures), COMPARED)).astype(int).tolist()
    deciding = setup.scores(lesson.learned, features, frames).deciding
    _prove(setup, lesson, features, deciding, manifest)
    images = _inputs(setup, pictures, features, deciding)
    tolerance = manifest.score_tolerance
    golden = _golden(setup, model, images, calibration.threshold, tolerance)
    return NewBundle(manifest, calibration, model, golden)


def _golden(
    setup: Setup, model: bytes, images: Sequence[Image], threshold: float, tolerance: float
) -> Golden:
    """Choose among inputs of the graph, and those golden images of the old bundle that it rejects.

    The images are of good parts, and those of the old bundle may be of defective ones.
    """
    old = setup.bundle
    chosen = []
    results = []
    with closing(open_reference(model, old.map_size, threads=setup.threads)) as engine:
        for place, image in enumerate([*images, *old.golden().images]):
            score, anomaly_map = engine(image[None])
            if place < len(images) or score[0] > threshold:
                chosen.append(image)
                results.append((score[0], anomaly_map[0].copy()))
    scores = np.array([score for score, _ in results], np.float32)
    maps = np.stack([anomaly_map for _, anomaly_map in results])
    return choose_golden(chosen, scores, maps, threshold, tolerance)


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


def _prove(
    setup: Setup, lesson: Lesson, features: Features, inputs: Sequence[int], manifest: Manifest
) -> None:
    """Compare the distances of the graph with those of the published form. Raises TeachError."""
    head = setup.head(lesson.learned, features)
    worst = 0.0
    for place in inputs:
        values = features.values[place]
        _, _, distances = head(values)
        errors = np.abs(distances - lesson.learned.distances(values))
        # Also NaN is an error.
        worst = float(np.maximum(worst, errors.max()))
    tolerance = Tolerances.of(manifest).score
    log(
        f"parity on {len(inputs)} images: largest error of a distance {worst:.2e} "
        f"({worst / max(manifest.score.std, 1e-9):.1e} of the good images' standard deviation)"
    )
    if not worst <= tolerance:
        raise TeachError(
            f"the taught graph's distances are off by {worst:.3g}, the tolerance is "
            f"{tolerance:.3g}; build the bundle again from its checkpoint, or report this bundle"
        )


def _inputs(
    setup: Setup, pictures: Pictures, features: Features, inputs: Sequence[int]
) -> list[Image]:
    """Return some inputs of the graph, by their indices."""
    images = []
    for place in inputs:
        frame, number = divmod(place, features.per_frame)
        tiles = inputs_of_frame(pictures.frames[frame], setup.graph_input)
        images.append(np.ascontiguousarray(tiles[number]))
    return images


def write_tested(new: NewBundle, out: Path, engine: str, options: EngineOptions) -> Bundle:
    """Write a bundle in a folder of its own, run its self-test there, then write it to `out`.

    An existing bundle there is replaced only if the test passes. Raises BundleError and
    EngineError.
    """
    models: Mapping[str, bytes] = {FP32.name: new.model}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error
    try:
        staged = write_bundle(work / out.name, new.manifest, new.calibration, models, new.golden)
        with closing(open_engine(staged, engine, options)) as opened:
            log(f"self-test passed: {opened.description}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return write_bundle(out, new.manifest, new.calibration, models, new.golden, "teach")


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
