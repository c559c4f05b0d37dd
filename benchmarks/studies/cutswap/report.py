"""The rows of the study on disk, and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.cutswap.variants import CORESETS, VARIANTS, Conditions
from flawline.benchmarks.studies.results import column, rows_with, stated
from flawline.benchmarks.tables import UNKNOWN, markdown_table, mean_and_deviation
from flawline.runtime.json_shapes import Shape

NOT_MEASURED = "not measured"
Row = dict[str, Any]


ROW: Shape = {
    **dict.fromkeys(("data", "variant", "weights_file", "device"), str),
    **dict.fromkeys(("seed", "input", "good_images", "test_images"), int),
    **dict.fromkeys(("coreset", "image_auroc"), float),
    "steps": (int, None),
}


def has_row(rows: Sequence[Row], facts: Row) -> bool:
    """Whether one of the rows has all these facts."""
    return any(all(row.get(key) == facts[key] for key in facts) for row in rows)


def comparable(rows: Sequence[Row], conditions: Conditions) -> list[Row]:
    """Return the rows that were measured under these conditions."""
    chosen = []
    for row in rows:
        same = row["input"] == conditions.size
        same = same and row["weights_file"] == Path(conditions.weights).name
        if same and row["steps"] in (None, conditions.steps):  # None: not fine-tuned
            chosen.append(row)
    return chosen


def cutswap_report(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """Return the page in Markdown: a line per variant and coreset, a column per data set."""
    names = list(dict.fromkeys(column(rows, "data")))
    lines = []
    for variant, facts in VARIANTS.items():
        of_variant = rows_with(rows, "variant", variant)
        for coreset in CORESETS:
            cells: list[object] = [variant, f"{coreset:g}"]
            of_coreset = rows_with(of_variant, "coreset", coreset)
            for name in names:
                cells.append(_cell(rows_with(of_coreset, "data", name)))
            published = facts.published.get(coreset)
            cells.append(UNKNOWN if published is None else f"{published / 100:.3f}")
            lines.append(cells)
    table = markdown_table(["variant", "coreset", *names, "paper, MVTec AD average"], lines)
    return f"{table}\n\n{_note(rows, names, command)}"


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return NOT_MEASURED
    count = len(rows)
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    return f"{mean_and_deviation(column(rows, 'image_auroc'))} ({seeds})"


def _note(rows: Sequence[Mapping[str, Any]], names: Sequence[str], command: str) -> str:
    tuned = [row for row in rows if row["steps"]]
    lengths = sorted(set(column(tuned, "steps")))
    sizes = sorted(set(column(rows, "input")))
    counts = []
    for name in names:
        row = rows_with(rows, "data", name)[0]
        counts.append(f"{name} {row['good_images']}/{row['test_images']}")
    steps = ", ".join(map(str, lengths)) or "no"
    return (
        "Image AUROC of the last step, mean ± standard deviation over seeds. "
        f"{steps} steps of fine-tuning (the paper: 65 536), "
        f"input {', '.join(map(str, sizes))} pixels. "
        f"Good/test images: {', '.join(counts)}; these are not the official splits, so that the "
        f"paper's figures are no reference for them. {NOT_MEASURED}: the weights or the time for "
        f"it were missing. Device: {stated(rows, _device, _name)}. `{command}`"
    )


def _device(row: Mapping[str, Any]) -> str:
    return str(row["device"])


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['variant']} {row['data']} seed {row['seed']}"
