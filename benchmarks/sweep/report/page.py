"""The report of a sweep: report.html, report.md and the figures, written from its folder."""

from __future__ import annotations

import base64
import io
from datetime import datetime, timezone
from pathlib import Path

from matplotlib.figure import Figure

from flawline.benchmarks.bundle_report.templates import template
from flawline.benchmarks.figure import save_figure
from flawline.benchmarks.measure.machine import machine_lines
from flawline.benchmarks.sweep.report.accuracy_tables import LEGEND, accuracy_table, area_table
from flawline.benchmarks.sweep.report.categories import category_tables
from flawline.benchmarks.sweep.report.content import Drawing, MachineSection, Report
from flawline.benchmarks.sweep.report.engine_tables import drift_table, engine_table, stage_table
from flawline.benchmarks.sweep.report.figure import (
    data_sets_figure,
    figure_with_published,
    main_figure,
    published_figure,
)
from flawline.benchmarks.sweep.report.markdown import markdown_of
from flawline.benchmarks.sweep.report.pictures import pictures_of
from flawline.benchmarks.sweep.report.published_tables import published_tables
from flawline.benchmarks.sweep.report.results import Machine, machines_of
from flawline.benchmarks.sweep.report.robustness_tables import robustness_tables
from flawline.benchmarks.sweep.report.rows import SweepFiles, read_sweep
from flawline.benchmarks.sweep.report.tables import Cell, Table
from flawline.benchmarks.sweep.store import Store
from flawline.runtime.files import write_atomically

FOLDER = Path(__file__).parent
FIGURE = "fps_vs_auroc"


def write_report(folder: Path, pictures: bool = True) -> list[Path]:
    """Write report.html, report.md and the figures into a sweep's folder; return their paths.

    With `pictures`, the test images of each data set are judged once more, by its most accurate
    bundle, which takes a minute or so. Raises SweepError for a folder without any result and
    OSError where a file cannot be written.
    """
    sweep = read_sweep(Store(folder))
    paths: list[Path] = []
    machines = []
    for index, machine in enumerate(machines_of(sweep)):
        machines.append(_section(machine, index, folder, paths))
    made = datetime.now(timezone.utc)
    report = Report(
        made=made.strftime("%Y-%m-%d %H:%M UTC"),
        plan=_plan(sweep),
        machines=machines,
        pictures=pictures_of(sweep) if pictures else [],
        published=published_tables(),
        published_drawing=_drawing(published_figure(), "published", "Published points"),
        failures=_failures(sweep),
    )
    for name, content in (("report.html", render(report)), ("report.md", markdown_of(report))):
        path = folder / name
        # A file name need not be valid Unicode, and cannot always be encoded.
        write_atomically(path, content.encode("utf-8", "backslashreplace"))
        paths.append(path)
    return paths


def render(report: Report) -> str:
    """Return the page as HTML, one file that loads nothing."""
    # The style is that of the bundle report, with that of this page after it.
    return template(FOLDER, "sweep.html").render(report=report)


def _section(machine: Machine, index: int, folder: Path, paths: list[Path]) -> MachineSection:
    """Return the section of a machine, and write its figures; their paths are added to `paths`."""
    suffix = "" if index == 0 else f"-machine-{index + 1}"
    drawings = []
    name = f"{FIGURE}{suffix}"
    for figure, ending, label in (
        (main_figure(machine), "", "Frames per second against image AUROC"),
        (data_sets_figure(machine), "-data", "The same for each data set"),
    ):
        if figure is not None:
            drawings.append(_drawing(figure, f"{name}{ending}", label))
            if ending:
                paths += save_figure(figure, folder, f"{name}{ending}")
    whole = figure_with_published(machine)
    if whole is not None:
        paths += save_figure(whole, folder, name)
    tables = [accuracy_table(machine, data) for data in machine.data_sets]
    tables += category_tables(machine)
    found = [area_table(machine, data) for data in machine.data_sets]
    found.append(drift_table(machine))
    found += [stage_table(machine, data) for data in machine.data_sets]
    tables += [table for table in found if table is not None]
    tables += robustness_tables(machine)
    tables += [engine_table(machine, data) for data in machine.data_sets]
    return MachineSection(machine.device, _facts(machine), drawings, LEGEND, tables)


def _facts(machine: Machine) -> list[str]:
    """Return what is known about a machine, one line each."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return [*machine_lines(machine.facts), f"versions: {versions}"]


def _plan(sweep: SweepFiles) -> list[tuple[str, str]]:
    """Return what was asked for, as names and values."""
    lines = []
    for name, value in sweep.plan.items():
        if name == "cells" or not value:
            continue
        if isinstance(value, list):
            # Of a folder, the name says enough: the rest is of no use on another machine.
            value = ", ".join(Path(str(item)).name for item in value)
        elif isinstance(value, dict):
            value = "; ".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, str):
            # A file of weights, or the name of a kind of weights.
            value = Path(value).name
        lines.append((name, str(value)))
    return lines


def _failures(sweep: SweepFiles) -> Table | None:
    """Return the cells without a result; None if there are none."""
    if not sweep.failures:
        return None
    rows = []
    for failure in sweep.failures:
        rows.append([Cell(failure.cell), Cell(failure.step), Cell(failure.reason)])
    note = "The same command tries them again."
    return Table("Without a result", ["cell", "step", "reason"], rows, [note], words=3)


def _drawing(figure: Figure, name: str, label: str) -> Drawing:
    picture = io.BytesIO()
    # Without the date, which would change with every report.
    figure.savefig(picture, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(picture.getvalue()).decode()
    return Drawing(name, label, f"data:image/svg+xml;base64,{encoded}")
