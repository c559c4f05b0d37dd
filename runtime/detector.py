"""A detector judges source images: prepare, run the engine, compare with the threshold."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineOptions, open_engine
from flawline.runtime.image import Image, Map, overlay, prepare, to_source


@dataclass(frozen=True)
class Verdict:
    """What was decided on one image.

    `map` is float32 [H, W] on the model's input grid ([0, 0] where the bundle was built for the score alone) and is
    overwritten by the detector's next call. `reason` says why a part was rejected without a usable score.
    `milliseconds` holds the time of each stage.
    """

    score: float
    threshold: float
    anomalous: bool
    map: Map
    milliseconds: dict[str, float]
    reason: str | None = None


class Detector:
    """A bundle with an engine opened and proven for it. Use as a context manager, or close it."""

    def __init__(
        self, bundle: Bundle, engine: str = "auto", options: EngineOptions | None = None
    ) -> None:
        self.bundle = bundle
        self.engine = open_engine(bundle, engine, options)

    def __call__(self, image: npt.NDArray[Any]) -> Verdict:
        """Judge a uint8 [h, w, 3] BGR or [h, w] mono image. A score that is no finite number rejects the part."""
        start = time.perf_counter()
        prepared = prepare(image, self.bundle.manifest.geometry)
        ready = time.perf_counter()
        scores, maps = self.engine(prepared[None])
        done = time.perf_counter()
        score, threshold = float(scores[0]), self.bundle.calibration.threshold
        finite = math.isfinite(score)
        return Verdict(
            score=score,
            threshold=threshold,
            anomalous=score > threshold or not finite,
            map=maps[0],
            milliseconds={"prepare": 1e3 * (ready - start), "infer": 1e3 * (done - ready)},
            reason=None if finite else f"the score is {score}, not a number: the part is rejected",
        )

    def paint(self, image: Image, heat: Map) -> Image:
        """The anomaly map painted over the source image: uint8 [h, w, 3] BGR.

        Colour starts where the map leaves what good images show and is full at the same distance again.
        """
        peak = self.bundle.manifest.map_peak
        low, high = peak.mean, max(peak.max, peak.mean + 3 * peak.std)
        span = max(2 * (high - low), 1e-6)
        located = to_source(heat, self.bundle.manifest.geometry, *image.shape[:2])
        return overlay(image, np.asarray((located - low) / span, np.float32))

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
