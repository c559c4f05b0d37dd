"""The result of `flawline choose` as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flawline.export.choosing.candidates import Candidate
from flawline.export.choosing.cost import Costs
from flawline.export.choosing.rank import criteria, kind_aurocs
from flawline.export.choosing.trained import Result
from flawline.train.anomalies.kinds import KINDS

HEADER = ("rank", "detector", "engine", "ms", "criterion", *KINDS, "note")


@dataclass(frozen=True)
class Row:
    """A detector in an engine and precision.

    Attributes:
        name: of the candidate.
        place: engine and precision.
        milliseconds: median time per frame.
        trained: whether the time is that of the trained detector, not of a trial.
        rank: 1 for the best; None where it is not ranked.
        criterion: what ranks it, see `rank`; None where it is not ranked.
        aurocs: by the kind of the synthetic anomalies.
        note: why it is not ranked, or which kinds do not count.
    """

    name: str
    place: str
    milliseconds: float
    trained: bool = True
    rank: int | None = None
    criterion: float | None = None
    aurocs: Mapping[str, float] | None = None
    note: str = ""


def ranked_rows(
    results: Sequence[Result], candidates: Sequence[Candidate], budget_ms: float
) -> list[Row]:
    """Return a row for each result: the ranked ones first, then the others by their time."""
    against = {}
    for candidate in candidates:
        against[candidate.name] = candidate.recipe.method_class.trains_against
    aurocs = {one.name: kind_aurocs(one.good, one.anomalies) for one in results if one.used}
    values = criteria(aurocs, against)
    ranks = sorted(values, key=lambda name: -values[name])
    rows = []
    for one in results:
        row = Row(one.name, str(one.place), one.milliseconds)
        if one.used and one.name in values:
            row = Row(
                one.name,
                str(one.place),
                one.milliseconds,
                rank=1 + ranks.index(one.name),
                criterion=values[one.name],
                aurocs=aurocs[one.name],
                note=_uncounted(against[one.name]),
            )
        elif one.used:
            row = Row(one.name, str(one.place), one.milliseconds, note="trained on every kind")
        elif one.milliseconds > budget_ms:
            row = Row(one.name, str(one.place), one.milliseconds, note="over the budget")
        else:
            row = Row(one.name, str(one.place), one.milliseconds, note="fits, less exact or slower")
        rows.append(row)
    return sorted(rows, key=lambda row: (row.rank or len(rows) + 1, row.milliseconds))


def _uncounted(kinds: Sequence[str]) -> str:
    if not kinds:
        return ""
    return f"trained on {' and '.join(kinds)}, not counted"


def dropped_rows(costs: Mapping[str, Costs], budget_ms: float) -> list[Row]:
    """Return the rows of places that were over the budget in the trial, fastest first."""
    rows = []
    for name, known in costs.items():
        for cost in known.costs:
            if cost.milliseconds > budget_ms:
                note = "over the budget" if cost.measured else "over the budget at least"
                rows.append(Row(name, str(cost.place), cost.milliseconds, trained=False, note=note))
    return sorted(rows, key=lambda row: row.milliseconds)


def text_of(rows: Sequence[Row]) -> str:
    """Return a table of aligned columns, with a line per row."""
    lines = [HEADER]
    for row in rows:
        criterion = "" if row.criterion is None else f"{row.criterion:.3f}"
        cells = [str(row.rank or "-"), row.name, row.place, f"{row.milliseconds:.2f}", criterion]
        for kind in KINDS:
            value = (row.aurocs or {}).get(kind)
            cells.append("" if value is None else f"{value:.3f}")
        lines.append((*cells, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    texts = []
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        texts.append("  ".join(padded).rstrip())
    return "\n".join(texts)


def json_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON."""
    content = []
    for row in rows:
        entry = dict(vars(row))
        if row.aurocs is not None:
            entry["aurocs"] = {kind: round(value, 4) for kind, value in row.aurocs.items()}
        content.append(entry)
    return content
