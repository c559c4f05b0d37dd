"""Parity: does an exported graph decide as its reference does, on real images?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.export import ExportError
from flawline.runtime.engines import Engine, open_reference
from flawline.runtime.image import Image
from flawline.runtime.tolerances import Tolerances, clear_flip, flipped
from flawline.train.progress import Progress


@dataclass(frozen=True)
class ScoresAndMaps:
    """The scores and maps that one implementation of a detector computes for images.

    Attributes:
        scores: float32 [n].
        maps: anomaly maps, float32 [n, H, W]; [n, 0, 0] if the graph gives none.
    """

    scores: npt.NDArray[Any]
    maps: npt.NDArray[Any]


@dataclass(frozen=True)
class Parity:
    """Errors of a graph against its reference, and the decisions that they change.

    A decision that flips is clear if the reference score is farther than the tolerance from the
    threshold, and near otherwise.

    Attributes:
        images: number of images compared.
        worst_score: largest absolute error of a score.
        scaled_score: the same, after each error was divided by its image's `Tolerances.factor`.
        worst_relative: the same, divided by the standard deviation of good images' scores.
        worst_map: largest absolute error of any value of a map.
        scaled_map: the same, after each error was divided by its image's `Tolerances.factor`.
        clear_flips: one line per clear flip.
        near_flips: one line per near flip.
    """

    images: int
    worst_score: float
    scaled_score: float
    worst_relative: float
    worst_map: float
    scaled_map: float
    clear_flips: tuple[str, ...]
    near_flips: tuple[str, ...]

    def describe(self) -> list[str]:
        """Return a summary, then one line for each flip within the tolerance."""
        flips = len(self.clear_flips) + len(self.near_flips)
        lines = [
            f"parity on {self.images} images: largest score error {self.worst_score:.2e} "
            f"({self.worst_relative:.1e} of the good images' standard deviation), "
            f"{flips} flipped decisions"
        ]
        for flip in self.near_flips:
            lines.append(f"note: within tolerance of the threshold: {flip}")
        return lines


def score_images(
    model: bytes,
    precision: str,
    map_size: tuple[int, int],
    images: Sequence[Image],
    progress: Progress,
) -> ScoresAndMaps:
    """Run a serialised graph on prepared images, one at a time, with the reference engine.

    `map_size` is (0, 0) if the graph gives no map. Raises EngineError.
    """
    with closing(open_reference(model, map_size, precision)) as engine:
        return score_with(engine, images, progress)


def score_with(engine: Engine, images: Sequence[Image], progress: Progress) -> ScoresAndMaps:
    """Run an engine on prepared images, one at a time. Raises EngineError."""
    scores = []
    maps = []
    for done, image in enumerate(images, 1):
        score, anomaly_map = engine(image[None])
        scores.append(float(score[0]))
        # The engine overwrites its arrays with the next call.
        maps.append(anomaly_map[0].copy())
        progress(f"{engine.name} {engine.precision}", done, len(images))
    return ScoresAndMaps(np.array(scores, np.float32), np.array(maps))


def compare(
    paths: Sequence[Path],
    reference: ScoresAndMaps,
    results: ScoresAndMaps,
    threshold: float,
    tolerances: Tolerances,
    score_std: float,
) -> Parity:
    """Compare the results of a graph with the reference's on the same images.

    Args:
        paths: the n images, to name those whose decision flips.
        reference: the correct scores and maps.
        results: the scores and maps of the graph.
        threshold: scores above it are anomalous.
        tolerances: the allowed errors.
        score_std: standard deviation of the scores of good images.
    """
    clear_flips = []
    near_flips = []
    for path, expected, score in zip(paths, reference.scores, results.scores, strict=True):
        if not flipped(expected, score, threshold):
            continue
        flip = f"{path}: {expected:.6g} became {score:.6g}, threshold {threshold:.6g}"
        if clear_flip(expected, score, threshold, tolerances.score):
            clear_flips.append(flip)
        else:
            near_flips.append(flip)
    errors, map_errors = _errors(reference, results)
    scaled, scaled_maps = scaled_errors(reference, results, threshold, tolerances)
    worst = float(errors.max())
    return Parity(
        images=len(paths),
        worst_score=worst,
        scaled_score=float(scaled.max()),
        worst_relative=worst / max(score_std, 1e-9),
        worst_map=float(map_errors.max()),
        scaled_map=float(scaled_maps.max()),
        clear_flips=tuple(clear_flips),
        near_flips=tuple(near_flips),
    )


def scaled_errors(
    reference: ScoresAndMaps, results: ScoresAndMaps, threshold: float, tolerances: Tolerances
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the error of each score and the largest of each map, [n].

    Each is divided by its image's `Tolerances.factor`.
    """
    errors, map_errors = _errors(reference, results)
    factors = tolerances.factor(reference.scores, threshold)
    return errors / factors, map_errors / factors


def _errors(
    reference: ScoresAndMaps, results: ScoresAndMaps
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the absolute error of each score and the largest of each map, [n]."""
    errors = np.abs(results.scores - reference.scores)
    # A graph without maps gives maps of no values.
    return errors, np.abs(results.maps - reference.maps).max((1, 2), initial=0.0)


def require_parity(
    parity: Parity,
    tolerances: Tolerances,
    remedy: str = "train again or report this checkpoint",
    subject: str = "the exported graph",
) -> None:
    """Refuse a graph or an engine with a clear flip, or with an error above its tolerance.

    The tolerances are compared with the scaled errors. An error that is NaN is refused as well.
    Raises ExportError, whose message is about the `subject` and ends with `remedy`.
    """
    # The comparisons are written so that NaN is refused.
    if parity.clear_flips:
        raise ExportError(
            f"{subject} decides differently: {parity.clear_flips[0]} "
            f"({len(parity.clear_flips)} in all); {remedy}"
        )
    if not parity.scaled_score <= tolerances.score:
        raise ExportError(
            f"{subject}'s scores are off by {parity.scaled_score:.3g}, "
            f"the tolerance is {tolerances.score:.3g}; {remedy}"
        )
    if not parity.scaled_map <= tolerances.map:
        raise ExportError(
            f"{subject}'s maps are off by {parity.scaled_map:.3g}, "
            f"the tolerance is {tolerances.map:.3g}; {remedy}"
        )
