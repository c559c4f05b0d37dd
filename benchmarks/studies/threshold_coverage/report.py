"""The rows of the simulated thresholds as JSON, and the page that summarises them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.benchmarks.studies import results
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.json_shapes import Shape
from flawline.runtime.threshold import CONFIDENCE

Row = Mapping[str, Any]
KINDS = {"out_of_fold": "out of fold", "equal_rate": "out of fold", "hold_out": "hold-out"}
REFERENCE_DRAWS = 100_000
DRAW = "draw"
# An entry of the file: the draws of one method and data set.
OUTCOME: Shape = {"low": float, "high": float, "stated": float, "realised": [float]}
ENTRY: Shape = {
    **dict.fromkeys(("method", "set", "weights"), str),
    **dict.fromkeys(("count", "tested", "size"), int),
    "steps": (int, None),
    DRAW: [int],
    **dict.fromkeys(KINDS, OUTCOME),
}


def read_rows(out: Path) -> list[Row]:
    """Return the rows of OUT.json, one for each draw; none if there is no such file.

    Raises StudyError for a file of another kind.
    """
    return _unpack(results.read_rows(out, ENTRY))


def _pack(groups: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Return one entry for each group: what its draws have in common, then a list of each rate."""
    entries = []
    for group in groups:
        entry = {key: value for key, value in group[0].items() if key not in (DRAW, *KINDS)}
        entry[DRAW] = [row[DRAW] for row in group]
        for kind in KINDS:
            realised = [row[kind]["realised"] for row in group]
            entry[kind] = {**group[0][kind], "realised": realised}
        entries.append(entry)
    return entries


def _unpack(entries: Sequence[Row]) -> list[Row]:
    rows: list[Row] = []
    for entry in entries:
        for index, draw in enumerate(entry[DRAW]):
            row = {**entry, DRAW: draw}
            for kind in KINDS:
                row[kind] = {**entry[kind], "realised": entry[kind]["realised"][index]}
            rows.append(row)
    return rows


def rows_of(rows: Sequence[Row], facts: Row) -> list[Row]:
    """Return the rows that have all these facts."""
    return [row for row in rows if all(row.get(key) == facts[key] for key in facts)]


def add_rows(out: Path, rows: Sequence[Row]) -> str:
    """Write OUT.json and OUT.md with these rows of one method and data set; return the page.

    Other rows of that method and data set are replaced, those of all others are kept.
    """
    kept = []
    for row in read_rows(out):
        if (row["method"], row["set"]) != (rows[0]["method"], rows[0]["set"]):
            kept.append(row)
    every = sorted([*kept, *rows], key=lambda row: (row["method"], row["set"], row[DRAW]))
    page = describe(every)
    write_results(out, _pack(list(_grouped(every).values())), page)
    return page


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each method and data set."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["set"]), []).append(row)
    return groups


def describe(rows: Sequence[Row]) -> str:
    """Return the page in Markdown: one table line for each method, data set and threshold."""
    lines = [
        "# Thresholds from few good images: stated and realised rates of false alarms",
        "",
        "By `python -m benchmarks.studies.threshold_coverage --data ...`. Each draw takes good "
        "images at random, sets a threshold from their out-of-fold scores (5 folds) and another "
        "from a hold-out of a fifth of the same images, and counts false alarms among other good "
        "images.",
        "",
        "| method | data | draws | threshold | stated | mean realised | 95th percentile | interval "
        "| realised inside | expected |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = _grouped(rows)
    for group in groups.values():
        for kind, name in KINDS.items():
            lines.append(_line(group, kind, name))
    lines += ["", *_notes(groups)]
    return "\n".join(lines)


def _line(group: Sequence[Row], kind: str, name: str) -> str:
    first = group[0]
    outcomes = [row[kind] for row in group]
    realised = np.array([outcome["realised"] for outcome in outcomes])
    low, high, stated = (outcomes[0][key] for key in ("low", "high", "stated"))
    inside = np.mean([o["low"] <= o["realised"] <= o["high"] for o in outcomes])
    error = realised.std() / math.sqrt(len(realised))
    images = first["count"]
    if kind == "hold_out":
        images = int(0.2 * first["count"] + 0.5)
    return (
        f"| {first['method']} | {first['set']} | {len(group)} | {name}, {images} scores "
        f"| {stated:.1%} | {realised.mean():.2%} ± {error:.2%} | {np.percentile(realised, 95):.1%} "
        f"| {low:.2%} to {high:.1%} | {inside:.1%} "
        f"| {_expected(images, stated, low, high, first['tested']):.1%} |"
    )


def _expected(images: int, stated: float, low: float, high: float, tested: int) -> float:
    """Return how often a realised rate is inside by chance, for held-out independent images.

    The true rate has a beta distribution, and the false alarms among the tested images a binomial
    one. Few of them make the realised rate uncertain, which lowers this share.
    """
    rank = math.ceil((images + 1) * (1 - stated) - 1e-9)
    rng = np.random.default_rng(0)
    rates = rng.beta(images + 1 - rank, rank, REFERENCE_DRAWS)
    realised = rng.binomial(tested, rates) / tested
    return float(((low <= realised) & (realised <= high)).mean())


def _notes(groups: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    lines = []
    for (method, name), group in groups.items():
        first = group[0]
        widths = {}
        for kind in KINDS:
            widths[kind] = float(np.mean([row[kind]["high"] - row[kind]["low"] for row in group]))
        steps = "in one pass" if first["steps"] is None else f"{first['steps']} steps"
        lines.append(
            f"- {method}, {name}: {first['count']} images of a draw, tested on {first['tested']} "
            f"others, {first['size']} px, {first['weights']}, {steps}. The interval is "
            f"{widths['hold_out'] / widths['out_of_fold']:.1f} times narrower than that of the "
            f"hold-out, each at its own rate, and "
            f"{widths['hold_out'] / widths['equal_rate']:.1f} times at the hold-out's rate."
        )
    lines += [
        "",
        f"`realised inside` counts the draws whose realised rate, as measured on the tested "
        f"images, lies in the stated {CONFIDENCE:.0%} interval. `expected` is the same share for "
        f"held-out, independent images and a test of the same size: it contains the sampling "
        f"noise of the test. `mean realised` is followed by its standard error over the draws, "
        f"which share images. The second line of each group has the rate of the hold-out.",
    ]
    return lines
