"""The criterion that ranks detectors, from held-out good images alone.

For each kind of synthetic anomaly, A(detector, kind) is the image AUROC of the held-out good images
against the anomalies of that kind, averaged over the strengths. The criterion of a detector is

    mean over the kinds of (A(detector, kind) - mean over the detectors of A(., kind)) + mean of all

where a kind that a detector was trained against is left out for that detector. The means of the
kinds are subtracted because kinds differ in difficulty: leaving out an easy or a hard one must
neither favour a detector nor harm it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from flawline.export.choosing.scoring import Scores
from flawline.train.metrics import auroc


def kind_aurocs(good: Sequence[float], anomalies: Scores) -> dict[str, float]:
    """Return the AUROC of each kind of anomaly, averaged over its strengths."""
    values = {}
    for kind, strengths in anomalies.items():
        of_strengths = []
        for scores in strengths.values():
            labels = np.arange(len(good) + len(scores)) >= len(good)
            of_strengths.append(auroc(labels, np.concatenate([good, scores])))
        values[kind] = float(np.mean(of_strengths))
    return values


def criteria(
    aurocs: Mapping[str, Mapping[str, float]], trained_against: Mapping[str, Collection[str]]
) -> dict[str, float]:
    """Return the criterion of each detector.

    Args:
        aurocs: AUROC by kind, by the names of the detectors.
        trained_against: the kinds that a detector was trained against, by its name.

    A detector for which no kind is left has no criterion.
    """
    counted: dict[str, dict[str, float]] = {}
    for name, of_kinds in aurocs.items():
        known = trained_against.get(name, ())
        counted[name] = {kind: value for kind, value in of_kinds.items() if kind not in known}
    means = _means_of_kinds(list(counted.values()))
    level = float(np.mean(list(means.values()))) if means else 0.0
    results = {}
    for name, of_kinds in counted.items():
        if of_kinds:
            above = [value - means[kind] for kind, value in of_kinds.items()]
            results[name] = level + float(np.mean(above))
    return results


def _means_of_kinds(counted: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for of_kinds in counted:
        for kind, value in of_kinds.items():
            values.setdefault(kind, []).append(value)
    return {kind: float(np.mean(of_kind)) for kind, of_kind in values.items()}
