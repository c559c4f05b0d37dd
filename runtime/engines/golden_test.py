"""The self-test of an engine: the golden images of a bundle, compared with their stored results."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines.base import Engine, EngineError
from flawline.runtime.engines.choice import is_owner
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image, Map
from flawline.runtime.tolerances import Tolerances, flipped


def self_test(
    engine: Engine,
    bundle: Bundle,
    call: Callable[[Image], tuple[Map, Map]] | None = None,
    golden: Golden | None = None,
) -> float:
    """Run the golden images, and return the largest score error.

    `call` computes in place of a call of the engine. `golden` are those of the bundle, which are
    otherwise read from its folder.

    Raises EngineError if a score or a map leaves the manifest's tolerances, or if a verdict flips.
    Golden scores are farther from the threshold than the tolerance, so that no rounding explains a
    flip. With a threshold from this engine's own lossy scores, a verdict is compared with nothing.
    """
    owns_threshold = is_owner(bundle.calibration.scored_by, engine.name, engine.precision)
    if golden is None:
        golden = bundle.golden()
    largest = 0.0
    for index in range(len(golden.images)):
        # One at a time, as frames of a camera are judged; plans may be built for a batch of 1.
        scores, maps = (call or engine)(golden.images[index : index + 1])
        score = float(scores[0])
        expected = float(golden.scores[index])
        map_error = float(np.max(np.abs(maps[0] - golden.maps[index]), initial=0.0))
        flips = flipped(expected, score, bundle.calibration.threshold) and not owns_threshold
        reason = _drift(bundle, engine.precision, score, expected, map_error, flips)
        if reason is not None:
            raise EngineError(
                f"{engine.description} fails the self-test of {bundle.path}: "
                f"golden image {index} {reason}; "
                f"update the engine, choose another engine, or build the bundle again"
            )
        largest = max(largest, abs(score - expected))
    return largest


def _drift(
    bundle: Bundle,
    precision: str,
    score: float,
    expected: float,
    map_error: float,
    flips: bool,
) -> str | None:
    """Say how the result of a golden image is wrong; None if it is within tolerance."""
    threshold = bundle.calibration.threshold
    tolerances = Tolerances.of(bundle.manifest, precision)
    factor = float(tolerances.factor(expected, threshold))
    score_tolerance = factor * tolerances.score
    map_tolerance = factor * tolerances.map
    error = abs(score - expected)
    # The comparisons are written so that an error that is NaN is out of tolerance.
    if flips or not error <= score_tolerance:
        note = ", so its verdict flips" if flips else ""
        return (
            f"scores {score:.6g} instead of {expected:.6g} (threshold {threshold:.6g}{note}): "
            f"off by {error:.3g}, the tolerance is {score_tolerance:.3g}"
        )
    if not map_error <= map_tolerance:
        return f"has a map that is off by {map_error:.3g}, the tolerance is {map_tolerance:.3g}"
    return None
