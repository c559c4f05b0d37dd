"""Accuracy metrics against hand calculations, scikit-learn and the definition of AUPRO."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from flawline.train import metrics

pytestmark = pytest.mark.torch


def test_by_hand() -> None:
    labels = np.array([0, 0, 1, 1], bool)
    assert metrics.auroc(labels, np.array([1, 2, 3, 4])) == 1
    assert metrics.auroc(labels, np.array([4, 3, 2, 1])) == 0
    assert metrics.auroc(labels, np.array([1, 1, 1, 1])) == 0.5
    assert metrics.auroc(labels, np.array([1, 3, 2, 4])) == 0.75
    assert metrics.average_precision(labels, np.array([1, 3, 2, 4])) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_against_scikit_learn_with_ties() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.random(300) < 0.3
        scores = rng.integers(0, 40, 300) + 10 * labels
        assert metrics.auroc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores))
        assert metrics.average_precision(labels, scores) == pytest.approx(
            sklearn.average_precision_score(labels, scores)
        )
        fpr, tpr, _ = sklearn.roc_curve(labels, scores, drop_intermediate=False)
        got_fpr, got_tpr = metrics.roc_curve(labels, scores)
        np.testing.assert_allclose(got_fpr, fpr)
        np.testing.assert_allclose(got_tpr, tpr)


def test_one_class_is_nan_and_scores_of_nan_are_refused() -> None:
    assert np.isnan(metrics.auroc(np.zeros(3, bool), np.arange(3)))
    assert np.isnan(metrics.aupro(np.zeros((1, 4, 4), bool), np.ones((1, 4, 4))))
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(np.array([True, False]), np.array([np.nan, 1]))
    with pytest.raises(ValueError, match="match"):
        metrics.auroc(np.array([True]), np.array([1, 2]))


def test_aupro_of_a_perfect_and_of_a_useless_map() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:6, 2:6] = masks[0, 10:12, 10:18] = masks[1, 5, 5] = True
    assert metrics.aupro(masks, masks.astype(float)) == pytest.approx(1)
    assert metrics.aupro(masks, np.ones(masks.shape)) == pytest.approx(0.15)
    assert metrics.aupro(masks, -masks.astype(float)) == pytest.approx(0)


def test_aupro_weights_regions_not_pixels() -> None:
    masks = np.zeros((1, 30, 30), bool)
    masks[0, :10, :10] = masks[0, 20, 20] = True
    anomaly_map = np.zeros(masks.shape)
    # The small region comes before all background, the large one after all of it.
    anomaly_map[0, 20, 20] = 2
    anomaly_map[0, :10, :10] = -1
    assert metrics.aupro(masks, anomaly_map) == pytest.approx(0.5, abs=0.01)


def test_aupro_against_the_definition_threshold_by_threshold() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    masks = rng.random((3, 24, 24)) > 0.9
    maps = np.round(rng.random(masks.shape) + 0.6 * masks, 2)
    regions = []
    for image, mask in enumerate(masks):
        count, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        for component in range(1, count):
            regions.append((image, components == component))
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        positive = maps >= threshold
        rate = (positive & ~masks).sum() / (~masks).sum()
        overlaps = [positive[image][region].mean() for image, region in regions]
        points.append((float(rate), float(np.mean(overlaps))))
    assert metrics.aupro(masks, maps) == pytest.approx(area_up_to(points, 0.3) / 0.3, rel=1e-9)


def area_up_to(points: list[tuple[float, float]], limit: float) -> float:
    """The area under a piecewise linear curve up to a value of x."""
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 == x0 else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area


# ---------------------------------------------------------------- decisions


def test_the_share_that_passes_or_is_caught_against_every_threshold() -> None:
    """PG and PB by trying every threshold, with ties."""
    rng = np.random.default_rng(1)
    for images in (30, 49, 50, 51, 150, 313):
        labels = rng.random(images) < 0.6
        labels[:2] = (True, False)
        scores = np.round(rng.normal(size=images) + labels, 1)
        passed = caught = 0.0
        for threshold in (-np.inf, *np.unique(scores)):
            rejected = scores > threshold
            if 50 * (labels & ~rejected).sum() <= labels.sum():
                passed = max(passed, float((~rejected)[~labels].mean()))
            if 50 * (~labels & rejected).sum() <= (~labels).sum():
                caught = max(caught, float(rejected[labels].mean()))
        assert metrics.good_passed(labels, scores) == pytest.approx(passed)
        assert metrics.bad_caught(labels, scores) == pytest.approx(caught)


def test_no_more_than_the_stated_share_is_given_up() -> None:
    """The example of anomalib's PGn and PBn, at 20 % of two images, which allow no error.

    By interpolation between the two images, anomalib has 1.0 there, with one of two misjudged.
    """
    labels = np.array([0, 0, 1, 1], bool)
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert metrics.good_passed(labels, scores, 0.2) == 0.5
    assert metrics.bad_caught(labels, scores, 0.2) == 0.5
    assert metrics.good_passed(labels, scores, 0.5) == 1.0
    assert metrics.bad_caught(labels, scores, 0.5) == 1.0


def test_shares_of_one_kind_are_nan_and_impossible_shares_are_refused() -> None:
    scores = np.arange(3.0)
    assert np.isnan(metrics.good_passed(np.ones(3, bool), scores))
    assert np.isnan(metrics.bad_caught(np.zeros(3, bool), scores))
    labels = np.array([0, 1, 1], bool)
    with pytest.raises(ValueError, match="share"):
        metrics.good_passed(labels, scores, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        metrics.bad_caught(labels, np.array([0, 1, np.nan]))


def test_f1_against_precision_and_recall() -> None:
    rng = np.random.default_rng(2)
    masks = rng.random((2, 9, 8)) < 0.2
    found = rng.random(masks.shape) < 0.3
    precision = masks[found].mean()
    recall = found[masks].mean()
    expected = 2 * precision * recall / (precision + recall)
    assert metrics.f1(masks, found) == pytest.approx(expected)
    assert metrics.f1(masks, np.zeros_like(masks)) == 0
    assert np.isnan(metrics.f1(np.zeros(3, bool), np.zeros(3, bool)))
    with pytest.raises(ValueError, match="match"):
        metrics.f1(masks, found[:1])
