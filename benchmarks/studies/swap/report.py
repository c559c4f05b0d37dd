"""The page of the study of the hot swap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.benchmarks.tables import markdown_table
from flawline.runtime.load import is_busy

COLUMNS = (
    "frames", "rename to first frame, s", "largest gap without a swap, ms",
    "largest gap around a swap, ms", "ratio of the medians", "frames judged", "lost",
    "dropped without and around swaps",
)  # fmt: skip


def swap_report(result: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    rows = []
    for row in result["rows"]:
        gaps = [row["gap_ms"], row["swap_gap_ms"]]
        ratio = gaps[1]["median"] / gaps[0]["median"]
        cells = [row["size"], _cell(row["taken_s"], 2), *(_cell(gap, 1) for gap in gaps)]
        dropped = f"{row['dropped']}, {row['swap_dropped']}"
        rows.append([*cells, f"{ratio:.2f}", row["frames"], row["lost"], dropped])
    about = [result["machine"]["cpu"], f"{result['cores']} cores", result["rows"][0]["engine"]]
    if is_busy(result["other_processes"]):
        about.append(f"other processes used {result['other_processes']:.0%} of the CPU")
    if result["niceness"] != 0:
        about.append(f"niceness {result['niceness']}")
    return f"""\
{"; ".join(about)}; measured by `python -m benchmarks.studies.swap`

A bundle of {result["method"]}, whose graph has {result["megabytes"]:g} MB, and a camera of
{result["fps"]:g} frames per second, which are {1000 / result["fps"]:.0f} ms apart. Medians of
{result["rounds"]} swaps, and smallest to largest. In turns, nothing happens for
{result["seconds"]:g} s, and another bundle comes to the path; the gap around it is the largest from
the rename to {result["seconds"]:g} s after its first frame. Lost frames have a number and no line,
and were not dropped; dropped ones were replaced by newer ones, because the engine was not ready for
them.

{markdown_table(COLUMNS, rows)}"""


def _cell(spread: Mapping[str, float], digits: int) -> str:
    median, smallest, largest = (
        f"{spread[key]:.{digits}f}" for key in ("median", "smallest", "largest")
    )
    return f"{median} ({smallest} to {largest})"
