"""Parity: does the exported graph decide as the trained network does, on real images?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline import FlawlineError


class ExportError(FlawlineError):
    """The export cannot be used; the message is one line and ends with the remedy."""


@dataclass(frozen=True)
class Parity:
    """Score errors of an engine against the torch reference, and what they do to decisions.

    A decision that flips while its reference score is farther than `tolerance` from the threshold is a clear flip.
    """

    images: int
    worst: float
    worst_over_spread: float
    clear_flips: tuple[str, ...]
    near_flips: tuple[str, ...]

    def __str__(self) -> str:
        flips = len(self.clear_flips) + len(self.near_flips)
        return (
            f"parity on {self.images} images: largest score error {self.worst:.2e} "
            f"({self.worst_over_spread:.1e} of the good images' spread), {flips} flipped decisions"
        )


def compare(
    paths: list[Path],
    reference: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    threshold: float,
    tolerance: float,
    spread: float,
) -> Parity:
    """Compare scores [n] of an engine with the reference scores [n] of the same images."""
    error = np.abs(scores - reference)
    flipped = (scores > threshold) != (reference > threshold)
    clear = flipped & ~(np.abs(reference - threshold) <= tolerance)
    worst = float(error.max())

    def told(which: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(
            f"{paths[i]}: {reference[i]:.6g} became {scores[i]:.6g}, threshold {threshold:.6g}"
            for i in np.flatnonzero(which)
        )

    return Parity(len(paths), worst, worst / spread, told(clear), told(flipped & ~clear))


def gate(
    parity: Parity, tolerance: float, map_error: float = 0.0, map_tolerance: float = 0.0
) -> None:
    """Refuse an export whose scores or maps left their tolerance or whose decisions flipped. Raises ExportError."""
    if parity.clear_flips:
        raise ExportError(
            f"the exported graph decides differently: {parity.clear_flips[0]} "
            f"({len(parity.clear_flips)} in all); train again or report this checkpoint"
        )
    if not parity.worst <= tolerance:
        raise ExportError(
            f"the exported graph's scores are off by {parity.worst:.3g}, the tolerance is {tolerance:.3g}; "
            f"train again or report this checkpoint"
        )
    if not map_error <= map_tolerance:
        raise ExportError(
            f"the exported graph's maps are off by {map_error:.3g}, the tolerance is {map_tolerance:.3g}; "
            f"train again or report this checkpoint"
        )
