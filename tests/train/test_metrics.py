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


def test_one_class_is_undefined_and_nan_is_refused() -> None:
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


def test_aupro_weighs_regions_not_pixels() -> None:
    masks = np.zeros((1, 30, 30), bool)
    masks[0, :10, :10] = masks[0, 20, 20] = True
    heat = np.zeros(masks.shape)
    heat[0, 20, 20] = (
        2  # the small region is found before any background, the large one never before all of it
    )
    heat[0, :10, :10] = -1
    assert metrics.aupro(masks, heat) == pytest.approx(0.5, abs=0.01)


def test_aupro_against_the_definition_threshold_by_threshold() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    masks = rng.random((3, 24, 24)) > 0.9
    maps = np.round(rng.random(masks.shape) + 0.6 * masks, 2)
    xs, ys = [0.0], [0.0]
    regions = []
    for i, mask in enumerate(masks):
        count, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [(i, components == c) for c in range(1, count)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        xs.append(float((found & ~masks).sum() / (~masks).sum()))
        ys.append(float(np.mean([found[i][region].mean() for i, region in regions])))
    grid = np.unique(np.concatenate([[x for x in xs if x <= 0.3], [0.3]]))
    expected = 0.0
    for a, b in pairwise(grid):
        expected += (b - a) * (np.interp(a, xs, ys) + np.interp(b, xs, ys)) / 2
    assert metrics.aupro(masks, maps) == pytest.approx(expected / 0.3, abs=5e-3)
