"""The report of the bank size study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.bank_size.measure import CORESET, RANDOM
from flawline.benchmarks.studies.results import rows_with
from flawline.benchmarks.tables import markdown_table

HEADER = ("rows", "coreset I-AUROC", "random I-AUROC", "p50 ms", "FPS", "ONNX MB")


def bank_size_report(rows: Sequence[Mapping[str, Any]], note: str) -> str:
    """Return the page in Markdown, one line per size. Times are of the coreset's bank.

    `rows` has both kinds of bank for the same sizes, in the same order.
    """
    of_coreset = rows_with(rows, "bank", CORESET)
    of_random = rows_with(rows, "bank", RANDOM)
    lines = []
    for row, random_row in zip(of_coreset, of_random, strict=True):
        lines.append(
            (
                row["rows"],
                row["image_auroc"],
                random_row["image_auroc"],
                row["p50_ms"],
                row["fps"],
                row["megabytes"],
            )
        )
    return f"{markdown_table(HEADER, lines)}\n\n{note}"
