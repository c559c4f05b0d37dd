"""Rows to JSON, a Markdown table and the figure FPS against image AUROC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLUMNS = {
    "bundle": "bundle",
    "data": "data",
    "engine": "engine",
    "input": "input",
    "image_auroc": "I-AUROC",
    "pixel_auroc": "P-AUROC",
    "aupro": "AUPRO",
    "verdicts": "flips (clear)",
    "speedup": "x ORT FP32",
    "fps": "FPS",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
}


def write_report(rows: list[dict[str, Any]], out: Path) -> list[Path]:
    """Write run.json, run.md, fps-auroc.png and fps-auroc.svg into `out`; the paths written."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / "run.md").write_text(markdown(rows))
    return [out / "run.json", out / "run.md", *draw(rows, out)]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        flips = None if row.get("flips") is None else f"{row['flips']} ({row['clear_flips']})"
        cells = ({"speedup": None, **row, "verdicts": flips}[key] for key in COLUMNS)
        lines.append("| " + " | ".join("–" if cell is None else str(cell) for cell in cells) + " |")
    devices = sorted(
        {f"{row['device']}; batch {row['batch']}; threads {row['threads']}" for row in rows}
    )
    return (
        "\n".join(lines)
        + f"\n\nMeasured on: {'; '.join(devices)}. Decoding is not timed; resize and engine are.\n"
    )


def draw(rows: list[dict[str, Any]], out: Path) -> list[Path]:
    """Scatter of FPS (log) against image AUROC, one colour per data set and one marker per method and engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    data_sets = list(dict.fromkeys(row["data"] for row in rows))
    kinds = list(dict.fromkeys((row["method"], row["backbone"], row["engine"]) for row in rows))
    for row in rows:
        colour = f"C{data_sets.index(row['data']) % 10}"
        marker = "osD^vP*X"[kinds.index((row["method"], row["backbone"], row["engine"])) % 8]
        axes.scatter(
            row["fps"], 100 * row["image_auroc"], color=colour, marker=marker, s=70, zorder=3
        )
        axes.annotate(
            row["data"],
            (row["fps"], 100 * row["image_auroc"]),
            (7, 5),
            textcoords="offset points",
            size=9,
        )
    for kind, marker in zip(kinds, "osD^vP*X", strict=False):
        axes.scatter([], [], color="0.4", marker=marker, label=", ".join(kind))
    if max(row["fps"] for row in rows) > 3 * min(row["fps"] for row in rows):
        axes.set_xscale("log")
    axes.set_xlabel("frames per second (median, batch 1, resize and engine)")
    axes.set_ylabel("image AUROC [%]")
    axes.margins(0.2)
    axes.grid(color="0.9")
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    axes.set_title(f"Speed and accuracy of the same bundle, {rows[0]['device']}", fontsize=10)
    paths = [out / "fps-auroc.png", out / "fps-auroc.svg"]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths
