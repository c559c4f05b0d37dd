"""The results of a sweep, one per method, data set, engine and precision, machine by machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flawline.benchmarks.points import engine_of
from flawline.benchmarks.sweep.report.rows import Row, SweepFiles
from flawline.runtime.load import is_busy

# Keys of a row that tell two detectors of the same method apart.
SETTINGS = ("backbone", "input", "weights", "flags")
# Of the keys of the times of the engine alone.
ENGINE_PREFIX = "engine_"


@dataclass(frozen=True)
class Result:
    """The rows of one detector on one data set in one engine and precision, one row per seed.

    `name` is the method, with as much more as tells the detectors of the sweep apart. `times` are
    the rows with the times of the same bundles, whose keys begin with `prefix`.
    """

    name: str
    data: str
    engine: str
    precision: str
    rows: Sequence[Row]
    times: Sequence[Row]
    prefix: str

    @property
    def variant(self) -> str:
        """The engine with its precision."""
        return f"{self.engine} {self.precision}"

    @property
    def method(self) -> str:
        return str(self.rows[0]["method"])

    @property
    def tuned(self) -> bool:
        """Whether the settings of the method were chosen on this data set."""
        return any(row.get("tuning_set") for row in self.rows)

    @property
    def busy(self) -> bool:
        """Whether other processes disturbed the times."""
        return any(is_busy(row.get("other_processes")) for row in self.times)

    def values(self, key: str) -> list[float]:
        """Return the known values of a key, one per seed."""
        return known(self.rows, key)

    def mean(self, key: str) -> float | None:
        """Return the mean of a key over the seeds; None where it is not known."""
        values = self.values(key)
        return statistics.mean(values) if values else None

    def speed(self, key: str) -> float | None:
        """Return the median over the seeds of a time or speed, such as p50_ms; None if unknown."""
        values = known(self.times, self.prefix + key)
        return statistics.median(values) if values else None

    def time(self, key: str) -> float | None:
        """Return the median over the seeds of a key of the times; None where it is not known."""
        values = known(self.times, key)
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Machine:
    """All results of one machine with its software, which may be compared with one another.

    `facts` is what is known about the machine. If the bundles of a data set were timed `in_turns`,
    the times are those of the engine alone; otherwise they are from the calls that judged the test
    images, with resizing.
    """

    device: str
    versions: Mapping[str, str]
    facts: Row
    results: Sequence[Result]
    robustness: Sequence[Row]
    in_turns: bool

    @property
    def data_sets(self) -> list[str]:
        """The names of the data sets, in the order of the results."""
        return list(dict.fromkeys(result.data for result in self.results))

    @property
    def names(self) -> list[str]:
        """The names of the detectors, in the order of the results."""
        return list(dict.fromkeys(result.name for result in self.results))

    def of_data(self, data: str) -> list[Result]:
        """Return the results on one data set."""
        return [result for result in self.results if result.data == data]

    def untuned_data_sets(self) -> list[str]:
        """Return the data sets on which the settings of no method of the sweep were chosen."""
        names = []
        for data in self.data_sets:
            if not any(result.tuned for result in self.of_data(data)):
                names.append(data)
        return names


def machines_of(sweep: SweepFiles) -> list[Machine]:
    """Return the machines of a sweep, the one with the most results first.

    Rows belong to one machine if their device and all versions of their software are the same.
    """
    names = _names(sweep.measured)
    groups: dict[str, list[Row]] = {}
    for row in sweep.measured:
        groups.setdefault(_machine_key(row), []).append(row)
    machines = []
    for key, rows in groups.items():
        first = rows[0]
        cells = {_cell_key(row) for row in rows}
        speeds = [row for row in sweep.speed if _belongs(row, key, cells)]
        machine = Machine(
            device=str(first["device"]),
            versions=first.get("versions", {}),
            facts=first.get("machine", {}),
            results=_results(rows, names, speeds),
            robustness=[row for row in sweep.robustness if _belongs(row, key, cells)],
            in_turns=bool(speeds),
        )
        machines.append(machine)
    return sorted(machines, key=lambda machine: -len(machine.results))


def reference_results(machine: Machine, data: str) -> list[Result]:
    """Return one result of each detector on a data set: that of the first engine of its rows."""
    found: dict[str, Result] = {}
    for result in machine.of_data(data):
        found.setdefault(result.name, result)
    return list(found.values())


def known(rows: Sequence[Row], key: str) -> list[float]:
    """Return the values of a key that are not None."""
    return [row[key] for row in rows if row.get(key) is not None]


def _machine_key(row: Row) -> str:
    return json.dumps([row["device"], row.get("versions", {})], sort_keys=True)


def _cell_key(row: Row) -> tuple[str, str, str]:
    """Return what the rows of the different steps have in common."""
    # The description of an engine begins with its name.
    engine = row.get("engine_name") or row["engine"].split()[0]
    return row["cell"], engine, row["precision"]


def _belongs(row: Row, machine_key: str, cells: set[tuple[str, str, str]]) -> bool:
    """Whether a row of another step is of the machine on which these cells were measured."""
    if "device" in row and "versions" in row and _machine_key(row) != machine_key:
        return False
    return _cell_key(row) in cells


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """Return the name of the detector of each cell."""
    varied: dict[str, list[str]] = {}
    for method in {row["method"] for row in rows}:
        of_method = [row for row in rows if row["method"] == method]
        varied[method] = []
        for key in SETTINGS:
            if len({row.get(key) for row in of_method}) > 1:
                varied[method].append(key)
    names = {}
    for row in rows:
        parts = [row["method"]]
        parts += [str(row.get(key)) for key in varied[row["method"]]]
        name = ", ".join(parts)
        if row.get("unfinished") is not None:
            name += " (training cut short)"
        names[row["cell"]] = name
    return names


def _results(rows: Sequence[Row], names: Mapping[str, str], speeds: Sequence[Row]) -> list[Result]:
    """Return the results of one machine. Without `speeds`, the times are those of `rows`."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        key = (names[row["cell"]], row["data"], engine_of(row), row["precision"])
        groups.setdefault(key, []).append(row)
    results = []
    for key, group in groups.items():
        if speeds:
            cells = {_cell_key(row) for row in group}
            own = [row for row in speeds if _cell_key(row) in cells]
            results.append(Result(*key, rows=group, times=own, prefix=ENGINE_PREFIX))
        else:
            results.append(Result(*key, rows=group, times=group, prefix=""))
    return results
