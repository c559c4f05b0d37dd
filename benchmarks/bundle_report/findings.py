"""The content of the bundle report: the detector's decisions on the images of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flawline.benchmarks.frame_maps import map_on_frame
from flawline.cameras import CameraError
from flawline.cameras.decode import read_image
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.image import Image
from flawline.runtime.verdict import Verdict
from flawline.train import metrics
from flawline.train.data import Sample, read_mask
from flawline.train.metrics import Labels, Scores
from flawline.train.progress import Progress

# Scores that are this close to the threshold, in standard deviations of the scores of good images,
# could as well have been on its other side.
CLOSE_DEVIATIONS = 0.5


@dataclass(frozen=True)
class JudgedImage:
    """An image of the data set with its score and its verdict."""

    sample: Sample
    score: float
    anomalous: bool

    @property
    def correct(self) -> bool:
        return self.anomalous == (self.sample.defect is not None)


@dataclass
class Findings:
    """Everything that the page states.

    `held_out`, `good` and `defective` are the images that got a score. `faults` are the files that
    got none, each with the reason. `pixel_accuracy` is empty without anomaly maps or without masks.
    `sizes` are the (height, width) of the images, and `times_ms` the milliseconds of each verdict
    on `engine`, the description of an engine, with its `precision`. `data_notes` are sentences
    about probable mistakes in the data set, for example masks that belong to no image.
    """

    bundle: Bundle
    data: Path
    engine: str
    precision: str
    held_out: list[JudgedImage] = field(default_factory=list)
    good: list[JudgedImage] = field(default_factory=list)
    defective: list[JudgedImage] = field(default_factory=list)
    faults: list[tuple[Path, str]] = field(default_factory=list)
    pixel_accuracy: dict[str, float] = field(default_factory=dict)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    times_ms: list[float] = field(default_factory=list)
    data_notes: list[str] = field(default_factory=list)

    @property
    def false_alarms(self) -> int:
        return count_anomalous(self.good)

    @property
    def misses(self) -> int:
        return len(self.defective) - self.detected

    @property
    def detected(self) -> int:
        return count_anomalous(self.defective)

    @property
    def threshold(self) -> float:
        return self.bundle.calibration.threshold

    @property
    def close_distance(self) -> float:
        """The largest distance of a score from the threshold that counts as close to it."""
        manifest = self.bundle.manifest
        return max(manifest.score_tolerance, CLOSE_DEVIATIONS * manifest.score.std)

    def is_close(self, image: JudgedImage) -> bool:
        """Whether the verdict on an image is a close one."""
        return abs(image.score - self.threshold) <= self.close_distance

    @property
    def uninspected(self) -> list[str]:
        """What the geometry leaves uninspected of the smallest and the largest image, in words."""
        geometry = self.bundle.manifest.graph_input.frame_geometry
        losses = []
        sizes = sorted(self.sizes)
        for height, width in sizes[:1] + sizes[-1:]:
            loss = geometry.uninspected(height, width)
            if loss is not None and loss not in losses:
                losses.append(loss)
        return losses

    def labels_and_scores(self) -> tuple[Labels, Scores]:
        """Return the labels [n], True for defective, and the scores [n] of the test images."""
        labels = np.array([False] * len(self.good) + [True] * len(self.defective))
        return labels, scores_of(self.good + self.defective)


def count_anomalous(images: Sequence[JudgedImage]) -> int:
    count = 0
    for image in images:
        if image.anomalous:
            count += 1
    return count


def scores_of(images: Sequence[JudgedImage]) -> Scores:
    """Return the scores of the images: float64 [n]."""
    return np.array([image.score for image in images], float)


def judge_images(
    detector: Detector,
    data: Path,
    held_out: Sequence[Sample],
    test: Sequence[Sample],
    bit_depth: int | None,
    progress: Progress,
) -> Findings:
    """Judge the held-out good images and the test images of `data`.

    `bit_depth` is that of 16-bit images. An image that cannot be judged becomes a fault.
    """
    engine = detector.engine
    findings = Findings(detector.bundle, data, engine.description, engine.precision)
    pixels = _PixelAccuracy(detector.bundle, test)
    total = len(held_out) + len(test)
    for index, (group, sample) in enumerate(_groups(findings, held_out, test)):
        judged = _judge(findings, detector, sample, bit_depth)
        progress("judging", index + 1, total)
        if judged is None:
            continue
        image, verdict = judged
        group.append(JudgedImage(sample, verdict.score, verdict.anomalous))
        if group is not findings.held_out:
            pixels.add(sample, map_on_frame(detector, image, verdict))
    findings.pixel_accuracy = pixels.result()
    return findings


def _groups(
    findings: Findings, held_out: Sequence[Sample], test: Sequence[Sample]
) -> Iterator[tuple[list[JudgedImage], Sample]]:
    """Yield each image with the group of the findings that it belongs to."""
    for sample in held_out:
        yield findings.held_out, sample
    for sample in test:
        if sample.defect is None:
            yield findings.good, sample
        else:
            yield findings.defective, sample


def _judge(
    findings: Findings, detector: Detector, sample: Sample, bit_depth: int | None
) -> tuple[Image, Verdict] | None:
    """Return an image with its verdict; None when it has no score, which is added to the faults."""
    try:
        image = read_image(sample.path, bit_depth)
    except CameraError as error:
        findings.faults.append((sample.path, str(error)))
        return None
    findings.sizes.add(image.shape[:2])
    verdict = detector(image)
    if verdict.reason is not None:
        findings.faults.append((sample.path, verdict.reason))
        return None
    findings.times_ms.append(sum(verdict.milliseconds.values()))
    return image, verdict


class _PixelAccuracy:
    """Collects anomaly maps and masks of the test images, then measures their agreement."""

    def __init__(self, bundle: Bundle, test: Sequence[Sample]) -> None:
        self._geometry = bundle.manifest.graph_input.frame_geometry
        # Without a map or any mask there is nothing to measure, and nothing needs to be stored.
        self._measured = bundle.has_map and any(sample.mask for sample in test)
        self._with_mask = False
        self._maps: list[Any] = []
        self._masks: list[Any] = []

    def add(self, sample: Sample, anomaly_map: Any) -> None:
        """Add a test image with its anomaly map [H, W], which is kept."""
        if not self._measured:
            return
        if sample.defect is not None and sample.mask is None:
            # Which of its pixels are defective is not known.
            return
        if sample.mask is not None:
            self._with_mask = True
        self._maps.append(anomaly_map)
        self._masks.append(read_mask(sample, self._geometry))

    def result(self) -> dict[str, float]:
        """Return the accuracies by name; none without a map or without any mask."""
        if not self._with_mask:
            return {}
        masks = np.array(self._masks)
        maps = np.array(self._maps)
        return {
            "pixel AUROC": metrics.auroc(masks, maps),
            "AUPRO": metrics.aupro(masks, maps),
        }
