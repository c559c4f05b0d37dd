from __future__ import annotations

import numpy as np
import pytest

from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.tolerances import Tolerances, clear_flip, flipped


@pytest.mark.parametrize(
    ("reference", "score", "flips", "clear"),
    [
        (9.0, 9.5, False, False),
        (9.0, 11.0, True, True),
        (11.0, 9.0, True, True),
        (9.9, 10.05, True, False),
        (10.1, 9.0, True, False),
        (10.0, 10.0, False, False),
        (float("nan"), 11.0, True, True),
        (9.0, float("nan"), False, False),
    ],
)
def test_a_flip_is_clear_if_the_reference_is_not_near_the_threshold(
    reference: float, score: float, flips: bool, clear: bool
) -> None:
    assert flipped(reference, score, 10.0) == flips
    assert clear_flip(reference, score, 10.0, tolerance=0.1000001) == clear


def test_flips_of_many_images_are_found_at_once() -> None:
    reference = np.array([9.0, 9.95, 11.0])
    scores = np.array([11.0, 10.05, 12.0])
    assert flipped(reference, scores, 10.0).tolist() == [True, True, False]
    assert clear_flip(reference, scores, 10.0, 0.1).tolist() == [True, False, False]


def test_the_tolerance_grows_with_the_distance_from_the_threshold() -> None:
    tolerances = Tolerances(score=0.1, map=0.2, far=0.001)
    factors = tolerances.factor(np.array([5.0, 15.0, 1005.0, -1995.0, np.inf, np.nan]), 5.0)
    np.testing.assert_allclose(factors, [1, 1, 10, 20, np.inf, np.nan])
    assert tolerances.factor(5.0, 5.0) == 1


def test_no_error_within_the_far_tolerance_flips_a_decision() -> None:
    """Otherwise a self-test would accept an engine that decides differently."""
    for precision in PRECISIONS.values():
        assert precision.far <= 0.25
