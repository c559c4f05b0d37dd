"""The page of the study of the hot swap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.benchmarks.studies.running_stream import conditions
from flawline.benchmarks.tables import markdown_table

COLUMNS = (
    "frames", "rename to first frame, s", "largest gap without a swap, ms",
    "largest gap around a swap, ms", "ratio of the medians", "frames judged", "lost",
    "dropped without and around swaps",
)  # fmt: skip


def swap_report(result: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    rows = [_line(row) for row in result["rows"]]
    engine = result["rows"][0]["engine"]
    return f"""\
{conditions(result, engine)}; measured by `python -m benchmarks.studies.swap`

A bundle of {result["method"]}, whose graph has {result["megabytes"]:g} MB, and a camera of
{result["fps"]:g} frames per second, which are {1000 / result["fps"]:.0f} ms apart. Medians of
{result["rounds"]} swaps, and smallest to largest. In turns, nothing happens for
{result["seconds"]:g} s, and another bundle comes to the path; the gap around it is the largest from
the rename to {result["seconds"]:g} s after its first frame. Lost frames have a number and no line,
and were not dropped; dropped ones were replaced by newer ones, because the engine was not ready for
them.

{markdown_table(COLUMNS, rows)}"""


def _line(row: Mapping[str, Any]) -> list[Any]:
    without, around = row["gap_ms"], row["swap_gap_ms"]
    ratio = around["median"] / without["median"]
    return [
        row["size"],
        _cell(row["taken_s"], 2),
        _cell(without, 1),
        _cell(around, 1),
        f"{ratio:.2f}",
        row["frames"],
        row["lost"],
        f"{row['dropped']}, {row['swap_dropped']}",
    ]


def _cell(spread: Mapping[str, float], digits: int) -> str:
    median, smallest, largest = (
        f"{spread[key]:.{digits}f}" for key in ("median", "smallest", "largest")
    )
    return f"{median} ({smallest} to {largest})"
