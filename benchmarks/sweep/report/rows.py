"""Reads the files of a sweep's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline import FlawlineError

Row = Mapping[str, Any]
# What a row with a result has as its status, or none; any other one comes with a reason.
WITH_RESULT = ("trained", "measured", None)


class SweepReportError(FlawlineError):
    """The folder of a sweep cannot be reported."""


@dataclass(frozen=True)
class Failure:
    """A cell without a result, what was done when it failed, and the line that says why."""

    cell: str
    step: str
    reason: str


@dataclass(frozen=True)
class SweepFiles:
    """What a sweep's folder holds.

    `trained` has one row per bundle; `measured`, `speed` and `robustness` are as documented in
    docs/protocol.md. `folder` holds the bundles in `trained/<cell>`.
    """

    folder: Path
    plan: Row
    trained: Sequence[Row]
    measured: Sequence[Row]
    speed: Sequence[Row]
    robustness: Sequence[Row]
    failures: Sequence[Failure]


def read_sweep(folder: Path) -> SweepFiles:
    """Return what the files of a sweep's folder hold.

    Raises SweepReportError for a folder without any result and for a file that is damaged.
    """
    failures: list[Failure] = []
    trained = _read_rows(folder, "trained", failures)
    sweep = SweepFiles(
        folder=folder,
        plan=_read_plan(folder / "plan.json"),
        trained=trained,
        measured=_read_rows(folder, "measured", failures),
        speed=_read_rows(folder, "speed", failures),
        robustness=_read_rows(folder, "robustness", failures),
        failures=failures,
    )
    if not sweep.measured and not sweep.trained and not failures:
        raise SweepReportError(
            f"{folder} holds no result of a sweep; give the --out folder of flawline sweep"
        )
    return sweep


def _read_plan(path: Path) -> Row:
    if not path.exists():
        return {}
    plan = _read_json(path)
    if not isinstance(plan, dict):
        raise _damaged(path, "it is no JSON object")
    return plan


def _read_rows(folder: Path, step: str, failures: list[Failure]) -> list[Row]:
    """Return the rows of all files of one step; those with an error are added to `failures`."""
    rows: list[Row] = []
    for path in sorted((folder / step).glob("*.json")):
        content = _read_json(path)
        found = content if isinstance(content, list) else [content]
        for row in found:
            if not isinstance(row, dict):
                raise _damaged(path, "its rows are no JSON objects")
            row = {"cell": path.stem} | row
            if row.get("status") not in WITH_RESULT:
                failures.append(_failure(step, row))
            else:
                rows.append(row)
    return rows


def _failure(step: str, row: Row) -> Failure:
    what = step
    if "engine" in row:
        what = f"{step}, {row['engine']} {row.get('precision', '')}".rstrip()
    return Failure(str(row["cell"]), what, str(row.get("reason")))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> SweepReportError:
    return SweepReportError(
        f"{path} cannot be read ({reason}); delete it and run flawline sweep again"
    )
