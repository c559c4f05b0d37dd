"""A memory bank of feature rows: the distance to the nearest, as a reference and as the graph that is exported.

`Bank` is the state and the literal search. `Nearest` and `Weight` are the same functions for an engine: one matrix
product against the bank, the winner evaluated again exactly, no distance matrix of roots, no TopK.
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from flawline.train import TrainError

BLOCK = (
    64  # bank rows of which the least is found first: ReduceMin is several times as fast as ArgMin
)
LARGEST = 1 << 31  # bytes of a tensor, which TensorRT's indices end at
FRAMES = 8  # frames a batch for which no tensor passes that
WARM_UP, REPEATS = 3, 20  # calls of a search that is timed
PROBE, TRIALS = 2048, 6  # bank rows whose search is timed first; how many sizes are
SMALLEST = 16  # rows; what is less than that is no bank
AIM, TIGHT = (
    0.97,
    0.9,
)  # of the time allowed: what a size is chosen for; what it need not be improved from


class Bank(nn.Module):
    """`vectors` [M, D]; `neighbours` [M, b], of each row the nearest rows, itself first; `origin` [M], of which patch
    (image * positions + position) it was. Empty until filled; takes the size of what it loads."""

    vectors: Tensor
    neighbours: Tensor
    origin: Tensor

    def __init__(self, dim: int, neighbours: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(0, dim))
        self.register_buffer("neighbours", torch.zeros(0, neighbours, dtype=torch.int64))
        self.register_buffer("origin", torch.zeros(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, own in list(self.named_buffers(recurse=False)):
            if (told := state_dict.get(prefix + name)) is not None and told.shape[1:] == own.shape[
                1:
            ]:
                setattr(self, name, own.new_zeros(told.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def fill(self, vectors: Tensor, origin: Tensor) -> None:
        count, device = self.neighbours.shape[1], self.vectors.device
        if count > len(vectors):
            raise TrainError(
                f"--reweight {count} is more than the {len(vectors)} rows of the bank; take fewer"
            )
        vectors = vectors.to(device)
        table = torch.zeros(len(vectors), count, dtype=torch.int64, device=device)
        for start in range(0, len(vectors) if count else 0, 1024):
            distance = torch.cdist(vectors[start : start + 1024], vectors)
            distance.diagonal(start).fill_(
                -1.0
            )  # itself first, also where another row is its equal
            table[start : start + 1024] = distance.topk(count, largest=False).indices
        # Cloned, as what was made in inference mode stays closed to autograd.
        self.vectors, self.neighbours, self.origin = (
            vectors.clone(),
            table,
            origin.to(device).clone(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [Q] of queries [Q, D] to their nearest row, and which row [Q] that is."""
        winner = torch.cdist(x, self.vectors).argmin(1)
        return torch.linalg.vector_norm(x - self.vectors[winner], dim=1), winner

    def weight(self, q: Tensor, winner: Tensor) -> Tensor:
        """1 - exp(d0) / sum exp(dk) over the rows nearest to the winner [N], for queries q [N, D] (eq. 7)."""
        distances = torch.linalg.vector_norm(
            q[:, None] - self.vectors[self.neighbours[winner]], dim=2
        )
        return 1 - torch.softmax(distances, 1)[:, 0]


def whole_blocks(rows: Tensor) -> Tensor:
    """[M, ...] filled up with its last row, which changes no minimum, to a multiple of `BLOCK`."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % BLOCK, *rows.shape[1:])])


class _Search(nn.Module):
    """Queries [Q, D] to their nearest row [Q, D] and its index [Q], by the least of -2 x m + |m|^2.

    Its matrix product may be rounded to FP16: the index then is of a row as near as makes no difference, and whoever
    wants the distance computes it from that row.
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
    """Queries [Q, D] and the candidates that parts of the bank named, (row [Q, D], index [Q]) each, to the distance
    and the index [N, h, w] of the nearest: evaluated as it is written, so what is near zero comes out near zero."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor, candidates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        distance, winner = torch.linalg.vector_norm(x - candidates[0][0], dim=1), candidates[0][1]
        for row, index in candidates[1:]:
            other = torch.linalg.vector_norm(x - row, dim=1)
            winner = torch.where(other < distance, index, winner)
            distance = torch.minimum(distance, other)
        return distance.view(-1, *self.grid), winner.view(-1, *self.grid)


class Nearest(nn.Module):
    """Centred features [N, D, h, w] to the distance [N, h, w] to the nearest bank row and that row's index [N, h, w].

    `rows` [M, D], whole blocks, are centred alike: the closer both are to zero, the less is lost to rounding. Of a bank
    so large that a batch of `FRAMES` would make a tensor of 2^31 bytes, parts are searched in turn.
    """

    def __init__(self, rows: Tensor, grid: tuple[int, int]) -> None:
        super().__init__()
        most = max(BLOCK, LARGEST // (4 * FRAMES * grid[0] * grid[1]) // BLOCK * BLOCK)
        self.dim, self.first = rows.shape[1], list(range(0, len(rows), most))
        self.search = nn.ModuleList(_Search(rows[start : start + most]) for start in self.first)
        self.distance = _Distance(grid)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = features.permute(0, 2, 3, 1).reshape(-1, self.dim)
        candidates = []
        for search, first in zip(self.search, self.first, strict=True):
            row, winner = search(x)
            candidates.append((row, winner + first if first else winner))
        nearest: tuple[Tensor, Tensor] = self.distance(x, candidates)
        return nearest


class Weight(nn.Module):
    """The image score [N] from patch distances [N, P]: the largest, re-weighted by how crowded the bank is there.

    The rows near each row are known beforehand (`Bank.neighbours`), so nothing is searched again.
    """

    rows: Tensor
    neighbours: Tensor
    spread: Tensor

    def __init__(self, rows: Tensor, neighbours: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("spread", torch.zeros(rows.shape[1], dtype=torch.int64))

    def forward(self, features: Tensor, distance: Tensor, winner: Tensor) -> Tensor:
        """Centred features [N, D, h, w]; distance and index of the nearest row [N, h, w]."""
        distance, winner = distance.flatten(1), winner.flatten(1)
        worst = distance.argmax(1, keepdim=True)
        q = features.flatten(2).gather(2, worst[:, :, None] + self.spread[:, None])  # [N, D, 1]
        near = self.rows[self.neighbours[winner.gather(1, worst)[:, 0]]]  # [N, b, D]
        distances = torch.linalg.vector_norm(q.transpose(1, 2) - near, dim=2)
        return distance.amax(1) * (1 - torch.softmax(distances, 1)[:, 0])


# ---------------------------------------------------------------------- budgets


def bytes_of_row(dim: int, neighbours: int) -> int:
    """What one bank row takes in the exported FP32 graph: its values, its square, its table of indices."""
    return 4 * (dim + 1) + 8 * neighbours


def rows_for_mb(megabytes: float, dim: int, neighbours: int) -> int:
    rows = int(megabytes * 1e6 / bytes_of_row(dim, neighbours))
    if rows < SMALLEST:
        need = SMALLEST * bytes_of_row(dim, neighbours) / 1e6
        raise TrainError(
            f"--budget-mb {megabytes:g} is less than {SMALLEST} bank rows take; give at least {need:.3f}"
        )
    return rows


def rows_for_ms(
    milliseconds: float, dim: int, grid: tuple[int, int], most: int
) -> tuple[int, float]:
    """How many rows ONNX Runtime searches on this machine in so long for one frame, at most `most`; and its time.

    A line through the times of few and of many rows proposes a size; what is returned was timed itself.
    """
    few = search_milliseconds(SMALLEST, dim, grid)
    if few > milliseconds:
        raise TrainError(
            f"--budget-ms {milliseconds:g}: searching as few as {SMALLEST} rows takes {few:.2f} ms here; allow more, "
            f"make --size smaller, or measure while the machine is idle"
        )
    found, rows = (SMALLEST, few), min(most, PROBE)
    for _ in range(TRIALS):
        took = search_milliseconds(rows, dim, grid)
        if took <= milliseconds and rows > found[0]:
            found = rows, took
        if took <= milliseconds and (rows == most or took >= TIGHT * milliseconds):
            break
        further = AIM * (milliseconds - few) / max(took - few, 1e-3)
        rows = min(most, SMALLEST + int((rows - SMALLEST) * min(further, 8.0)))
    return found


def search_milliseconds(rows: int, dim: int, grid: tuple[int, int]) -> float:
    """Time of `Nearest` as exported, one frame of features, with as many random rows, on ONNX Runtime's CPU: the lower
    quartile, which on an idle machine is the median, and on a busy one is nearer to what an idle one would take."""
    import onnxruntime as ort

    random = torch.Generator().manual_seed(0)
    head = Nearest(whole_blocks(torch.randn(rows, dim, generator=random)), grid).eval()
    frame = torch.randn(1, dim, *grid, generator=random)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(head, (frame,), buffer, dynamo=False, opset_version=17, input_names=["x"])  # type: ignore[arg-type]
    session = ort.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    times = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        session.run(None, {"x": frame.numpy()})
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.quantiles(times[WARM_UP:], n=4)[0]
