"""The cells of a sweep that are not trained yet, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import IO

from flawline.benchmarks.sweep.plan import Cell
from flawline.benchmarks.sweep.progress import CellCounter, Rest
from flawline.benchmarks.sweep.store import Store
from flawline.benchmarks.sweep.train_cell import (
    LEFT,
    Outcome,
    Trainings,
    is_trained,
    lacks_graphs,
    train_in_process,
)
from flawline.cameras.listing import count_of
from flawline.runtime.console import log

# Takes a cell, and a deadline as `time.time()` counts; trains it in another process.
Submit = Callable[[Cell, float | None], "Future[Outcome]"]


def train_cells(
    store: Store,
    cells: Sequence[Cell],
    precisions: Sequence[str],
    submit: Submit,
    deadline: float | None,
    rest: Rest,
) -> None:
    """Train the cells that the folder lacks; `rest` gets those that fail or are not begun in time.

    Bundles also get the graphs of these precisions, if they lack them. Raises DataError for an
    unsuitable data set.
    """
    missing, without_graphs = [], []
    for cell in cells:
        if not is_trained(store, cell):
            missing.append(cell)
        elif lacks_graphs(store, cell, precisions):
            without_graphs.append(cell)
    if len(missing) < len(cells):
        log(f"{len(cells) - len(missing)} of {len(cells)} cells are trained already")
    if without_graphs:
        log(f"{count_of(len(without_graphs), 'cell')} of them get graphs of further precisions")
    todo = [*without_graphs, *missing]
    counter = CellCounter("trained", len(todo))
    for future in as_completed([submit(cell, deadline) for cell in todo]):
        outcome = future.result()
        if outcome.status == LEFT:
            rest.left.append(outcome.cell)
            continue
        if outcome.reason is not None:
            rest.failed[outcome.cell] = outcome.reason
        counter.finished(outcome.cell, _describe(outcome))


def _describe(outcome: Outcome) -> str:
    if outcome.reason is not None:
        return f"failed: {outcome.reason}"
    if outcome.minutes is None:
        return "continued from an earlier run"
    return f"{outcome.minutes:.1f} min"


@contextmanager
def local_processes(store: Store, jobs: int, lock: IO[bytes]) -> Iterator[Submit]:
    """Give a function that trains cells on this machine, `jobs` at a time with one thread each.

    When the block ends by Ctrl-C or an error, trainings that run are ended; they save their state,
    and the next run continues them.
    """
    trainings = Trainings(pass_fds=(lock.fileno(),))
    pool = ThreadPoolExecutor(jobs)
    try:
        yield lambda cell, deadline: pool.submit(
            train_in_process, store.root, cell, deadline, trainings
        )
    except BaseException:
        trainings.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
