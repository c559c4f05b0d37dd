"""The trained cells of a sweep that are not measured yet, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

from flawline import FlawlineError
from flawline.benchmarks.interleaved import EngineChoice
from flawline.benchmarks.sweep.measure_cell import (
    MEASURED,
    has_rows,
    identity_of_rows,
    measure_cell,
    trained_facts,
)
from flawline.benchmarks.sweep.plan import Cell, data_names
from flawline.benchmarks.sweep.progress import CellCounter, Rest, is_over
from flawline.benchmarks.sweep.robust_cell import measure_robustness
from flawline.benchmarks.sweep.speed import Trained, has_speed, measure_speed
from flawline.benchmarks.sweep.store import Row, Store, read_rows
from flawline.cameras.listing import count_of
from flawline.runtime.console import log


def measure_cells(
    store: Store,
    cells: Sequence[Cell],
    choices: Sequence[EngineChoice],
    deadline: float | None,
    rest: Rest,
    robustness: bool = False,
) -> None:
    """Measure the accuracy of each trained cell, then the speed of the bundles of each data set.

    With `robustness`, each cell is also measured on changed images, in the first engine.
    Measurements never run at the same time, which would disturb the times. `rest` gets those that
    fail or are not begun in time, and the cells that are not trained.
    """
    trained: list[Trained] = []
    for cell in cells:
        facts = trained_facts(store, cell)
        if facts is not None:
            trained.append((cell, facts))
        elif cell.name not in rest.failed and cell.name not in rest.left:
            rest.untrained.append(cell.name)
    measuring = _Measuring(store, choices, deadline, rest)
    measuring.accuracy(trained)
    measuring.speed(trained)
    if robustness:
        measuring.robustness(trained)


@dataclass
class _Measuring:
    store: Store
    choices: Sequence[EngineChoice]
    deadline: float | None
    rest: Rest

    def accuracy(self, trained: Sequence[Trained]) -> None:
        missing: list[Trained] = []
        for cell, facts in trained:
            rows = read_rows(self.store.measured(cell.name))
            if not has_rows(rows, identity_of_rows(cell, facts), self.choices):
                missing.append((cell, facts))
        if len(missing) < len(trained):
            log(f"{len(trained) - len(missing)} of {len(trained)} cells are measured already")
        counter = CellCounter("measured", len(missing))
        for cell, facts in missing:
            with self._stage("measured", cell.name, counter) as results:
                if results is not None:
                    results += measure_cell(self.store, cell, facts, self.choices)

    def speed(self, trained: Sequence[Trained]) -> None:
        missing = []
        for name in data_names(cell for cell, _facts in trained):
            of_data = [(cell, facts) for cell, facts in trained if cell.data_name == name]
            if not has_speed(self.store, of_data, self.choices):
                missing.append((name, of_data))
        counter = CellCounter("speed of", len(missing))
        for name, of_data in missing:
            with self._stage("speed", name, counter) as results:
                if results is not None:
                    results += measure_speed(self.store, of_data, self.choices)

    def robustness(self, trained: Sequence[Trained]) -> None:
        choice = self.choices[0]
        missing: list[Trained] = []
        for cell, facts in trained:
            rows = read_rows(self.store.robustness(cell.name))
            if not has_rows(rows, identity_of_rows(cell, facts), [choice]):
                missing.append((cell, facts))
        counter = CellCounter("robustness of", len(missing))
        for cell, facts in missing:
            with self._stage("robustness", cell.name, counter) as results:
                if results is not None:
                    results += measure_robustness(self.store, cell, facts, choice)

    @contextmanager
    def _stage(self, stage: str, name: str, counter: CellCounter) -> Iterator[list[Row] | None]:
        """Give a list for the rows of a measurement, which is then reported; None after the end.

        Its messages go into its log, and a failure into `rest`.
        """
        if is_over(self.deadline):
            self.rest.left.append(name if stage == "measured" else f"{stage} of {name}")
            yield None
            return
        rows: list[Row] = []
        path = self.store.log(stage, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("w", encoding="utf-8") as file, redirect_stderr(file):
                yield rows
            result = describe_rows(rows)
        except FlawlineError as error:
            self.rest.failed[name] = str(error)
            result = f"failed: {error}"
        counter.finished(name, result)


def describe_rows(rows: Sequence[Row]) -> str:
    """Return what was measured in a few words: how many rows, accuracy, and engines without one."""
    measured = [row for row in rows if row["status"] == MEASURED]
    text = count_of(len(measured), "row")
    if measured and "image_auroc" in measured[0]:
        text += f", image AUROC {measured[0]['image_auroc']}"
    refused = [f"{row['engine']} {row['precision']}" for row in rows if row["status"] != MEASURED]
    if refused:
        text += f"; not measured: {', '.join(dict.fromkeys(refused))}"
    return text
