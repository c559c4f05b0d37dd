"""Reads the files of a sweep's folder for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.benchmarks.sweep.plan import read_plan_record
from flawline.benchmarks.sweep.shapes import RESULT_ROWS
from flawline.benchmarks.sweep.store import Store, SweepError, read_record, read_rows
from flawline.runtime.console import warn
from flawline.runtime.json_shapes import misfit

Row = Mapping[str, Any]
# What a row with a result has as its status, or none; any other one comes with a reason.
WITH_RESULT = ("trained", "measured", None)


@dataclass(frozen=True)
class Failure:
    """A cell without a result, what was done when it failed, and the line that says why."""

    cell: str
    step: str
    reason: str


@dataclass(frozen=True)
class SweepFiles:
    """What a sweep's folder holds: the plan, and the rows of each step that have a result.

    `measured` has a row for each bundle, engine and precision, and so has `speed`. `robustness` has
    a row for each change of the test images, too.
    """

    store: Store
    plan: Row
    measured: Sequence[Row]
    speed: Sequence[Row]
    robustness: Sequence[Row]
    failures: Sequence[Failure]


def read_sweep(store: Store) -> SweepFiles:
    """Return what the files of a sweep's folder hold; damaged ones are left out with a warning.

    Raises SweepError for a folder without any result, and for a damaged plan.
    """
    failures = _failed_trainings(store)
    sweep = SweepFiles(
        store=store,
        plan=read_plan_record(store),
        measured=_rows(store, "measured", failures),
        speed=_rows(store, "speed", failures),
        robustness=_rows(store, "robustness", failures),
        failures=failures,
    )
    if not sweep.measured and not failures:
        raise SweepError(
            f"{store.root} holds nothing that was measured; run flawline sweep with this --out"
        )
    return sweep


def _failed_trainings(store: Store) -> list[Failure]:
    failures = []
    for path in _files(store, "trained"):
        facts = read_record(path) or {}
        if facts.get("status") not in WITH_RESULT:
            failures.append(_failure("training", {"cell": path.stem} | facts))
    return failures


def _rows(store: Store, step: str, failures: list[Failure]) -> list[Row]:
    """Return the rows of all files of one step; those without a result go to `failures`."""
    rows: list[Row] = []
    for path in _files(store, step):
        for row in read_rows(path):
            row = {"cell": path.stem} | row
            if row.get("status") in WITH_RESULT:
                reason = misfit(row, RESULT_ROWS[step])
                if reason is None:
                    rows.append(row)
                else:
                    warn(f"warning: {path}: a row is left out of the report: {reason}")
                continue
            failure = _failure(step, row)
            # An engine that refuses a bundle is the same failure in every step.
            if all((failure.cell, failure.reason) != (f.cell, f.reason) for f in failures):
                failures.append(failure)
    return rows


def _files(store: Store, step: str) -> list[Path]:
    return sorted((store.root / step).glob("*.json"))


def _failure(step: str, row: Row) -> Failure:
    if "engine" in row:
        step = f"{row['engine']} {row['precision']}"
    # A training that was ended from outside leaves no reason.
    reason = row.get("reason") or "begun and not finished"
    return Failure(str(row["cell"]), step, str(reason))
