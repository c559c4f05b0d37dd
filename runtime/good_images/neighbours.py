"""Are neighbouring images of the sequence similar? Then they promise less than their number says.

Images of one part, or of parts of one hour, are not independent draws from what the line produces.
Two tests on scores of good images notice that. Neither can notice that all images together are
unlike those of next week.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flawline.runtime.good_images.folds import sequence_order
from flawline.runtime.good_images.out_of_fold import Array, OutOfFold

# Each test warns about independent images with this probability at most.
LEVEL = 0.025
# Smaller differences, relative to the standard deviation of the scores, hardly move a threshold.
SMALLEST_DIFFERENCE = 0.2
SMALLEST_CORRELATION = 0.2
PERMUTATIONS = 999
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
    blocks = [np.array(part.scores) for part in record.folds]
    correlation = _significant_correlation(blocks)
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
    correlation = _significant_correlation([np.asarray(scores)[sequence_order(paths)]])
    if correlation is None:
        return []
    return [
        f"warning: neighbouring images of the sequence are similar (the scores of neighbours among "
        f"the held-out ones correlate by {correlation:.2f}); {REMEDY}"
    ]


def _significant_correlation(blocks: Sequence[Array]) -> float | None:
    """Return the rank correlation of scores with the next in the sequence, if it is clear.

    Scores [n] of each block are compared among each other only, because another block has another
    detector. The same is computed for random orders of each block (a permutation test).
    """
    ranked = []
    for scores in blocks:
        ranks = _mean_ranks(scores)
        ranked.append(ranks - ranks.mean())
    total = sum(float((ranks**2).sum()) for ranks in ranked)
    if total == 0:
        return None
    correlation = _sum_of_products(ranked) / total
    rng = np.random.default_rng(0)
    as_high = 1
    for _ in range(PERMUTATIONS):
        if _sum_of_products([rng.permutation(ranks) for ranks in ranked]) / total >= correlation:
            as_high += 1
    if correlation < SMALLEST_CORRELATION or as_high > LEVEL * (PERMUTATIONS + 1):
        return None
    return correlation


def _mean_ranks(values: Array) -> Array:
    """Return the ranks of values [n]; equal ones get the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _sum_of_products(blocks: Sequence[Array]) -> float:
    """Return the sum of the products of neighbours in each block."""
    return sum(float((ranks[1:] * ranks[:-1]).sum()) for ranks in blocks)


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
