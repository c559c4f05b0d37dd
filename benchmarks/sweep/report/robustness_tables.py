"""Tables of the same test images after changes: light, blur, compression, noise."""

from __future__ import annotations

from collections.abc import Sequence

from flawline.benchmarks.bundle_report.formatting import percent
from flawline.benchmarks.robustness import NONE
from flawline.benchmarks.sweep.report.results import Machine, Result, known
from flawline.benchmarks.sweep.report.rows import Row
from flawline.benchmarks.sweep.report.tables import Cell, Table
from flawline.benchmarks.tables import UNKNOWN

NOTE = (
    "Mean over the seeds. The threshold is that of the bundle: it stays as it is when the images "
    "change."
)


def robustness_tables(machine: Machine) -> list[Table]:
    """Return two tables for each data set: image AUROC, and false alarms, after each change."""
    tables = []
    for data in machine.data_sets:
        results = [result for result in machine.of_data(data) if _rows_of(machine, result)]
        if not results:
            continue
        changes = _changes(machine, results)
        for key, title in (("image_auroc", "image AUROC"), ("false_alarm_rate", "false alarms")):
            rows = [_line(machine, result, changes, key) for result in results]
            header = ["detector", "engine", *(_name(change) for change in changes)]
            tables.append(Table(f"Changed images, {title}: {data}", header, rows, [NOTE], words=2))
    return tables


def _line(
    machine: Machine, result: Result, changes: Sequence[tuple[str, float]], key: str
) -> list[Cell]:
    cells = [Cell(result.name), Cell(result.variant)]
    rows = _rows_of(machine, result)
    for change in changes:
        cells.append(_cell([row for row in rows if _change(row) == change], key))
    return cells


def _cell(rows: Sequence[Row], key: str) -> Cell:
    values = known(rows, key)
    if not values:
        return Cell(UNKNOWN)
    mean = sum(values) / len(values)
    return Cell(percent(mean) if key == "false_alarm_rate" else f"{mean:.4f}")


def _rows_of(machine: Machine, result: Result) -> list[Row]:
    """Return the rows of the bundles of a result in its engine and precision."""
    cells = {row["cell"] for row in result.rows}
    rows = []
    for row in machine.robustness:
        same_engine = str(row["engine"]).split()[0] == result.engine.split()[0]
        if row["cell"] in cells and row["precision"] == result.precision and same_engine:
            rows.append(row)
    return rows


def _changes(machine: Machine, results: Sequence[Result]) -> list[tuple[str, float]]:
    """Return the changes with their strengths, in the order of the rows."""
    changes: dict[tuple[str, float], None] = {}
    for result in results:
        for row in _rows_of(machine, result):
            changes[_change(row)] = None
    return list(changes)


def _change(row: Row) -> tuple[str, float]:
    return row["perturbation"], row["strength"]


def _name(change: tuple[str, float]) -> str:
    name, strength = change
    if name == NONE:
        return "unchanged"
    return f"{name.replace('_', ' ')} {strength:g}"
