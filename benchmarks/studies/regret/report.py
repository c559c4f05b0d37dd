"""The page of the study: the chosen and the best detector of each data set, and the regret."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from flawline.benchmarks.tables import markdown_table

Row = dict[str, Any]

HEADER = ("data", "seed", "detectors", "chosen", "image AUROC", "best", "image AUROC", "regret")
DETAILS = ("data", "seed", "detector", "criterion", "image AUROC", "not counted")


def regrets(rows: Sequence[Row]) -> list[Row]:
    """Return, for each data set and seed, the chosen and the best detector and the regret."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["seed"]), []).append(row)
    results = []
    for (data, seed), group in groups.items():
        chosen = max(group, key=lambda row: row["criterion"])
        best = max(group, key=lambda row: row["image_auroc"])
        results.append(
            {
                "data": data,
                "seed": seed,
                "detectors": len(group),
                "chosen": _name(chosen),
                "chosen_auroc": chosen["image_auroc"],
                "best": _name(best),
                "best_auroc": best["image_auroc"],
                "regret": round(best["image_auroc"] - chosen["image_auroc"], 4),
            }
        )
    return results


def _name(row: Row) -> str:
    return f"{row['method']} {row['backbone']}".strip()


def page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    summary = regrets(rows)
    lines = []
    for one in summary:
        auroc = f"{one['chosen_auroc']:.4f}"
        best = f"{one['best_auroc']:.4f}"
        cells = [one["data"], one["seed"], one["detectors"], one["chosen"], auroc]
        lines.append([*cells, one["best"], best, f"{one['regret']:.4f}"])
    mean = statistics.mean(one["regret"] for one in summary)
    details = []
    for row in sorted(rows, key=lambda row: (row["data"], row["seed"], -row["criterion"])):
        kinds = ", ".join(row["not_counted"])
        criterion = f"{row['criterion']:.4f}"
        auroc = f"{row['image_auroc']:.4f}"
        details.append([row["data"], row["seed"], _name(row), criterion, auroc, kinds])
    return "\n\n".join(
        [
            markdown_table(HEADER, lines),
            f"Mean regret in image AUROC: {mean:.4f}. The chosen detector has the highest "
            "criterion of `flawline choose`, which is computed from held-out good images and "
            "synthetic anomalies made of them; the best one has the highest image AUROC on the "
            "test images. Both are in FP32.",
            markdown_table(DETAILS, details),
        ]
    )
