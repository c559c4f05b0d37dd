"""The few figures that the bundle report starts with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flawline.benchmarks.bundle_report.confidence import rate_interval
from flawline.benchmarks.bundle_report.cost import Cost
from flawline.benchmarks.bundle_report.findings import Findings
from flawline.benchmarks.bundle_report.formatting import percent, percent_range
from flawline.runtime.conformal import CONFIDENCE

AUROC = "image AUROC"


@dataclass(frozen=True)
class Figure:
    """A value with its label and, in small print, what it refers to."""

    label: str
    value: str
    note: str


def figures(findings: Findings, accuracies: Mapping[str, float], cost: Cost | None) -> list[Figure]:
    """Return the figures that are known; the two counts of errors are always among them."""
    shown = [
        _errors(
            "Missed defects", findings.misses, len(findings.defective), "defective test images"
        ),
        _errors("False alarms", findings.false_alarms, len(findings.good), "good test images"),
    ]
    if findings.faults:
        shown.append(Figure("Rejected without a score", str(len(findings.faults)), "see below"))
    if AUROC in accuracies:
        others = []
        for name, value in accuracies.items():
            if name != AUROC:
                others.append(f"{name} {value:.4f}")
        shown.append(Figure("Image AUROC", f"{accuracies[AUROC]:.4f}", ", ".join(others)))
    if cost is not None:
        machine = "a busy machine" if cost.load else "the machine of this report"
        speed = f"per image, {cost.engine}, on {machine}"
        shown.append(Figure("Speed", cost.median, speed))
        shown.append(Figure("Size", cost.graph, f"{cost.precision} graph; bundle {cost.bundle}"))
    return shown


def _errors(label: str, count: int, total: int, group: str) -> Figure:
    if not total:
        return Figure(label, "unknown", f"there are no {group}")
    interval = percent_range(rate_interval(count, total))
    note = f"{group}, {percent(count / total)} ({interval} with {percent(CONFIDENCE)} confidence)"
    return Figure(label, f"{count} of {total}", note)
