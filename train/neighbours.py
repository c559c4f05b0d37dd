"""Are neighbouring images of the sequence similar? Then they promise less than their number says.

Images of one part, or of parts of one hour, are not independent draws from what the line produces.
Two tests on scores of good images notice that. Neither can notice that all images together are
unlike those of next week.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawline.train.data.folds import sequence_order
from flawline.train.out_of_fold import Array, OutOfFold

# Each test warns about independent images with this probability at most.
LEVEL = 0.025
NORMAL_QUANTILE = 1.96
# Smaller differences, relative to the standard deviation of the scores, hardly move a threshold.
SMALLEST_DIFFERENCE = 0.2
SMALLEST_CORRELATION = 0.2
# The distribution of the correlation of fewer scores is far from normal.
SMALLEST_COUNT = 10
REMEDY = "the rate may be higher than stated; give images of more parts, days and settings"


def describe_neighbours(record: OutOfFold | None) -> list[str]:
    """Return a line if out-of-fold scores show that neighbours are similar; else an empty list.

    There are two signs. A detector that was trained without the image but with its neighbours gives
    lower scores than one that saw neither; or neighbours have similar scores. Without folds, or
    before all are trained, the list is empty.
    """
    if record is None or not record.complete:
        return []
    scores = record.scores()
    correlation = _significant_correlation(scores[list(record.order)])
    from_random, from_blocks = record.pairs()
    difference = _significant_difference(from_random, from_blocks, float(scores.std()))
    signs = []
    if difference is not None:
        signs.append(
            f"without its neighbours in the training an image scores {difference:.1f} standard "
            f"deviations higher"
        )
    if correlation is not None:
        signs.append(f"the scores of neighbours correlate by {correlation:.2f}")
    if not signs:
        return []
    return [
        f"warning: neighbouring images of the sequence are similar ({'; '.join(signs)}); the "
        f"threshold uses blocks of the sequence, but {REMEDY}"
    ]


def describe_held_out(paths: Sequence[Path], scores: Array) -> list[str]:
    """Return a line if the scores [n] of held-out images show that neighbours are similar."""
    correlation = _significant_correlation(np.asarray(scores)[sequence_order(paths)])
    if correlation is None:
        return []
    return [
        f"warning: neighbouring images of the sequence are similar (the scores of neighbours among "
        f"the held-out ones correlate by {correlation:.2f}); {REMEDY}"
    ]


def _significant_correlation(scores: Array) -> float | None:
    """Return the rank correlation of scores [n] with the next in the sequence, if it is clear.

    For independent scores it has mean 0 and variance 1 / n, nearly (Wald and Wolfowitz 1943).
    """
    if len(scores) < SMALLEST_COUNT:
        return None
    ranks = np.argsort(np.argsort(scores, kind="stable")).astype(float)
    ranks -= ranks.mean()
    correlation = float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum())
    limit = max(NORMAL_QUANTILE / math.sqrt(len(scores)), SMALLEST_CORRELATION)
    if correlation < limit:
        return None
    return correlation


def _significant_difference(lower: Array, higher: Array, spread: float) -> float | None:
    """Return by how much paired scores [k] are higher, in units of `spread`, if it is clear."""
    differences = higher - lower
    if spread <= 0 or float(differences.mean()) < SMALLEST_DIFFERENCE * spread:
        return None
    if signed_rank_probability(differences) > LEVEL:
        return None
    return float(differences.mean()) / spread


def signed_rank_probability(differences: Array) -> float:
    """Return how probable so large a sum of ranks of positive differences is by chance.

    This is Wilcoxon's one-sided signed-rank test, exact, without the differences that are 0.
    """
    values = differences[differences != 0]
    count = len(values)
    order = np.argsort(np.abs(values), kind="stable")
    rank_sum = 0
    # How many of the 2^count choices of signs have each sum of ranks, divided by 2^count.
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    for rank, index in enumerate(order.tolist(), 1):
        if values[index] > 0:
            rank_sum += rank
        shifted = np.concatenate([np.zeros(rank), chances[:-rank]])
        chances = (chances + shifted) / 2
    return float(chances[rank_sum:].sum())
