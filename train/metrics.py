"""Exact accuracy metrics: every threshold counts, ties are handled, nothing is binned.

Labels are True for defective; scores are higher for more anomalous images or pixels. A metric that
is undefined, because there is only one class, is NaN. Imports numpy and OpenCV only.
"""

from __future__ import annotations

from typing import Any

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
    positives, negatives = _cumulative_counts(labels, scores)
    if not positives[-1] or not negatives[-1]:
        return float("nan")
    return _area(negatives / negatives[-1], positives / positives[-1])


def average_precision(labels: Labels, scores: Scores) -> float:
    """Return the sum of precision times the step in recall, from the highest score down.

    labels and scores have the same shape. Raises ValueError for other shapes and for NaN or
    infinity.
    """
    positives, negatives = _cumulative_counts(labels, scores)
    if not positives[-1]:
        return float("nan")
    precision = positives[1:] / (positives[1:] + negatives[1:])
    return float((np.diff(positives) * precision).sum() / positives[-1])


def aupro(masks: Labels, maps: Scores, limit: float = 0.3) -> float:
    """Return the area under the per-region-overlap curve up to `limit`, divided by `limit`.

    `limit` is a false-positive rate; masks and maps are [n, H, W]. This is MVTec's official
    definition (Bergmann et al. 2021): regions are 8-connected components of all images, each with
    the same weight; false positives are counted over all defect-free pixels. There is no dilation,
    and thresholds are not sampled.
    """
    weights, regions = _region_weights(masks)
    background = int((~masks).sum())
    if not regions or not background:
        return float("nan")
    order = np.argsort(maps, axis=None)[::-1]
    last = _last_of_ties(maps.ravel()[order])
    overlap = np.cumsum(weights.ravel()[order])[last] / regions
    rate = np.cumsum(~masks.ravel()[order])[last] / background
    overlap = np.concatenate([[0], overlap])
    rate = np.concatenate([[0], rate])
    inside = rate <= limit
    x = np.append(rate[inside], limit)
    y = np.append(overlap[inside], np.interp(limit, rate, overlap))
    return _area(x, y) / limit


def roc_curve(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Return false-positive and true-positive rates, one point per distinct score.

    The curve runs from (0, 0) to (1, 1); labels and scores have the same shape.
    """
    positives, negatives = _cumulative_counts(labels, scores)
    false_positive_rate = negatives / max(negatives[-1], 1)
    true_positive_rate = positives / max(positives[-1], 1)
    return false_positive_rate, true_positive_rate


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


def _cumulative_counts(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Count positives and negatives at or above each distinct score, descending, from zero on."""
    labels = np.asarray(labels, bool).ravel()
    scores = np.asarray(scores).ravel()
    if labels.shape != scores.shape or not labels.size:
        raise ValueError(
            f"labels {labels.shape} and scores {scores.shape} do not match or are empty"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinity")
    order = np.argsort(scores, kind="stable")[::-1]
    last = _last_of_ties(scores[order])
    positives = np.concatenate([[0], np.cumsum(labels[order])[last]])
    everything = np.concatenate([[0], last + 1])
    return positives, everything - positives


def _area(x: Scores, y: Scores) -> float:
    """Return the area under a piecewise linear curve."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _last_of_ties(descending: Scores) -> Scores:
    """Return the index of the last element of each group of equal values."""
    return np.append(np.flatnonzero(np.diff(descending)), descending.size - 1)
