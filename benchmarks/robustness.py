"""Accuracy and false alarms of a detector on the same test images after changes of light and lens.

The threshold is the bundle's, as everywhere: what a change of the light does to its false-alarm
rate is the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flawline.benchmarks.frame_maps import HIGHEST_SCORE, lacks_part
from flawline.benchmarks.labels import labels_of
from flawline.benchmarks.perturbations import PERTURBATIONS, perturb
from flawline.benchmarks.protocol import Row, decisions, rounded
from flawline.cameras.decode import decode_image, read_image
from flawline.cameras.pixels import to_8_bit
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, printable
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.environment import cpu_name, versions
from flawline.train import metrics
from flawline.train.data import DataSet, data_name
from flawline.train.progress import Bars

NONE = "none"


class Case(NamedTuple):
    """A perturbation by its name in PERTURBATIONS, and its strength; NONE changes nothing."""

    name: str
    strength: float


def cases_of(names: Sequence[str]) -> list[Case]:
    """Return the images as they are, then each strength of these perturbations."""
    cases = [Case(NONE, 0)]
    for name in names:
        for strength in PERTURBATIONS[name].strengths:
            cases.append(Case(name, strength))
    return cases


def robustness_of(
    bundle: Bundle,
    data_set: DataSet,
    engine: str,
    options: EngineOptions,
    names: Sequence[str] = tuple(PERTURBATIONS),
    facts: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Judge all test images after each change, and return a row for each, without change first.

    `names` are keys of PERTURBATIONS. `facts` are put in front of the keys of every row. A change
    of the colour has no row where all images are mono. Raises DataError unless there are good and
    defective test images, CameraError for a file that cannot be read, and EngineError.
    """
    labels = labels_of(data_set)
    paths = [sample.path for sample in data_set.test]
    cases = cases_of(names)
    with Detector(bundle, engine, options) as detector:
        scores, colour = _judge(detector, paths, cases)
        common = {**(facts or {}), **_facts(detector, data_set)}
    rows = []
    for case, of_case in zip(cases, scores, strict=True):
        if case.name != NONE and PERTURBATIONS[case.name].needs_colour and not colour:
            log(f"note: {case.name} {case.strength:g} is left out: the test images are mono")
            continue
        rows.append({**common, **_row(case, labels, of_case, bundle)})
    return rows


def _judge(
    detector: Detector, paths: Sequence[Path], cases: Sequence[Case]
) -> tuple[npt.NDArray[np.float64], bool]:
    """Return the scores [cases, images], and whether any image has colours."""
    scores = np.empty((len(cases), len(paths)))
    colour = False
    with Bars() as progress:
        for index, path in enumerate(paths):
            for number, case in enumerate(cases):
                image = _image(path, case, detector.bundle.manifest.file_bit_depth)
                colour = colour or image.ndim == 3
                verdict = detector(image)
                if not verdict.judged and lacks_part(detector, image):
                    # It is rejected, whatever the threshold.
                    scores[number, index] = HIGHEST_SCORE
                    continue
                if verdict.reason is not None:
                    raise EngineError(
                        f"{detector.engine.description} cannot judge {path} after {case.name}: "
                        f"{verdict.reason}; choose another engine or build the bundle again"
                    )
                scores[number, index] = verdict.score
            progress("changed test images", index + 1, len(paths))
    return scores, colour


def _image(path: Path, case: Case, bit_depth: int | None) -> npt.NDArray[np.uint8]:
    """Read an image, change it at the depth of its file, and return it at 8 bits."""
    if case.name == NONE:
        # A 16-bit image of unknown depth is an error here, before the first change.
        return read_image(path, bit_depth)
    depth = bit_depth or 8
    return to_8_bit(perturb(decode_image(path), case.name, case.strength, depth), depth)


def _facts(detector: Detector, data_set: DataSet) -> Row:
    manifest = detector.bundle.manifest
    engine = detector.engine
    return {
        "bundle": printable(detector.bundle.path.resolve().name),
        "bundle_id": detector.bundle.short_id,
        "method": manifest.method,
        "backbone": manifest.backbone,
        "weights": manifest.provenance.get("train_weights", "unknown"),
        "train_seed": manifest.provenance.get("train_seed", "unknown"),
        "data": printable(data_name(data_set.root)),
        "images": len(data_set.test),
        "engine": engine.description,
        "engine_name": engine.name,
        "precision": engine.precision,
        "device": cpu_name(),
        "versions": versions(),
    }


def _row(
    case: Case, labels: metrics.Labels, scores: npt.NDArray[np.float64], bundle: Bundle
) -> Row:
    calibration = bundle.calibration
    return {
        "perturbation": case.name,
        "strength": case.strength,
        "image_auroc": rounded(metrics.auroc(labels, scores)),
        "asked_rate": calibration.false_alarm_rate,
        **decisions(labels, scores > calibration.threshold),
    }
