"""What a bundle's detector says about the images of a data set, what follows from that, and where it comes from."""

from __future__ import annotations

import hashlib
import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from flawline.benchmarks.bundle_report.charts import Labels, Numbers, number, percent
from flawline.cameras import CameraError
from flawline.cameras.decode import read_image
from flawline.runtime.bundle import CALIBRATION, MANIFEST, Bundle, Spread
from flawline.runtime.detector import Detector
from flawline.runtime.environment import versions
from flawline.runtime.threshold import CONFIDENCE, CalibrationError, beta_quantile, set_threshold
from flawline.train import metrics
from flawline.train.data.images import Sample, read_mask

TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Judged:
    sample: Sample
    score: float
    anomalous: bool


@dataclass(frozen=True)
class Findings:
    """All that the page tells. `held`, `good` and `bad` are images with a score; `faults` (file, why) have none.

    `pixel` is empty where no test image has a mask; `sizes` are (height, width) of the images.
    """

    bundle: Bundle
    data: Path
    engine: str
    held: list[Judged]
    good: list[Judged]
    bad: list[Judged]
    faults: list[tuple[Path, str]]
    pixel: dict[str, float]
    sizes: list[tuple[int, int]]

    @property
    def alarms(self) -> int:
        return sum(j.anomalous for j in self.good)

    @property
    def misses(self) -> int:
        return sum(not j.anomalous for j in self.bad)


def judge(
    detector: Detector, data: Path, held: Sequence[Sample], test: Sequence[Sample], bits: int | None
) -> Findings:
    faults, maps, sizes = [], [], set()
    judged: dict[str, list[Judged]] = {"held": [], "good": [], "bad": []}
    measured: list[Sample] = []
    with_masks = any(s.mask for s in test)
    for i, (group, sample) in enumerate(
        [("held", s) for s in held] + [("bad" if s.defect else "good", s) for s in test], start=1
    ):
        _progress(i, len(held) + len(test))
        try:
            image = read_image(sample.path, bits)
        except CameraError as error:
            faults.append((sample.path, str(error)))
            continue
        verdict = detector(image)
        sizes.add(image.shape[:2])
        if verdict.reason is not None:
            faults.append((sample.path, verdict.reason))
            continue
        judged[group].append(Judged(sample, verdict.score, verdict.anomalous))
        # A defect without a mask says nothing about pixels: it is neither all good nor all defective.
        if with_masks and group != "held" and (sample.mask or group == "good"):
            measured.append(sample)
            assert verdict.anomaly_map is not None
            maps.append(verdict.anomaly_map.copy())
    pixel = _pixel_accuracy(measured, maps, detector) if any(s.mask for s in measured) else {}
    return Findings(detector.bundle, data, detector.engine.description, **judged, faults=faults, pixel=pixel,
                    sizes=sorted(sizes))  # fmt: skip


def _pixel_accuracy(samples: list[Sample], maps: list[Any], detector: Detector) -> dict[str, float]:
    masks = np.array([read_mask(s, detector.bundle.manifest.geometry) for s in samples])
    stacked = np.array(maps)
    return {"pixel AUROC": metrics.auroc(masks, stacked), "AUPRO": metrics.aupro(masks, stacked)}


def _progress(done: int, total: int) -> None:
    """A counter, because the progress bars of `train.fit` would need torch."""
    if sys.stderr.isatty():
        print(
            f"\rjudging {done}/{total}",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )
    elif done == total:
        print(f"judged {total} images", file=sys.stderr, flush=True)


def doubts(f: Findings) -> list[str]:
    """Where calibration.json, which anybody may edit, does not follow from the held-out images."""
    m, c, scores = f.bundle.manifest, f.bundle.calibration, scores_of(f.held)
    try:
        # The interval depends on the number of images only, not on their scores.
        expected = set_threshold(np.arange(c.good_images), c.false_alarm_rate).interval
    except CalibrationError as error:
        return [f"The calibration does not hold: {error}."]
    found = []
    if not np.allclose(expected, c.interval, rtol=0, atol=1e-3):
        found.append(
            f"The calibration states the interval {percent(c.interval[0])} to {percent(c.interval[1])}; that of "
            f"{c.good_images} images with {percent(CONFIDENCE)} confidence is {percent(expected[0])} to "
            f"{percent(expected[1])}: another version wrote it, or somebody edited it."
        )
    spread = (scores.min(), scores.max()) if len(scores) else (math.inf, -math.inf)
    if len(scores) != c.good_images or not np.allclose(
        spread, (m.score.min, m.score.max), 0, m.score_tolerance
    ):
        found.append(
            "The threshold was not set from the held-out good images here, but from others."
        )
    elif (
        abs((original := set_threshold(scores, c.false_alarm_rate).threshold) - c.threshold)
        > m.score_tolerance
    ):
        found.append(
            f"Calibration gives the threshold {number(original)}: it was changed since then, and the promised "
            "false-alarm rate does not belong to it."
        )
    return found


def threshold_interval(scores: Numbers, rate: float) -> tuple[float | None, float | None]:
    """Between which of the held-out good `scores` the threshold for this false-alarm rate lies, with CONFIDENCE.

    The true rate of the k-th smallest score as threshold is Beta(n + 1 - k, k) (`runtime.threshold`): a score is too
    low where that is surely above `rate`, too high where it is surely below. None where n is too small to say.
    """
    ascending, n = np.sort(scores), len(scores)
    if not n or not 0 < rate < 1:
        return None, None
    ranks = range(1, n + 1)
    low = bisect_left(ranks, True, key=lambda k: beta_quantile(TAIL, n + 1 - k, k) < rate)
    high = bisect_left(ranks, True, key=lambda k: beta_quantile(1 - TAIL, n + 1 - k, k) <= rate)
    return float(ascending[low - 1]) if low else None, float(ascending[high]) if high < n else None


def interval(k: int, n: int) -> tuple[float, float]:
    """Where the true rate lies with CONFIDENCE when k of n were counted (Clopper and Pearson)."""
    return (
        beta_quantile(TAIL, k, n - k + 1) if k else 0.0,
        beta_quantile(1 - TAIL, k + 1, n - k) if k < n else 1.0,
    )


def labelled(f: Findings) -> tuple[Labels, Numbers]:
    return np.array([False] * len(f.good) + [True] * len(f.bad)), scores_of(f.good + f.bad)


def rate_of(k: int, n: int) -> str:
    low, high = interval(k, n)
    between = f"{percent(low)} to {percent(high)} with {percent(CONFIDENCE)} confidence"
    return f"{k} of {n}, {percent(k / n)} ({between})"


def scores_of(group: Sequence[Judged]) -> Numbers:
    return np.array([j.score for j in group], float)


def provenance(f: Findings) -> dict[str, Mapping[str, object]]:
    """What was judged by what, as tables: title, then name and value."""
    c, names = f.bundle.calibration, (*f.bundle.sha256, MANIFEST, CALIBRATION)
    files = {name: (f.bundle.path / name).read_bytes() for name in names}
    return {
        "Built": f.bundle.manifest.provenance,
        "Geometry": _geometry(f),
        "Calibration": {
            "threshold": repr(c.threshold),
            "promised false alarms": percent(c.false_alarm_rate),
            f"with {percent(c.confidence)} confidence": f"{percent(c.interval[0])} to {percent(c.interval[1])}",
            "held-out good images": c.good_images,
            "their scores": _spread(f.bundle.manifest.score),
            "their maps’ largest value": _spread(f.bundle.manifest.map_peak),
        },
        "Tolerances of an engine, proven at every load": {
            "score": f"{f.bundle.manifest.score_tolerance:.3g}",
            "map": f"{f.bundle.manifest.map_tolerance:.3g}",
        },
        "Files (SHA-256)": {
            name: hashlib.sha256(content).hexdigest() for name, content in files.items()
        },
        "This report": {
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "bundle": f.bundle.path.resolve(),
            "data": f.data.resolve(),
            "engine": f.engine,
            **versions(),
        },
    }


def _geometry(f: Findings) -> dict[str, object]:
    geometry, sizes = f.bundle.manifest.geometry, [f"{w}x{h}" for h, w in f.sizes]
    shorter = f", shorter side to {geometry.shorter} first" if geometry.shorter else ""
    return {
        "images": ", ".join(sizes[:4])
        + (f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""),
        "model input": f"{geometry.width}x{geometry.height}, {geometry.kind}{shorter}",
        "left uninspected": "; ".join(uninspected(f)) or "nothing",
    }


def _spread(s: Spread) -> str:
    return f"mean {number(s.mean)}, standard deviation {number(s.std)}, {number(s.min)} to {number(s.max)}"


def uninspected(f: Findings) -> list[str]:
    geometry = f.bundle.manifest.geometry
    ends = f.sizes[:1] + f.sizes[-1:]
    return list(dict.fromkeys(text for h, w in ends if (text := geometry.uninspected(h, w))))
