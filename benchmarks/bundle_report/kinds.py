"""How many images of each kind of defect are detected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawline.benchmarks.bundle_report.findings import JudgedImage, scores_of


@dataclass(frozen=True)
class DefectKind:
    """A kind of defect and how many of its images a threshold detects."""

    name: str
    images: int
    detected: int
    median_score: float

    @property
    def share(self) -> float:
        return self.detected / self.images


def kinds_of(defective: Sequence[JudgedImage], threshold: float) -> list[DefectKind]:
    """Return the kinds of defect among these images, in alphabetical order."""
    kinds = []
    for name, images in images_by_kind(defective).items():
        scores = scores_of(images)
        detected = int((scores > threshold).sum())
        kinds.append(DefectKind(name, len(images), detected, float(np.median(scores))))
    return kinds


def images_by_kind(defective: Sequence[JudgedImage]) -> dict[str, list[JudgedImage]]:
    """Return the images of each kind of defect, in alphabetical order of the kinds."""
    groups: dict[str, list[JudgedImage]] = {}
    for judged in sorted(defective, key=lambda image: str(image.sample.defect)):
        groups.setdefault(str(judged.sample.defect), []).append(judged)
    return groups
