"""Tables of accuracy and decisions: one line per detector, in its first engine."""

from __future__ import annotations

from collections.abc import Sequence

from flawline.benchmarks.bundle_report.formatting import percent
from flawline.benchmarks.sweep.report.points import TUNED_MARK
from flawline.benchmarks.sweep.report.results import Machine, Result, reference_results
from flawline.benchmarks.sweep.report.tables import (
    Cell,
    Table,
    decimals,
    mean_cell,
    text,
    with_bars,
)
from flawline.benchmarks.tables import UNKNOWN

# The bar of an accuracy begins at that of a random guess.
GUESS = 0.5
# Key of a row and its title, in the order of the columns.
ACCURACIES = {"pg2": "PG2", "pb2": "PB2"}
PIXEL_ACCURACIES = {"pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "seg_f1": "SegF1"}
# What the columns mean, for all tables of accuracy.
LEGEND = (
    "False alarms and recall are those at the threshold of the bundle, which was set from good "
    "images before a test image was judged; in brackets the exact 95 % interval.",
    "PG2: share of good images that pass if at most 2 % of the defective ones are missed. PB2: "
    "share of defective images that are rejected if at most 2 % of the good ones are. SegF1: F1 of "
    "all pixels at a threshold from held-out good images.",
)


def accuracy_table(machine: Machine, data: str) -> Table:
    """Return the accuracies and decisions on one data set, the most accurate detector first."""
    results = sorted(
        reference_results(machine, data), key=lambda result: -(result.mean("image_auroc") or 0)
    )
    columns: dict[str, list[Cell]] = {"detector": [text(name_of(result)) for result in results]}
    columns["image AUROC"] = _bars(results, "image_auroc")
    columns["false alarms"] = [rate(result, "false_alarm") for result in results]
    columns["recall"] = [rate(result, "recall") for result in results]
    for key, title in (ACCURACIES | PIXEL_ACCURACIES).items():
        columns[title] = [mean_cell(result.values(key), 3) for result in results]
    columns["minutes to bundle"] = [
        decimals(result.mean("minutes_to_bundle"), 1) for result in results
    ]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table(
        title=f"Accuracy and decisions: {data}",
        header=list(columns),
        rows=rows,
        notes=_notes(results),
    ).without_empty_columns()


def area_table(machine: Machine, data: str) -> Table | None:
    """Return how many defects of each size are found; None without masks."""
    results = [
        result
        for result in reference_results(machine, data)
        if any(row.get("recall_by_area") for row in result.rows)
    ]
    areas: set[tuple[int, int]] = set()
    for result in results:
        areas |= set(_found_by_area(result))
    if not areas:
        return None
    rows = []
    for result in results:
        found = _found_by_area(result)
        cells = [text(result.name)]
        for area in sorted(areas):
            count, total = found.get(area, (0, 0))
            cells.append(Cell(f"{count} of {total}", count / total) if total else Cell(UNKNOWN))
        rows.append(cells)
    header = [f"{low} to {high - 1} px" for low, high in sorted(areas)]
    note = "Defective images found, by the defective pixels of the source image; all seeds."
    return Table(f"Recall by defect area: {data}", ["detector", *header], rows, [note])


def name_of(result: Result) -> str:
    """Return the name of a detector, marked if its settings were chosen on the data set."""
    return result.name + (f" {TUNED_MARK}" if result.tuned else "")


def rate(result: Result, name: str) -> Cell:
    """Return the mean rate over the seeds, with the interval that covers those of all seeds.

    `name` is the key of the rate without the ending of its interval.
    """
    key = f"{name}_rate" if name == "false_alarm" else name
    mean = result.mean(key)
    if mean is None:
        return Cell(UNKNOWN)
    intervals = [row[f"{name}_interval"] for row in result.rows if row.get(f"{name}_interval")]
    if not intervals:
        return Cell(percent(mean))
    low = 100 * min(interval[0] for interval in intervals)
    high = 100 * max(interval[1] for interval in intervals)
    return Cell(f"{percent(mean)} ({low:.1f} to {high:.1f})")


def _bars(results: Sequence[Result], key: str) -> list[Cell]:
    cells = [mean_cell(result.values(key), 4) for result in results]
    return with_bars(cells, [result.mean(key) for result in results], GUESS)


def _found_by_area(result: Result) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (found, defects) of each group of areas, summed over the seeds."""
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    for row in result.rows:
        for group in row.get("recall_by_area") or ():
            area = (group["from_px"], group["to_px"])
            found, defects = sums.get(area, (0, 0))
            sums[area] = (found + group["found"], defects + group["defects"])
    return sums


def _notes(results: Sequence[Result]) -> list[str]:
    first = results[0].rows[0]
    seeds = sorted({row.get("seed", 0) for result in results for row in result.rows})
    numbers = ", ".join(str(seed) for seed in seeds)
    of_seeds = f"seed {numbers}."
    if len(seeds) > 1:
        of_seeds = f"seeds {numbers}; mean ± standard deviation over the seeds."
    notes = [
        f"{first['good_images']} good and {first['defective_images']} defective test images; "
        f"{results[0].variant}; {of_seeds}"
    ]
    rates = {
        row["asked_rate"] for result in results for row in result.rows if row.get("asked_rate")
    }
    if rates:
        asked = " or ".join(percent(value) for value in sorted(rates))
        notes.append(f"The thresholds were set for false-alarm rates of {asked}.")
    if any(result.tuned for result in results):
        notes.append(f"{TUNED_MARK} The settings of the method were chosen on this data set.")
    return notes + _reasons(results)


def _reasons(results: Sequence[Result]) -> list[str]:
    """Return why values are not known, each reason once with what it concerns."""
    keys: dict[str, list[str]] = {}
    titles = ACCURACIES | PIXEL_ACCURACIES
    for result in results:
        for key, reason in (result.rows[0].get("reasons") or {}).items():
            found = keys.setdefault(reason, [])
            title = titles.get(key, key.replace("_", " "))
            if title not in found:
                found.append(title)
    return [f"Not known: {', '.join(names)} ({reason})." for reason, names in keys.items()]
