"""The page of the study of stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.benchmarks.tables import markdown_table
from flawline.runtime.load import is_busy

COLUMNS = ("form", "engine", "I-AUROC", "flips", "FPS", "p50 ms", "p95 ms", "times the first")


def stages_report(result: Mapping[str, Any]) -> str:
    """Return the page in Markdown: one line per form and engine."""
    lines = []
    for row in result["rows"]:
        cells = [row["form"], row["engine"], row["image_auroc"], row["flips"]]
        cells += [row["fps"], row["p50_ms"], row["p95_ms"], row["speedup"]]
        lines.append(cells)
    network = ", ".join(filter(None, (result["method"], result["backbone"], result["input"])))
    gpus = [gpu["name"] for gpu in result["machine"]["gpus"]]
    about = [
        f"{network}, weights {result['weights']}",
        f"{result['data']}, {result['images']} images",
        *gpus,
        result["machine"]["cpu"],
        f"threads {result['threads']}",
        "all forms in turns on each image, resizing included",
    ]
    if is_busy(result["other_processes"]):
        about.append(f"other processes used {result['other_processes']:.0%} of the CPU")
    notes = "Flips are decisions that differ from those of the first line at the same threshold."
    return f"{'; '.join(about)}\n\n{markdown_table(COLUMNS, lines)}\n\n{notes}"
