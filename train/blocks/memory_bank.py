"""A memory bank of feature rows and the distance to its nearest row, as reference and as exported.

`Bank` is the state and the literal search. `NearestRow` and `Reweighting` are the same functions
for an engine: one matrix product against the bank, the distance to the winner evaluated again
exactly, no matrix of roots and no TopK.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.blocks.fused import Size, fp32

# Bank rows whose minimum is computed first: ReduceMin is several times as fast as ArgMin.
BLOCK = 64
# TensorRT indexes a tensor with 32 bits: stay below 2^31 bytes, for batches of up to so many
# frames.
LARGEST_TENSOR = 1 << 31
LARGEST_BATCH = 8
NEIGHBOUR_CHUNK = 1024  # rows whose neighbours are searched together


class Bank(nn.Module):
    """A memory bank; empty until `fill`, and of the size of the state that it loads.

    vectors: the rows, [M, D].
    neighbours: for each row the indices of the rows nearest to it, itself first, [M, b].
    origin: which patch each row was, [M]: image * positions + position.
    """

    vectors: Tensor
    neighbours: Tensor
    origin: Tensor

    def __init__(self, dim: int, neighbours: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(0, dim))
        self.register_buffer("neighbours", torch.zeros(0, neighbours, dtype=torch.int64))
        self.register_buffer("origin", torch.zeros(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The saved bank decides about the number of rows; their size must be that of this bank.
        for name, own in list(self.named_buffers(recurse=False)):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def fill(self, vectors: Tensor, origin: Tensor) -> None:
        """Store rows [M, D] and their origin [M].

        Raises TrainError for fewer rows than neighbours.
        """
        count = self.neighbours.shape[1]
        device = self.vectors.device
        if count > len(vectors):
            raise TrainError(
                f"--reweight {count} is more than the {len(vectors)} rows of the bank; take fewer"
            )
        # Cloned, because tensors made in inference mode cannot be used with autograd.
        self.vectors = vectors.to(device).clone()
        self.origin = origin.to(device).clone()
        self.neighbours = _nearest_rows(self.vectors, count)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the distance [Q] of queries [Q, D] to their nearest row, and its index [Q]."""
        winner = torch.cdist(x, self.vectors).argmin(1)
        return torch.linalg.vector_norm(x - self.vectors[winner], dim=1), winner

    def weight(self, q: Tensor, winner: Tensor) -> Tensor:
        """Compute the weight [N] of the scores of queries q [N, D] (equation 7 of PatchCore).

        It is 1 - exp(d0) / sum exp(dk) over the rows nearest to the winner [N].
        """
        near = self.vectors[self.neighbours[winner]]
        distances = torch.linalg.vector_norm(q[:, None] - near, dim=2)
        return 1 - torch.softmax(distances, 1)[:, 0]


def _nearest_rows(vectors: Tensor, count: int) -> Tensor:
    """Return the indices [M, count] of the rows nearest to each row [M, D], itself first."""
    table = torch.zeros(len(vectors), count, dtype=torch.int64, device=vectors.device)
    if count == 0:
        return table
    for start in range(0, len(vectors), NEIGHBOUR_CHUNK):
        stop = start + NEIGHBOUR_CHUNK
        distance = torch.cdist(vectors[start:stop], vectors)
        # The row itself comes first, even if another row is equal.
        distance.diagonal(start).fill_(-1.0)
        table[start:stop] = distance.topk(count, largest=False).indices
    return table


def whole_blocks(rows: Tensor) -> Tensor:
    """Repeat the last of the rows [M, ...], which changes no minimum, up to a multiple of BLOCK."""
    missing = -len(rows) % BLOCK
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def rows_of_part(grid: Size) -> int:
    """Return how many rows are searched in one part, for features on a grid."""
    bytes_per_row = 4 * LARGEST_BATCH * grid[0] * grid[1]
    return BLOCK * max(1, LARGEST_TENSOR // bytes_per_row // BLOCK)


class _Search(nn.Module):
    """Finds the row [Q, D] nearest to queries [Q, D] and its index [Q], by -2 x m + |m|^2.

    The matrix product may be rounded to FP16. The result is then a row that is about as near as the
    nearest; the distance has to be computed from the row itself.
    """

    rows: Tensor
    squares: Tensor
    columns: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.blocks = len(rows) // BLOCK
        self.register_buffer("rows", rows)
        self.register_buffer("squares", rows.square().sum(1))
        self.register_buffer("columns", torch.arange(BLOCK))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.addmm(self.squares, x, self.rows.t(), alpha=-2)  # [Q, M]
        block = value.view(-1, self.blocks, BLOCK).amin(2).argmin(1, keepdim=True)
        columns = block * BLOCK + self.columns  # [Q, BLOCK], of the winning block
        winner = columns.gather(1, value.gather(1, columns).argmin(1, keepdim=True))[:, 0]
        return self.rows[winner], winner


class _Distance(nn.Module):
    """Computes the distance [N, h, w] to the nearest of some candidates, and its index [N, h, w].

    The candidates are a row [Q, D] and its index [Q] from each part of the bank. The difference is
    evaluated directly, so that small distances are exact.
    """

    def __init__(self, grid: Size) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor, candidates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        first_row, winner = candidates[0]
        distance = torch.linalg.vector_norm(x - first_row, dim=1)
        for row, index in candidates[1:]:
            other = torch.linalg.vector_norm(x - row, dim=1)
            winner = torch.where(other < distance, index, winner)
            distance = torch.minimum(distance, other)
        return distance.view(-1, *self.grid), winner.view(-1, *self.grid)


class NearestRow(nn.Module):
    """Searches the bank: features [N, D, h, w] to distance [N, h, w] and index [N, h, w].

    rows: the bank [M, D] in whole blocks. Features and rows are centred by the same vector: the
    closer both are to zero, the less is lost to rounding. Parts of a large bank are searched one
    after the other, so that no tensor of a batch of LARGEST_BATCH frames reaches LARGEST_TENSOR
    bytes.
    """

    def __init__(self, rows: Tensor, grid: Size) -> None:
        super().__init__()
        part = rows_of_part(grid)
        self.dim = rows.shape[1]
        self.first = list(range(0, len(rows), part))
        self.search = nn.ModuleList(_Search(rows[start : start + part]) for start in self.first)
        self.distance = fp32(_Distance(grid))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = features.permute(0, 2, 3, 1).reshape(-1, self.dim)
        candidates = []
        for search, first in zip(self.search, self.first, strict=True):
            row, winner = search(x)
            if first:
                winner = winner + first
            candidates.append((row, winner))
        nearest: tuple[Tensor, Tensor] = self.distance(x, candidates)
        return nearest


class Reweighting(nn.Module):
    """The image score [N]: the largest patch distance, weighted by how dense the bank is there.

    The rows near each row are known beforehand (`Bank.neighbours`), so nothing is searched again.
    """

    rows: Tensor
    neighbours: Tensor
    spread: Tensor

    def __init__(self, rows: Tensor, neighbours: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("neighbours", neighbours)
        # Zeros whose addition repeats an index for every dimension: an Add instead of an Expand.
        self.register_buffer("spread", torch.zeros(rows.shape[1], dtype=torch.int64))

    def forward(self, features: Tensor, distance: Tensor, winner: Tensor) -> Tensor:
        """Compute the score from centred features [N, D, h, w], distance and index [N, h, w]."""
        distance = distance.flatten(1)
        winner = winner.flatten(1)
        worst = distance.argmax(1, keepdim=True)
        q = features.flatten(2).gather(2, worst[:, :, None] + self.spread[:, None])  # [N, D, 1]
        near = self.rows[self.neighbours[winner.gather(1, worst)[:, 0]]]  # [N, b, D]
        distances = torch.linalg.vector_norm(q.transpose(1, 2) - near, dim=2)
        return distance.amax(1) * (1 - torch.softmax(distances, 1)[:, 0])
