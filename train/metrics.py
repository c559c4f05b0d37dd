"""Accuracy, exactly: every threshold counts, ties are handled, nothing is binned. numpy and OpenCV only.

Labels are True for defective; scores are higher for more anomalous. A metric that is undefined (only one class) is
NaN.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.bool_]
Scores = npt.NDArray[Any]


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve; tied scores count half (Mann-Whitney)."""
    positives, negatives = _steps(labels, scores)
    if not positives[-1] or not negatives[-1]:
        return float("nan")
    return _area(negatives / negatives[-1], positives / positives[-1])


def average_precision(labels: Labels, scores: Scores) -> float:
    """Sum of precision times the step in recall, from the highest score down."""
    positives, negatives = _steps(labels, scores)
    if not positives[-1]:
        return float("nan")
    precision = positives[1:] / (positives[1:] + negatives[1:])
    return float((np.diff(positives) * precision).sum() / positives[-1])


def aupro(masks: Labels, maps: Scores, limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate of `limit`, divided by it.

    MVTec's official definition (Bergmann et al. 2021): masks and maps [n, H, W]; components with 8-connectivity over
    all images, each weighing the same; false positives over all defect-free pixels. No dilation, no fixed thresholds.
    """
    weights, regions = np.zeros(masks.shape, np.float64), 0
    for mask, weight in zip(masks, weights, strict=True):
        count, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        areas = np.bincount(components.ravel(), minlength=count)
        weight[mask] = 1 / areas[components[mask]]
        regions += count - 1
    background = int((~masks).sum())
    if not regions or not background:
        return float("nan")
    order = np.argsort(maps, axis=None)[::-1]
    last = _last_of_ties(maps.ravel()[order])
    overlap = np.concatenate([[0], np.cumsum(weights.ravel()[order])[last] / regions])
    rate = np.concatenate([[0], np.cumsum(~masks.ravel()[order])[last] / background])
    inside = rate <= limit
    x, y = (
        np.append(rate[inside], limit),
        np.append(overlap[inside], np.interp(limit, rate, overlap)),
    )
    return _area(x, y) / limit


def roc_curve(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """(false-positive rate, true-positive rate), one point per distinct score, from (0, 0) to (1, 1)."""
    positives, negatives = _steps(labels, scores)
    return negatives / max(negatives[-1], 1), positives / max(positives[-1], 1)


def _steps(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Counts of positives and negatives at or above each distinct score, descending, with a leading zero."""
    labels, scores = np.asarray(labels, bool).ravel(), np.asarray(scores).ravel()
    if labels.shape != scores.shape or not labels.size:
        raise ValueError(
            f"labels {labels.shape} and scores {scores.shape} do not match or are empty"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    order = np.argsort(scores, kind="stable")[::-1]
    last = _last_of_ties(scores[order])
    positives = np.cumsum(labels[order])[last]
    return np.concatenate([[0], positives]), np.concatenate([[0], last + 1 - positives])


def _area(x: Scores, y: Scores) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _last_of_ties(descending: Scores) -> Scores:
    return np.append(np.flatnonzero(np.diff(descending)), descending.size - 1)
