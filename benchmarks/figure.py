"""The report of `benchmarks.run`: JSON, a Markdown table, the figure of speed against accuracy."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawline.benchmarks.tables import markdown_table
from flawline.runtime.engines import REFERENCE_ENGINE
from flawline.runtime.files import write_atomically
from flawline.runtime.precisions import FP32

Row = Mapping[str, Any]
# Key of a row, and its title in the table.
COLUMNS = {
    "bundle": "bundle",
    "data": "data",
    "engine": "engine",
    "input": "input",
    "image_auroc": "I-AUROC",
    "pixel_auroc": "P-AUROC",
    "aupro": "AUPRO",
    "verdicts": "flips (clear)",
    "speedup": f"x {REFERENCE_ENGINE} {FP32.name}",
    "fps": "FPS",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
}
# Marks a bundle in the table whose training was cut short.
UNFINISHED_MARK = "†"
MARKERS = "osD^vP*X"
COLOURS = 10  # of matplotlib's cycle
# Above this ratio of the fastest to the slowest, the axis of the speed is logarithmic.
LOGARITHMIC_ABOVE = 3


def write_report(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write run.json, run.md, fps-auroc.png and fps-auroc.svg to `out` and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    # On a full disk, the results of an earlier run stay as they are.
    results = out / "run.json"
    write_atomically(results, (json.dumps(rows, indent=2) + "\n").encode())
    table = out / "run.md"
    write_atomically(table, run_table(rows).encode())
    return [results, table, *draw_speed_and_accuracy(rows, out)]


def run_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with the device and unfinished trainings below it."""
    lines = []
    machines = set()
    cut_short = set()
    for row in rows:
        verdicts = None
        if row["flips"] is not None:
            verdicts = f"{row['flips']} ({row['clear_flips']})"
        cells = {**row, "verdicts": verdicts}
        unfinished = row.get("unfinished")
        if unfinished is not None:
            cells["bundle"] = f"{row['bundle']} {UNFINISHED_MARK}"
            cut_short.add(f"{row['bundle']} after {unfinished}")
        lines.append([cells[key] for key in COLUMNS])
        machines.add(f"{row['device']}; batch {row['batch']}; threads {row['threads']}")
    table = markdown_table(list(COLUMNS.values()), lines)
    devices = "; ".join(sorted(machines))
    text = (
        f"{table}\n\nMeasured on: {devices}. Decoding is not timed; resizing and the engine are.\n"
    )
    if cut_short:
        bundles = "; ".join(sorted(cut_short))
        text += f"\n{UNFINISHED_MARK} The training was cut short: {bundles}.\n"
    return text


def draw_speed_and_accuracy(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw FPS against image AUROC into `out` as PNG and SVG and return the paths.

    Every data set has a colour; every method with its backbone and engine has a marker.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    _draw_points(axes, rows)
    fastest = max(rows, key=itemgetter("fps"))
    slowest = min(rows, key=itemgetter("fps"))
    if fastest["fps"] > LOGARITHMIC_ABOVE * slowest["fps"]:
        axes.set_xscale("log")
    axes.set_xlabel("frames per second (median, batch 1, resize and engine)")
    axes.set_ylabel("image AUROC [%]")
    axes.margins(0.2)
    axes.grid(color="0.9")
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    axes.set_title(f"Speed and accuracy of the same bundle, {rows[0]['device']}", fontsize=10)
    paths = [out / "fps-auroc.png", out / "fps-auroc.svg"]
    for path in paths:
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=150)
        write_atomically(path, picture.getvalue())
    return paths


def _draw_points(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw a labelled point per row, and an empty one per kind of detector for the legend."""
    data_sets: list[str] = []
    kinds: list[tuple[str, str, str]] = []
    for row in rows:
        kind = (row["method"], row["backbone"], row["engine"])
        if row["data"] not in data_sets:
            data_sets.append(row["data"])
        if kind not in kinds:
            kinds.append(kind)
        colour = f"C{data_sets.index(row['data']) % COLOURS}"
        marker = MARKERS[kinds.index(kind) % len(MARKERS)]
        point = (row["fps"], 100 * row["image_auroc"])
        axes.scatter(*point, color=colour, marker=marker, s=70, zorder=3)
        # The label stands to the upper right of the point, in points of print.
        axes.annotate(row["data"], point, (7, 5), textcoords="offset points", size=9)
    # Only the legend shows these points. It leaves out what exceeds the number of markers.
    for kind, marker in zip(kinds, MARKERS, strict=False):
        axes.scatter([], [], color="0.4", marker=marker, label=", ".join(kind))
