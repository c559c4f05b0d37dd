"""The points of the figure of a sweep: one per detector, engine and precision."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flawline.benchmarks.points import Point
from flawline.benchmarks.sweep.report.results import Machine, Result

# Fewer data sets have no mean of their own.
FEWEST_FOR_MEAN = 2
TUNED_MARK = "*"


@dataclass(frozen=True)
class Panel:
    """One panel: its title, its points, and a sentence about what is left out."""

    title: str
    points: Sequence[Point]
    remark: str | None = None


def panels_of(machine: Machine) -> list[Panel]:
    """Return the panels of a machine: the mean of several data sets, then each data set."""
    panels = []
    mean = mean_panel(machine)
    if mean is not None:
        panels.append(mean)
    for data in machine.data_sets:
        panels.append(_data_panel(machine, data))
    return [panel for panel in panels if panel.points]


def _data_panel(machine: Machine, data: str) -> Panel:
    points = []
    left_out = []
    for result in machine.of_data(data):
        point = _point(result)
        if point is not None:
            points.append(point)
        else:
            left_out.append(f"{result.name} in {result.variant}")
    remark = None
    if left_out:
        remark = f"{data}: no speed or no image AUROC of {', '.join(left_out)}"
    return Panel(data, points, remark)


def mean_panel(machine: Machine) -> Panel | None:
    """Return the panel of the means over data sets; None where there is no such mean.

    The mean is that of the data sets on which the settings of no method were chosen, if there are
    at least two of them, and otherwise that of all. What was not measured on each of them is left
    out.
    """
    data_sets = machine.untuned_data_sets()
    title = f"mean of {len(data_sets)} data sets that no method was tuned on"
    if len(data_sets) < FEWEST_FOR_MEAN:
        data_sets = machine.data_sets
        title = f"mean of {len(data_sets)} data sets"
    if len(data_sets) < FEWEST_FOR_MEAN:
        return None
    title += f": {', '.join(data_sets)}"
    points = []
    left_out = []
    for series in _series(machine):
        parts = [result for result in series if result.data in data_sets]
        point = _mean_point(parts) if len(parts) == len(data_sets) else None
        if point is not None:
            points.append(point)
        elif parts and parts[0].name not in left_out:
            left_out.append(parts[0].name)
    if not points:
        return None
    remark = None
    if left_out:
        remark = f"not measured on all of these data sets in every engine: {', '.join(left_out)}"
    return Panel(title, points, remark)


def _series(machine: Machine) -> list[list[Result]]:
    """Return the results of each detector, engine and precision on all data sets."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in machine.results:
        groups.setdefault((result.name, result.variant), []).append(result)
    return list(groups.values())


def _point(result: Result) -> Point | None:
    """Return the point of a result; None if its speed or its accuracy is not known."""
    fps = result.speed("fps")
    accuracies = result.values("image_auroc")
    if fps is None or not accuracies:
        return None
    several = len(accuracies) > 1
    name = result.name + (TUNED_MARK if result.tuned else "")
    return Point(
        group=name,
        engine=result.engine,
        precision=result.precision,
        fps=fps,
        slowest=result.speed("fps_slowest"),
        fastest=result.speed("fps_fastest"),
        auroc=100 * statistics.mean(accuracies),
        busy=result.busy,
        lowest=100 * min(accuracies) if several else None,
        highest=100 * max(accuracies) if several else None,
    )


def _mean_point(results: Sequence[Result]) -> Point | None:
    """Return the mean over data sets: of the times per frame, and of the accuracies.

    The range over seeds is that of the means of each seed over the data sets.
    """
    points = [_point(result) for result in results]
    known = [point for point in points if point is not None]
    if len(known) < len(results):
        return None
    seeds = _means_of_seeds(results)
    several = len(seeds) > 1
    tuned = any(result.tuned for result in results)
    return Point(
        group=results[0].name + (TUNED_MARK if tuned else ""),
        engine=results[0].engine,
        precision=results[0].precision,
        fps=statistics.harmonic_mean([point.fps for point in known]),
        slowest=_harmonic([point.slowest for point in known]),
        fastest=_harmonic([point.fastest for point in known]),
        auroc=statistics.mean(point.auroc for point in known),
        busy=any(point.busy for point in known),
        lowest=min(seeds) if several else None,
        highest=max(seeds) if several else None,
    )


def _means_of_seeds(results: Sequence[Result]) -> list[float]:
    """Return the mean image AUROC over the data sets, in percent, of each seed that all have."""
    by_seed: dict[int, list[float]] = {}
    for result in results:
        for row in result.rows:
            if row.get("image_auroc") is not None:
                by_seed.setdefault(row.get("seed", 0), []).append(100 * row["image_auroc"])
    means = []
    for values in by_seed.values():
        if len(values) == len(results):
            means.append(statistics.mean(values))
    return means


def _harmonic(values: Sequence[float | None]) -> float | None:
    """Return the mean over equal numbers of frames; None unless all values are known."""
    known = [value for value in values if value is not None]
    return statistics.harmonic_mean(known) if len(known) == len(values) else None
