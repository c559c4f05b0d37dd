"""The scores of held-out good images, and of synthetic anomalies that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline.cameras.decode import read_image
from flawline.export.graphs import evenly_spaced
from flawline.runtime.engines import Engine
from flawline.runtime.image import Geometry, Image, prepare
from flawline.train.anomalies.kinds import Anomaly, anomalies_of
from flawline.train.data import DataError, DataSet, hold_out
from flawline.train.data.split import without_copies
from flawline.train.progress import Progress

# Held-out images that are scored, and those of them that anomalies are made of.
MOST_GOOD = 200
MOST_SOURCES = 40
# Larger images are reduced, because making anomalies of them takes seconds each.
LONGEST_SIDE = 512

# Kind of anomaly -> strength -> scores.
Scores = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class TrialSet:
    """Good images that no detector was trained on, and synthetic anomalies made of them.

    good: uint8 [h, w, 3] BGR each, all of one size.
    """

    good: Sequence[Image]
    anomalies: Sequence[Anomaly]


def split_good(data_set: DataSet) -> tuple[list[Path], list[Path]]:
    """Return the good images to train on, and those held out to rank the detectors.

    A held-out copy of a training image says nothing and is left out. Raises DataError for too few
    images, and where none is left.
    """
    learnt, held_out = hold_out(data_set.train_good)
    held_out = without_copies(held_out, learnt)
    if not held_out:
        raise DataError(
            f"data {data_set.root}: every held-out image is a copy of a training image, so that "
            f"nothing ranks the detectors; remove the copies"
        )
    return learnt, held_out


def make_trial_set(
    held_out: Sequence[Path], bit_depth: int | None, seed: int, progress: Progress
) -> TrialSet:
    """Read held-out images and make anomalies of some of them.

    All images get the size of the first one, reduced to LONGEST_SIDE. Good and synthetic images are
    resized in the same way, so that no detector can tell them apart by their sharpness.
    """
    good: list[Image] = []
    for path in evenly_spaced(held_out, MOST_GOOD):
        image = read_image(path, bit_depth)
        height, width = image.shape[:2]
        if good:
            height, width = good[0].shape[:2]
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        size = (max(1, round(scale * height)), max(1, round(scale * width)))
        good.append(prepare(image, Geometry("stretch", *size)))
    anomalies: list[Anomaly] = []
    sources = evenly_spaced(range(len(good)), MOST_SOURCES)
    for done, source in enumerate(sources, 1):
        anomalies += anomalies_of(good, source, seed)
        progress("synthetic anomalies", done, len(sources))
    return TrialSet(good, anomalies)


def score_trial_set(
    engine: Engine, geometry: Geometry, trial: TrialSet, progress: Progress, label: str
) -> tuple[list[float], Scores]:
    """Return the scores of the good images, and those of the anomalies."""
    total = len(trial.good) + len(trial.anomalies)
    good = []
    for image in trial.good:
        good.append(_score(engine, geometry, image))
        progress(label, len(good), total)
    scores: Scores = {}
    for done, anomaly in enumerate(trial.anomalies, 1):
        score = _score(engine, geometry, anomaly.pixels)
        of_kind = scores.setdefault(anomaly.kind, {})
        of_kind.setdefault(f"{anomaly.strength:g}", []).append(score)
        progress(label, len(good) + done, total)
    return good, scores


def _score(engine: Engine, geometry: Geometry, image: Image) -> float:
    scores, _ = engine(prepare(image, geometry)[None])
    return float(scores[0])
