"""Greedy k-centre: few rows that cover many. The next row is always the one farthest from those already kept.

Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018; with the random
projection and the approximate start of PatchCore's code (Roth et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flawline.train.progress import Progress

PROJECTED = 128  # dimensions in which distances are compared: Johnson and Lindenstrauss, as the authors' code
STARTS = 10  # random rows whose mean distance stands in for the distance to a first centre
POOL_SHARE, POOL_LEAST = 32, 4096  # the pool that is followed is a 32nd of all rows
CHUNK = 1 << 14  # rows at a time


def project(features: Any, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows [n, D] (an array, also one mapped from disk) to centred float32 [n, min(D, 128)] on `device`."""
    generator = torch.Generator().manual_seed(seed)
    n, dim = features.shape
    matrix = torch.eye(dim)
    if dim > PROJECTED:
        matrix = torch.randn(dim, PROJECTED, generator=generator) / PROJECTED**0.5
    points = torch.empty(n, matrix.shape[1], device=device)
    for start in range(0, n, CHUNK):
        some = torch.as_tensor(features[start : start + CHUNK], dtype=torch.float32, device=device)
        points[start : start + CHUNK] = some @ matrix.to(device)
    # Squared distances are differences of products, which a common offset would only make less exact.
    return points.sub_(points.mean(0))


@torch.inference_mode()
def greedy_k_centre(points: Tensor, rows: int, seed: int, progress: Progress) -> Tensor:
    """Indices int64 [rows] of `points` [n, d] in the order of choice, none twice; a function of the seed.

    Exactly the greedy choice, at less cost: distances to the kept rows only shrink, so as long as the farthest row of
    a pool of far rows is no nearer than the pool's nearest was, none outside can be farther. Only the pool follows each
    choice; all rows catch up with many choices in one matrix product.
    """
    n = len(points)
    generator = torch.Generator().manual_seed(seed)
    squares = points.square().sum(1)
    start = torch.randperm(n, generator=generator)[:STARTS].to(points.device)
    nearest = (
        torch.cdist(points, points[start]).mean(1).square()
    )  # squared distance to the rows kept
    kept: list[int] = []
    size = min(n, max(POOL_LEAST, n // POOL_SHARE))
    while len(kept) < rows:
        far = torch.topk(nearest, size)
        bound = float(far.values[-1]) if size < n else -1.0
        done = len(kept)
        for i in _choose(points[far.indices], far.values, bound, rows - done):
            kept.append(int(far.indices[i]))
            progress(f"coreset of {rows} rows", len(kept), rows)
        new = torch.tensor(kept[done:], device=points.device)
        _catch_up(nearest, points, squares, new)
        nearest[new] = -1.0
    return torch.tensor(kept, dtype=torch.int64)


def _choose(pool: Tensor, nearest: Tensor, bound: float, most: int) -> Iterator[int]:
    """The greedy choice within a pool, for as long as the farthest of it is at least `bound` away."""
    squares, nearest = pool.square().sum(1), nearest.clone()
    for count in range(most):
        i = int(nearest.argmax())
        if count and float(nearest[i]) < bound:
            return
        to_new = torch.addmv(squares, pool, pool[i], alpha=-2).add_(squares[i]).clamp_(min=0)
        torch.minimum(nearest, to_new, out=nearest)
        nearest[i] = -1.0
        yield i


def _catch_up(nearest: Tensor, points: Tensor, squares: Tensor, new: Tensor) -> None:
    """Lower `nearest` [n], in place, to the squared distance to the closest of the rows `new`."""
    centres, offsets = points[new], squares[new]
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        closest = torch.addmm(offsets, points[part], centres.T, alpha=-2).amin(1)
        torch.minimum(nearest[part], closest.add_(squares[part]).clamp_(min=0), out=nearest[part])
