"""Parity: errors, flipped decisions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flawline.export import ExportError
from flawline.export.parity import Parity, ScoresAndMaps, compare, require_parity
from flawline.runtime.tolerances import Tolerances

THRESHOLD = 1.0
TOLERANCES = Tolerances(score=0.1, map=0.1, far=0.001)
SCORE_STD = 0.5


def parity(reference: list[float], scores: list[float], map_error: float = 0.0) -> Parity:
    """The parity of two lists of scores; every value of the maps is off by `map_error`."""
    maps = np.zeros((len(scores), 2, 2), np.float32)
    return compare(
        [Path(f"{i}.png") for i in range(len(scores))],
        ScoresAndMaps(np.array(reference), maps),
        ScoresAndMaps(np.array(scores), maps - map_error),
        THRESHOLD,
        TOLERANCES,
        SCORE_STD,
    )


def test_a_clear_flip_is_refused_by_name() -> None:
    result = parity([0.5, 1.5], [0.5, 0.9])
    assert result.clear_flips == ("1.png: 1.5 became 0.9, threshold 1",)
    with pytest.raises(ExportError, match=r"1\.png: 1\.5 became 0\.9.* \(1 in all\)"):
        require_parity(result, TOLERANCES)


def test_a_flip_within_tolerance_is_listed_and_passes() -> None:
    result = parity([0.5, 1.05], [0.5, 0.99])
    assert result.clear_flips == ()
    assert result.near_flips == ("1.png: 1.05 became 0.99, threshold 1",)
    require_parity(result, TOLERANCES)
    assert result.worst_score == pytest.approx(0.06)
    assert result.worst_relative == pytest.approx(0.12)
    summary, note = result.describe()
    assert summary.startswith("parity on 2 images: largest score error 6.00e-02")
    assert summary.endswith("1 flipped decisions")
    assert note == "note: within tolerance of the threshold: 1.png: 1.05 became 0.99, threshold 1"


def test_without_flips_there_is_only_the_summary() -> None:
    (summary,) = parity([0.5, 1.5], [0.51, 1.5]).describe()
    assert summary.endswith("0 flipped decisions")


@pytest.mark.parametrize("score", [0.7, float("nan")])
def test_drift_is_refused_even_without_a_flip(score: float) -> None:
    with pytest.raises(ExportError, match="off by"):
        require_parity(parity([0.5, 1.5], [score, 1.5]), TOLERANCES)


def test_maps_that_drift_are_refused() -> None:
    result = parity([0.5], [0.5], map_error=0.2)
    assert result.worst_map == pytest.approx(0.2)
    with pytest.raises(ExportError, match=r"maps are off by 0\.2, the tolerance is 0\.1"):
        require_parity(result, TOLERANCES)


def test_a_map_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ExportError, match="maps are off by nan"):
        require_parity(parity([0.5], [0.5], map_error=float("nan")), TOLERANCES)


def test_graphs_without_maps_are_compared_by_their_scores() -> None:
    results = ScoresAndMaps(np.array([0.5, 1.5]), np.zeros((2, 0, 0), np.float32))
    paths = [Path("0.png"), Path("1.png")]
    result = compare(paths, results, results, THRESHOLD, TOLERANCES, SCORE_STD)
    assert result.worst_map == 0.0
    require_parity(result, TOLERANCES)


def test_equal_scores_of_all_good_images_are_not_divided_by_zero() -> None:
    results = ScoresAndMaps(np.array([0.5]), np.zeros((1, 2, 2), np.float32))
    assert compare([Path("0.png")], results, results, 1.0, TOLERANCES, 0.0).worst_relative == 0.0


def test_an_error_in_proportion_to_a_far_score_is_accepted() -> None:
    """Such a score may be of any magnitude, and its rounding decides nothing."""
    result = parity([0.5, 1e10], [0.5, 1.0005e10], map_error=0.0)
    assert result.worst_score == pytest.approx(5e6)
    require_parity(result, TOLERANCES)
    with pytest.raises(ExportError, match="scores are off by"):
        require_parity(parity([0.5, 1e10], [0.5, 1.002e10]), TOLERANCES)
    # Near the threshold the absolute tolerance applies, whatever else there is.
    with pytest.raises(ExportError, match=r"scores are off by 0\.2"):
        require_parity(parity([0.5, 1e10], [0.7, 1e10]), TOLERANCES)


def test_the_map_of_a_far_score_gets_the_same_factor() -> None:
    maps = np.zeros((2, 2, 2))
    maps[1] = 1e10
    results = ScoresAndMaps(np.array([0.5, 1e10]), maps)
    drifted = ScoresAndMaps(results.scores, maps * 1.0005)
    paths = [Path("0.png"), Path("1.png")]
    result = compare(paths, results, drifted, THRESHOLD, TOLERANCES, SCORE_STD)
    assert result.worst_map == pytest.approx(5e6)
    require_parity(result, TOLERANCES)


@pytest.mark.parametrize("score", [float("inf"), float("nan"), -1e10])
def test_a_far_score_that_is_wrong_is_refused(score: float) -> None:
    with pytest.raises(ExportError):
        require_parity(parity([0.5, 1e10], [0.5, score]), TOLERANCES)
