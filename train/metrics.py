"""Exact accuracy metrics: every threshold counts, ties are handled, nothing is binned.

Labels are True for defective; scores are higher for more anomalous images or pixels. A metric that
is undefined, because there is only one class, is NaN. Imports numpy and OpenCV only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.bool_]
Scores = npt.NDArray[Any]

EIGHT_CONNECTED = 8


def auroc(labels: Labels, scores: Scores) -> float:
    """Return the area under the ROC curve; tied scores count half (Mann-Whitney).

    labels and scores have the same shape. Raises ValueError for other shapes and for NaN or
    infinity.
    """
    labels, scores = _checked(labels, scores)
    good = np.sort(scores[~labels])
    bad = scores[labels]
    if not bad.size or not good.size:
        return float("nan")
    at = _thresholds(bad, np.ones(bad.size), good)
    pairs = at.weight * (good.size - (at.good_above + at.good_from) / 2)
    return float(pairs.sum() / (bad.size * good.size))


def average_precision(labels: Labels, scores: Scores) -> float:
    """Return the sum of precision times the step in recall, from the highest score down.

    labels and scores have the same shape. Raises ValueError for other shapes and for NaN or
    infinity.
    """
    labels, scores = _checked(labels, scores)
    bad = scores[labels]
    if not bad.size:
        return float("nan")
    at = _thresholds(bad, np.ones(bad.size), np.sort(scores[~labels]))
    found = np.cumsum(at.weight)
    return float((at.weight * found / (found + at.good_from)).sum() / bad.size)


def aupro(masks: Labels, maps: Scores, limit: float = 0.3) -> float:
    """Return the area under the per-region-overlap curve up to `limit`, divided by `limit`.

    `limit` is a false-positive rate; masks and maps are [n, H, W]. This is MVTec's official
    definition (Bergmann et al. 2021): regions are 8-connected components of all images, each with
    the same weight; false positives are counted over all defect-free pixels. There is no dilation,
    and thresholds are not sampled.
    """
    weights, regions = _region_weights(masks)
    background = np.sort(maps[~masks])
    if not regions or not background.size:
        return float("nan")
    at = _thresholds(maps[masks], weights[masks], background)
    # Between two of these thresholds the curve is horizontal: it has a point before each of them
    # and one at it.
    steps = np.cumsum(at.weight) / regions
    overlap = np.concatenate([[0], np.repeat(steps, 2)])
    rate = np.stack([at.good_above, at.good_from], 1).ravel() / background.size
    rate = np.append(rate, 1.0)
    inside = rate <= limit
    x = np.append(rate[inside], limit)
    y = np.append(overlap[inside], np.interp(limit, rate, overlap))
    return _area(x, y) / limit


def good_passed(labels: Labels, scores: Scores, missed: float = 0.02) -> float:
    """Return the share of good images that pass if at most this share of the bad ones is missed.

    labels and scores are [n]. This is PGn of Baitieva et al. ("Beyond academic benchmarks", 2025),
    PG2 for the default: with the highest threshold that misses no more than `missed` of the bad
    images, a score above it rejects an image. The allowed share is rounded down to whole images.
    anomalib's PGn interpolates between two scores instead, and can miss one image more.
    """
    good, bad = _good_and_bad(labels, scores)
    if not good.size or not bad.size:
        return float("nan")
    # The first bad image that must be found: good images below its score can pass.
    limit = np.sort(bad)[_whole_images(missed, bad.size)]
    return float(np.mean(good < limit))


def bad_caught(labels: Labels, scores: Scores, rejected: float = 0.02) -> float:
    """Return the share of bad images that are found if at most this share of good is rejected.

    labels and scores are [n]. This is PBn of the same paper, PB2 for the default: with the lowest
    threshold that rejects no more than `rejected` of the good images. The allowed share is rounded
    down to whole images; anomalib's PBn interpolates between two scores instead.
    """
    good, bad = _good_and_bad(labels, scores)
    if not good.size or not bad.size:
        return float("nan")
    # The first good image that must pass: bad images above its score are found.
    limit = np.sort(good)[::-1][_whole_images(rejected, good.size)]
    return float(np.mean(bad > limit))


def f1(labels: Labels, found: Labels) -> float:
    """Return the harmonic mean of precision and recall; labels and found have the same shape.

    Of pixels it is SegF1: all pixels of all images are counted together. It is NaN where nothing
    is defective and nothing is found.
    """
    if labels.shape != found.shape:
        raise ValueError(f"labels {labels.shape} and found {found.shape} do not match")
    both = np.count_nonzero(labels & found)
    either = np.count_nonzero(labels) + np.count_nonzero(found)
    if not either:
        return float("nan")
    return float(2 * both / either)


def roc_curve(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Return false-positive and true-positive rates, one point per distinct score.

    The curve runs from (0, 0) to (1, 1); labels and scores have the same shape.
    """
    positives, negatives = _cumulative_counts(labels, scores)
    false_positive_rate = negatives / max(negatives[-1], 1)
    true_positive_rate = positives / max(positives[-1], 1)
    return false_positive_rate, true_positive_rate


def _good_and_bad(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Return the scores of the good and of the bad images. Raises ValueError as `auroc` does."""
    labels, scores = _checked(labels, scores)
    return scores[~labels], scores[labels]


def _whole_images(share: float, images: int) -> int:
    """Return how many whole images a share of them is, rounded down; less than all."""
    if not 0 <= share < 1:
        raise ValueError(f"a share of {share:g} is not from 0 to below 1")
    # A product such as 0.07 * 100 is inexact, and may lie just above or below a whole number.
    return int(share * images + 1e-9)


def _region_weights(masks: Labels) -> tuple[npt.NDArray[np.float64], int]:
    """Return 1 / area of its region for each pixel [n, H, W], 0 outside; and how many regions."""
    weights = np.zeros(masks.shape, np.float64)
    regions = 0
    for mask, weight in zip(masks, weights, strict=True):
        count, components = cv2.connectedComponents(
            mask.astype(np.uint8), connectivity=EIGHT_CONNECTED
        )
        areas = np.bincount(components.ravel(), minlength=count)
        weight[mask] = 1 / areas[components[mask]]
        regions += count - 1
    return weights, regions


class _Thresholds(NamedTuple):
    """The distinct scores of what is defective, from the highest down, as thresholds.

    weight: that of the defective ones with this score. good_above, good_from: how many good ones
    have a higher score, and how many that or a higher one.
    """

    weight: npt.NDArray[np.float64]
    good_above: npt.NDArray[np.int_]
    good_from: npt.NDArray[np.int_]


def _thresholds(bad: Scores, weights: Scores, good: Scores) -> _Thresholds:
    """Return the thresholds of scores [n] with weights [n]; `good` are sorted scores.

    Only the few defective pixels are ordered with their weights. Sorting the values of the others
    takes a fraction of the time of ordering them.
    """
    order = np.argsort(bad, kind="stable")[::-1]
    last = _last_of_ties(bad[order])
    weight = np.diff(np.cumsum(weights[order])[last], prepend=0.0)
    distinct = bad[order][last]
    good_above = good.size - np.searchsorted(good, distinct, "right")
    good_from = good.size - np.searchsorted(good, distinct, "left")
    return _Thresholds(weight, good_above, good_from)


def _cumulative_counts(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Count positives and negatives at or above each distinct score, descending, from zero on."""
    labels, scores = _checked(labels, scores)
    order = np.argsort(scores, kind="stable")[::-1]
    last = _last_of_ties(scores[order])
    positives = np.concatenate([[0], np.cumsum(labels[order])[last]])
    everything = np.concatenate([[0], last + 1])
    return positives, everything - positives


def _checked(labels: Labels, scores: Scores) -> tuple[Labels, Scores]:
    """Return both as flat arrays. Raises ValueError if they do not match or are not finite."""
    labels = np.asarray(labels, bool).ravel()
    scores = np.asarray(scores).ravel()
    if labels.shape != scores.shape or not labels.size:
        raise ValueError(
            f"labels {labels.shape} and scores {scores.shape} do not match or are empty"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinity")
    return labels, scores


def _area(x: Scores, y: Scores) -> float:
    """Return the area under a piecewise linear curve."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _last_of_ties(descending: Scores) -> Scores:
    """Return the index of the last element of each group of equal values."""
    return np.append(np.flatnonzero(np.diff(descending)), descending.size - 1)
