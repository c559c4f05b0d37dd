"""What the report of a sweep says; the page and the Markdown are written from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flawline.benchmarks.sweep.report.pictures import Pictures
from flawline.benchmarks.sweep.report.tables import Table


@dataclass(frozen=True)
class Drawing:
    """A figure with the name of its files, its alternative text and itself as a data URI."""

    name: str
    label: str
    uri: str


@dataclass(frozen=True)
class MachineSection:
    """What the report says about one machine."""

    title: str
    facts: Sequence[str]
    drawings: Sequence[Drawing]
    legend: Sequence[str]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Report:
    """What the report says; the page and the Markdown are written from it."""

    made: str
    plan: Sequence[tuple[str, str]]
    machines: Sequence[MachineSection]
    pictures: Sequence[Pictures]
    published: Sequence[Table]
    published_drawing: Drawing
    failures: Table | None
