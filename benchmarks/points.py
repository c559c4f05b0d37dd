"""The points of the figure of speed against accuracy: what is drawn where, and its name."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flawline.runtime.load import is_busy

Row = Mapping[str, Any]
# What tells two detectors apart, beside their method, in the order in which names grow.
SETTINGS = ("backbone", "input")
# What a colour stands for.
DETECTORS = "detector"
DATA_SETS = "data set"


@dataclass(frozen=True)
class Point:
    """One measurement, or the mean of one detector and engine over all data sets.

    `group`, `engine` and `precision` are the names in the legend; the group has a colour. `fps` is
    the median, `slowest` and `fastest` are the FPS of the repeats, None for a single one. `auroc`
    is in percent, `lowest` and `highest` are its range over several seeds. `busy` is true if other
    processes disturbed the times.
    """

    group: str
    engine: str
    precision: str
    fps: float
    slowest: float | None
    fastest: float | None
    auroc: float
    busy: bool
    lowest: float | None = None
    highest: float | None = None

    @property
    def series(self) -> tuple[str, str, str]:
        """What is compared across data sets."""
        return self.group, self.engine, self.precision


@dataclass(frozen=True)
class Panels:
    """The panels of the figure: their titles with their points, and what a colour stands for."""

    points: Mapping[str, Sequence[Point]]
    groups: str

    @property
    def all_points(self) -> list[Point]:
        """The points of all panels."""
        found: list[Point] = []
        for points in self.points.values():
            found += points
        return found


def panels_of(rows: Sequence[Row]) -> Panels:
    """Return what is drawn: a panel per data set, in which every detector is a group.

    Several data sets on which the same detectors and engines were measured begin with a panel of
    their means. One detector with one engine has a single panel, in which every data set is a
    group.
    """
    names = _detector_names(rows)
    series = {(name, row["engine"]) for name, row in zip(names, rows, strict=True)}
    if len(series) == 1 and len(rows) > 1:
        return Panels({names[0]: [_point(row, row["data"]) for row in rows]}, DATA_SETS)
    panels: dict[str, list[Point]] = {}
    for row, name in zip(rows, names, strict=True):
        panels.setdefault(row["data"], []).append(_point(row, name))
    means = _means(list(panels.values()))
    if means:
        panels = {f"mean of {len(panels)} data sets": means, **panels}
    return Panels(panels, DETECTORS)


def common_settings(rows: Sequence[Row]) -> list[str]:
    """Return the settings that all rows share, which no name needs to state."""
    common = []
    for key in SETTINGS:
        values = {row[key] for row in rows}
        if len(values) == 1:
            common.append(str(values.pop()))
    return common


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point exceeds in both speed and accuracy, slowest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.fps, -point.auroc)):
        if not front or point.auroc > front[-1].auroc:
            front.append(point)
    return front[::-1]


def _detector_names(rows: Sequence[Row]) -> list[str]:
    """Return the name of each row's detector: its method, and as much more as tells rows apart."""
    keys = ["method"]
    for key in SETTINGS:
        if len({row[key] for row in rows}) > 1:
            keys.append(key)
    # Two bundles of equal settings, such as two seeds, on the same data and engine. Their folders
    # may have the same name.
    for key in ("bundle", "bundle_id"):
        cells = {(row["data"], row["engine"], *(row[key] for key in keys)) for row in rows}
        if len(cells) < len(rows):
            keys.append(key)
    names = []
    for row in rows:
        name = ", ".join(str(row[key]) for key in keys)
        if row["unfinished"] is not None:
            name += " (training cut short)"
        names.append(name)
    return names


def engine_of(row: Row) -> str:
    """Return the description of a row's engine without its precision and the remarks on it."""
    description: str = row["engine"]
    return description.partition(f" {row['precision']}")[0]


def _point(row: Row, group: str) -> Point:
    return Point(
        group=group,
        engine=engine_of(row),
        precision=row["precision"],
        fps=row["fps"],
        slowest=row["fps_slowest"],
        fastest=row["fps_fastest"],
        auroc=100 * row["image_auroc"],
        busy=is_busy(row["other_processes"]),
    )


def _means(panels: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the mean of each series over panels; none unless every panel has the same series."""
    series = [point.series for point in panels[0]]
    same = all(sorted(point.series for point in panel) == sorted(series) for panel in panels)
    if len(panels) < 2 or not same or len(set(series)) < len(series):
        return []
    means = []
    for key in series:
        points = []
        for panel in panels:
            points += [point for point in panel if point.series == key]
        means.append(_mean(points))
    return means


def _mean(points: Sequence[Point]) -> Point:
    """Return the mean of one series: of the times per frame, and of the accuracies."""
    slowest = [point.slowest for point in points if point.slowest is not None]
    fastest = [point.fastest for point in points if point.fastest is not None]
    repeated = len(slowest) == len(points)
    return Point(
        *points[0].series,
        fps=statistics.harmonic_mean([point.fps for point in points]),
        slowest=statistics.harmonic_mean(slowest) if repeated else None,
        fastest=statistics.harmonic_mean(fastest) if repeated else None,
        auroc=statistics.mean(point.auroc for point in points),
        busy=any(point.busy for point in points),
    )
