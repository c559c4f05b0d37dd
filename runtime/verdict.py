"""The decision about an image or a part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flawline.runtime.drift.reading import Reading
from flawline.runtime.find_part import Pose
from flawline.runtime.image import Map

GOOD = "good"
REVIEW = "review"
ANOMALOUS = "anomalous"
UNJUDGED = "unjudged"
# What engines begin to look for a maximum with: the score of a map without any number.
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Verdict:
    """The decision about one image.

    A part is anomalous if its `score` is above `threshold`. If it is not, and the score is above
    `review_threshold`, the part is for a person to look at; None if no part is reviewed.
    `anomaly_map` is float32 [H, W] on the model's input grid, or on that of all tiles, [0, 0] if
    the bundle was built for the score alone, and None if the image could not be judged. It belongs
    to the engine and is overwritten by the detector's next call. Outside of the inspected area it
    has its lowest value. `milliseconds` holds the time of each stage; it is
    empty if the image could not be judged. `reason` says why a part was rejected without a usable
    score; then `score` is not finite, and `anomalous` is true, so that code that reads nothing else
    rejects the part.

    In a continuous stream that rejects only while several of the last frames are bad, `anomalous`
    says that, and `recent_bad` counts them, with this one; otherwise it is None.

    `pose` says how the part lies in the image, if the bundle has a fixture and it found the part.
    `reading` is what was read of the image for the check of drift, and `drift` the warnings of that
    check that are on for its camera; see `runtime/drift/`.
    """

    score: float
    threshold: float
    anomalous: bool
    anomaly_map: Map | None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    review_threshold: float | None = None
    recent_bad: int | None = None
    pose: Pose | None = None
    reading: Reading | None = None
    drift: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """False if the part was rejected without a usable score; `reason` then says why."""
        return self.reason is None

    @property
    def review(self) -> bool:
        """True if the part is not rejected, and a person is to look at it."""
        if self.anomalous or self.review_threshold is None:
            return False
        return self.score > self.review_threshold

    @property
    def name(self) -> str:
        """The verdict in one word: "good", "review", "anomalous", or "unjudged" without a score."""
        if not self.judged:
            return UNJUDGED
        if self.anomalous:
            return ANOMALOUS
        if self.review:
            return REVIEW
        return GOOD


def fault_of(score: float, anomaly_map: Map) -> str | None:
    """Say why a result of the engine is none: it has values that are not finite; else None.

    `anomaly_map` is as of `Verdict`. It is looked at although the score is mostly its maximum: ONNX
    Runtime leaves NaN out of a maximum, and OpenVINO may return the lowest float32 instead, so that
    the part would be good.
    """
    if not math.isfinite(score) or score <= LOWEST:
        return f"the score is {score:g}, not a finite number: the part is rejected"
    # NaN is both the least and the largest value of an array that holds it.
    if anomaly_map.size and not np.isfinite([anomaly_map.min(), anomaly_map.max()]).all():
        return "the anomaly map has values that are not finite numbers: the part is rejected"
    return None
