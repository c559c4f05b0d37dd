"""The report of the accuracy study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.results import column, rows_with, stated
from flawline.benchmarks.tables import NO_MAP, markdown_table, mean_and_deviation

PIXEL_METRICS = ("pixel_auroc", "aupro")
METRICS = {"image_auroc": "I-AUROC", "image_ap": "I-AP", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}


def accuracy_report(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """Return the page in Markdown: one line per data set, mean and deviation over its seeds."""
    lines = []
    for name in dict.fromkeys(column(rows, "data")):
        rows_of_data = rows_with(rows, "data", name)
        cells = [name, rows_of_data[0]["images"], len(rows_of_data)]
        for key in METRICS:
            if key in PIXEL_METRICS and not rows_of_data[0]["has_map"]:
                cells.append(NO_MAP)
            else:
                cells.append(mean_and_deviation(column(rows_of_data, key)))
        minutes = statistics.mean(column(rows_of_data, "minutes_to_bundle"))
        lines.append([*cells, f"{minutes:.1f}"])
    table = markdown_table(["data", "images", "seeds", *METRICS.values(), "minutes"], lines)
    facts = [stated(rows, fact, _name) for fact in (_network, _input, _engine)]
    note = f"{'; '.join(facts)}; last epoch; mean ± standard deviation over seeds. `{command}`"
    return f"{table}\n\n{note}"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['data']} seed {row['seed']}"


def _network(row: Mapping[str, Any]) -> str:
    if not row["backbone"]:
        return str(row["method"])
    return f"{row['method']}, {row['backbone']}, weights {row['weights']}"


def _input(row: Mapping[str, Any]) -> str:
    return f"input {row['input']}"


def _engine(row: Mapping[str, Any]) -> str:
    return str(row["engine"])
