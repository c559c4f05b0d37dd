"""The report of the bank size study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.bank_size.measure import CORESET, RANDOM
from flawline.benchmarks.tables import markdown_table

HEADER = ("rows", "coreset I-AUROC", "random I-AUROC", "p50 ms", "FPS", "ONNX MB")


def bank_size_report(rows: Sequence[Mapping[str, Any]], note: str) -> str:
    """Return the page in Markdown, one line per size. Times are of the coreset's bank."""
    random = {row["rows"]: row for row in rows if row["bank"] == RANDOM}
    lines = []
    for row in rows:
        if row["bank"] == CORESET:
            lines.append(
                (
                    row["rows"],
                    row["image_auroc"],
                    random[row["rows"]]["image_auroc"],
                    row["p50_ms"],
                    row["fps"],
                    row["megabytes"],
                )
            )
    return f"{markdown_table(HEADER, lines)}\n\n{note}"
