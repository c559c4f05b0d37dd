"""The report of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.measure.machine import describe_machine
from flawline.benchmarks.run_table import busy_note
from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED, Absent
from flawline.benchmarks.tables import markdown_table

TIMES = {"p50_ms": "p50 ms", "p95_ms": "p95 ms", "p99_ms": "p99 ms", "images_per_s": "images/s"}
EXPLANATION = """\
Times are from the uint8 image on the host to score and map on the host. Drift: the largest
difference of a score from PyTorch's, relative to the standard deviation of the scores of good
images. Each engine passed the self-test of the bundle."""


def gpu_report(
    about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], absent: Sequence[Absent]
) -> str:
    """Return the page in Markdown: the table, the machine, and what was not measured and why.

    Every row's speed is relative to the published pipeline at the same batch, where that was
    measured.
    """
    heading = (
        f"{about['method']}, {about['backbone']}, {about['input']}, weights {about['weights']}; "
        f"{about['device']}"
    )
    parts = [heading, _table(rows), EXPLANATION]
    busy = busy_note([about])
    if busy is not None:
        parts.append(f"{busy[0].upper()}{busy[1:]}. Measure again on an idle machine.")
    parts.append(f"Machine, at the end of the measurement:\n\n{describe_machine(about['machine'])}")
    if absent:
        lines = [f"- {name}: {reason}" for name, reason in absent]
        parts.append("\n".join(["Not measured:", "", *lines]))
    return "\n\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    published = {}
    for row in rows:
        if row["call"] == PUBLISHED:
            published[row["batch"]] = row["p50_ms"]
    header = ["", "batch", *TIMES.values()]
    if published:
        header.append("times published")
    lines = []
    for row in rows:
        line = [row["call"], row["batch"]]
        for key in TIMES:
            line.append(row[key])
        if published:
            line.append(_ratio(published.get(row["batch"]), row["p50_ms"]))
        line.append(_drift(row))
        lines.append(line)
    return markdown_table([*header, "drift"], lines)


def _ratio(published: float | None, milliseconds: float) -> str | None:
    """Return how much faster a row is; None where the published pipeline has no such batch."""
    if published is None:
        return None
    return f"{published / milliseconds:.2f}"


def _drift(row: Mapping[str, Any]) -> str:
    if not row["finite"]:
        return "not finite"
    return f"{row['drift']:.1e}"
