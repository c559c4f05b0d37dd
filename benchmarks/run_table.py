"""The table of `benchmarks.run`: one line per bundle, data set and engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.tables import NO_MAP, aligned, markdown_table
from flawline.runtime.engines import REFERENCE_ENGINE
from flawline.runtime.load import is_busy
from flawline.runtime.precisions import FP32

Row = Mapping[str, Any]
# Key of a row, or of the cells below, and its title in the table.
COLUMNS = {
    "bundle": "bundle",
    "method": "method",
    "data": "data",
    "engine": "engine",
    "input": "input",
    "image_auroc": "I-AUROC",
    "alarms": "false alarms",
    "misses": "missed defects",
    "pixel_auroc": "P-AUROC",
    "aupro": "AUPRO",
    "verdicts": "flips (clear)",
    "speedup": f"x {REFERENCE_ENGINE} {FP32.name}",
    "fps": "FPS",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
}
# Marks a bundle whose training was cut short, and a speed that other processes disturbed.
UNFINISHED_MARK = "†"
BUSY_MARK = "‡"
# Marks the times of throughput mode.
SHARED_MARK = "§"


def run_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, and below it what its marks and its device mean."""
    lines = []
    for row in rows:
        cells = _cells(row)
        lines.append([cells[key] for key in COLUMNS])
    table = aligned(markdown_table(list(COLUMNS.values()), lines))
    return "\n\n".join([table, *_notes(rows)]) + "\n"


def false_alarms(row: Row) -> str:
    """Return how many good images a row's threshold rejects, such as "3 of 147"."""
    return f"{row['false_alarms']} of {row['good_images']}"


def missed_defects(row: Row) -> str:
    """Return how many defective images a row's threshold accepts, such as "129 of 313"."""
    return f"{row['missed']} of {row['defective_images']}"


def busy_note(rows: Sequence[Row]) -> str | None:
    """Say how much of the CPU other processes used while the rows were timed.

    Returns None on a machine that was not busy. Of several rows, the largest share is given.
    """
    shares = [row["other_processes"] for row in rows if is_busy(row["other_processes"])]
    if not shares:
        return None
    bound = "up to " if len(set(shares)) > 1 else ""
    return f"busy machine: other processes used {bound}{max(shares):.0%} of the CPU"


def _cells(row: Row) -> dict[str, Any]:
    """Return the cells of a row that are composed of several values, and all others as they are."""
    cells = dict(row)
    cells["alarms"] = false_alarms(row)
    cells["misses"] = missed_defects(row)
    cells["verdicts"] = None
    if row["flips"] is not None:
        cells["verdicts"] = f"{row['flips']} ({row['clear_flips']})"
    if not row["has_map"]:
        cells["pixel_auroc"] = cells["aupro"] = NO_MAP
    if row["unfinished"] is not None:
        cells["bundle"] = f"{row['bundle']} {UNFINISHED_MARK}"
    if is_busy(row["other_processes"]):
        cells["fps"] = f"{row['fps']} {BUSY_MARK}"
    if row["batch"] > 1:
        cells["engine"] = f"{row['engine']}, batch {row['batch']}"
    if _is_throughput(row):
        cells["p50_ms"] = f"{row['p50_ms']} {SHARED_MARK}"
    return cells


def _is_throughput(row: Row) -> bool:
    """Whether several images were judged at the same time."""
    # Rows that were stored by earlier versions have no streams.
    return row["batch"] > 1 or row.get("streams") is not None


def _notes(rows: Sequence[Row]) -> list[str]:
    """Return the paragraphs below the table."""
    machines = set()
    # Larger batches are in the rows.
    batch = "batch 1" if all(row["batch"] == 1 for row in rows) else "batch 1 or as stated"
    cut_short = set()
    for row in rows:
        machines.add(f"{row['device']}; {batch}; threads {row['threads']}")
        if row["unfinished"] is not None:
            cut_short.add(f"{row['bundle']} after {row['unfinished']}")
    notes = [
        f"Measured on: {'; '.join(sorted(machines))}. Decoding is not timed; resizing and the "
        "engine are. False alarms and missed defects are those at the threshold of the bundle."
    ]
    if cut_short:
        notes.append(
            f"{UNFINISHED_MARK} The training was cut short: {'; '.join(sorted(cut_short))}."
        )
    if any(_is_throughput(row) for row in rows):
        notes.append(
            f"{SHARED_MARK} Throughput mode: several images are judged at the same time. The times "
            "are those of all images, divided by their number, and no latencies."
        )
    busy = busy_note(rows)
    if busy is not None:
        notes.append(f"{BUSY_MARK} {busy[0].upper()}{busy[1:]}. Measure again on an idle machine.")
    elif any(row["other_processes"] is None for row in rows):
        notes.append("Whether other processes disturbed the times is not known.")
    return notes
