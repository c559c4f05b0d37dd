"""How far the results of an engine may be off, and when a decision flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flawline.runtime.manifest import Manifest, Spread
from flawline.runtime.precisions import FP32, PRECISIONS

# Allowed score error of an engine, as a fraction of the standard deviation of good images' scores:
# far above FP32 rounding and the few thousandths of FP16, far below what matters to a threshold.
TOLERANCE = 0.05


def tolerance_of(spread: Spread) -> float:
    """Return the allowed absolute error of a quantity; it is above rounding in any case."""
    return TOLERANCE * max(spread.std, 1e-3 * abs(spread.mean), 1e-6)


@dataclass(frozen=True)
class Tolerances:
    """The allowed absolute errors of a `score` and of every value of a `map`.

    The tolerance of a score is the larger of `score` and the share `far` of its distance to the
    threshold: far from the threshold a score may be of any magnitude, and a rounding error in
    proportion to it decides nothing. The map of an image gets the same factor as its score.
    """

    score: float
    map: float
    far: float

    @classmethod
    def of(cls, manifest: Manifest, precision: str = FP32.name) -> Tolerances:
        """Return the tolerances of a bundle's results in a precision."""
        factors = PRECISIONS[precision]
        return cls(
            factors.score_factor * manifest.score_tolerance,
            factors.map_factor * manifest.map_tolerance,
            factors.far,
        )

    def factor(self, reference: Any, threshold: float) -> Any:
        """Return by what both tolerances are multiplied for an image, 1 or more.

        Takes a reference score or an array [n] of them, and returns float64 or float64 [n].
        """
        distance = np.abs(np.asarray(reference, np.float64) - threshold)
        return np.maximum(1.0, self.far * distance / self.score)


def flipped(reference: Any, score: Any, threshold: float) -> Any:
    """Tell whether two scores of the same image lie on different sides of the threshold.

    Takes numbers or arrays [n], and returns bool or bool [n]. This is the one definition of a
    flipped verdict.
    """
    return (reference > threshold) != (score > threshold)


def clear_flip(reference: Any, score: Any, threshold: float, tolerance: float) -> Any:
    """Tell whether a verdict flips although the reference is not near the threshold.

    Near means within `tolerance`, the range of rounding errors. Takes numbers or arrays [n], and
    returns bool or bool [n]; a reference that is NaN is never near the threshold.
    """
    # Written so that a reference that is NaN is not near.
    near = np.abs(reference - threshold) <= tolerance
    return flipped(reference, score, threshold) & ~near
