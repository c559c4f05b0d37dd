"""Greedy k-centre: a few rows that cover many; each next row is the one farthest from the others.

Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR
2018; with the random projection and the approximate start of PatchCore's code (Roth et al., CVPR
2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.teaching.coreset import PROJECTED, STARTS
from flawline.train.progress import Progress

# Size of the pool of far rows: a 32nd of all rows, but at least so many.
POOL_FRACTION = 32
SMALLEST_POOL = 4096
CHUNK = 1 << 14  # rows that are processed together


def project(features: npt.NDArray[Any], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Project rows [n, D] at random to centred float32 [n, min(D, 128)] on `device`.

    Distances are preserved approximately. The features may be mapped from disk.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, dim = features.shape
    matrix = torch.eye(dim)
    if dim > PROJECTED:
        matrix = torch.randn(dim, PROJECTED, generator=generator) / PROJECTED**0.5
    matrix = matrix.to(device)
    points = torch.empty(rows, matrix.shape[1], device=device)
    for start in range(0, rows, CHUNK):
        part = features[start : start + CHUNK]
        chunk = torch.as_tensor(part, dtype=torch.float32, device=device)
        points[start : start + CHUNK] = chunk @ matrix
    # Squared distances are differences of products, which a common offset would make less exact.
    return points.sub_(points.mean(0))


@torch.inference_mode()
def greedy_k_centre(points: Tensor, rows: int, seed: int, progress: Progress) -> Tensor:
    """Select rows of `points` [n, d] greedily: indices int64 [rows] in the order of choice.

    No row is selected twice, and the result is a function of the seed. It is exactly the greedy
    choice, at less cost. Distances to the selected rows only shrink, so as long as the farthest row
    of a pool of far rows is at least as far as the nearest row of the pool was, no row outside the
    pool can be farther. Only the pool is updated after each choice; the other rows are updated with
    many choices in one matrix product.
    """
    total = len(points)
    generator = torch.Generator().manual_seed(seed)
    squares = points.square().sum(1)
    start = torch.randperm(total, generator=generator)[:STARTS].to(points.device)
    # Squared distance of every row to the selected rows.
    nearest = torch.cdist(points, points[start]).mean(1).square()
    selected: list[int] = []
    size = min(total, max(SMALLEST_POOL, total // POOL_FRACTION))
    while len(selected) < rows:
        far = torch.topk(nearest, size)
        bound = -1.0
        if size < total:
            bound = float(far.values[-1])
        done = len(selected)
        for index in _choose(points[far.indices], far.values, bound, rows - done):
            selected.append(int(far.indices[index]))
            progress(f"coreset of {rows} rows", len(selected), rows)
        new = torch.tensor(selected[done:], device=points.device)
        _update(nearest, points, squares, new)
        nearest[new] = -1.0
    return torch.tensor(selected, dtype=torch.int64)


def _choose(pool: Tensor, nearest: Tensor, bound: float, most: int) -> Iterator[int]:
    """Yield the greedy choice within a pool, while its farthest row is at least `bound` away."""
    squares = pool.square().sum(1)
    nearest = nearest.clone()
    for count in range(most):
        index = int(nearest.argmax())
        if count and float(nearest[index]) < bound:
            return
        to_new = torch.addmv(squares, pool, pool[index], alpha=-2)
        to_new.add_(squares[index]).clamp_(min=0)
        torch.minimum(nearest, to_new, out=nearest)
        nearest[index] = -1.0
        yield index


def _update(nearest: Tensor, points: Tensor, squares: Tensor, new: Tensor) -> None:
    """Lower `nearest` [n] in place to the squared distance to the closest of the rows `new`."""
    centres = points[new]
    offsets = squares[new]
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        closest = torch.addmm(offsets, points[part], centres.T, alpha=-2).amin(1)
        closest.add_(squares[part]).clamp_(min=0)
        torch.minimum(nearest[part], closest, out=nearest[part])
