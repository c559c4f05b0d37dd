"""How many rows a memory bank may have, from a budget of megabytes or of milliseconds."""

from __future__ import annotations

import statistics

import torch

from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.timing import time_calls
from flawline.train import TrainError
from flawline.train.blocks.fused import Size
from flawline.train.blocks.memory_bank import NearestRow, whole_blocks
from flawline.train.blocks.tracing import trace_to_onnx

SMALLEST_BANK = 16  # rows
# Calls of a search before it is timed, and calls that are timed.
WARM_UP = 3
REPEATS = 20
FIRST_TRIAL = 2048  # rows whose search is timed first
TRIALS = 6
LARGEST_GROWTH = 8.0  # of the number of rows from one trial to the next
# Fraction of the time budget that a trial aims for, and fraction at which the search stops.
AIM = 0.97
TIGHT = 0.9


def bytes_of_row(dim: int, neighbours: int) -> int:
    """Return the bytes that a bank row adds to the exported FP32 graph.

    These are its values, its square and its table of neighbour indices.
    """
    return 4 * (dim + 1) + 8 * neighbours


def rows_for_megabytes(megabytes: float, dim: int, neighbours: int) -> int:
    """Return how many rows fit into a budget.

    Raises TrainError for less than SMALLEST_BANK rows.
    """
    rows = int(megabytes * 1e6 / bytes_of_row(dim, neighbours))
    if rows < SMALLEST_BANK:
        needed = SMALLEST_BANK * bytes_of_row(dim, neighbours) / 1e6
        raise TrainError(
            f"--budget-mb {megabytes:g} is less than {SMALLEST_BANK} bank rows take; "
            f"give at least {needed:.3f}"
        )
    return rows


def rows_for_milliseconds(
    milliseconds: float, dim: int, grid: Size, most: int
) -> tuple[int, float]:
    """Return how many rows, at most `most`, this machine searches in a time budget per frame.

    Also returns the measured time of that search in ms. A line through the times of few and of many
    rows proposes a size, which is then timed itself. Raises TrainError if the smallest bank takes
    longer.
    """
    shortest = search_milliseconds(SMALLEST_BANK, dim, grid)
    if shortest > milliseconds:
        raise TrainError(
            f"--budget-ms {milliseconds:g}: searching as few as {SMALLEST_BANK} rows takes "
            f"{shortest:.2f} ms on this machine; allow more, use a smaller --size, or an idle "
            "machine"
        )
    best = (SMALLEST_BANK, shortest)
    rows = min(most, FIRST_TRIAL)
    for _ in range(TRIALS):
        measured = search_milliseconds(rows, dim, grid)
        if measured <= milliseconds:
            if rows > best[0]:
                best = (rows, measured)
            if rows == most or measured >= TIGHT * milliseconds:
                break
        growth = AIM * (milliseconds - shortest) / max(measured - shortest, 1e-3)
        extra = int((rows - SMALLEST_BANK) * min(growth, LARGEST_GROWTH))
        rows = min(most, SMALLEST_BANK + extra)
    return best


def search_milliseconds(rows: int, dim: int, grid: Size) -> float:
    """Measure the exported search of one frame of features with ONNX Runtime on the CPU, in ms.

    The rows are random. The result is the lower quartile of several calls: on an idle machine it is
    close to the median, and on a busy one closer to the time on an idle one.
    """
    random = torch.Generator().manual_seed(0)
    search = NearestRow(whole_blocks(torch.randn(rows, dim, generator=random)), grid).eval()
    frame = torch.randn(1, dim, *grid, generator=random)
    session = open_session(trace_to_onnx(search, frame, "x"))
    inputs = {"x": frame.numpy()}
    times = time_calls(lambda: session.run(None, inputs), WARM_UP, REPEATS)
    return statistics.quantiles(times, n=4)[0]
