"""Trainings as tasks of Ray, on this machine or on a cluster: one task for each cell.

All machines of the cluster need the same installation, and the folders of the sweep and of the data
under the same paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from flawline.benchmarks.sweep.plan import Cell
from flawline.benchmarks.sweep.store import Store, SweepError
from flawline.benchmarks.sweep.train_cell import FAILED, Outcome, train_in_process
from flawline.benchmarks.sweep.training import Submit
from flawline.runtime.console import first_line

# The value of --ray without an address.
LOCAL = "local"
# How often Ray runs a task again whose machine was lost.
RETRIES = 1


@contextmanager
def ray_tasks(store: Store, address: str, jobs: int) -> Iterator[Submit]:
    """Give a function that trains cells as tasks of a Ray cluster, one CPU each.

    address: of a running cluster, "auto" for the one of this machine, or LOCAL for a cluster of
        this machine alone with `jobs` CPUs, which ends with the block.
    Raises SweepError if the cluster cannot be reached.
    """
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    try:
        if address == LOCAL:
            ray.init(num_cpus=jobs, **options)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SweepError(
            f"--ray {address}: {first_line(error)}; start the cluster with ray start, or leave "
            "the address out"
        ) from error
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(train_in_process)

    def submit(cell: Cell, deadline: float | None) -> Future[Outcome]:
        return _outcome(task.remote(store.root, cell, deadline), cell)

    try:
        yield submit
    finally:
        ray.shutdown()


def _outcome(reference: Any, cell: Cell) -> Future[Outcome]:
    """Return the outcome of a task; one that Ray lost is a failed cell."""
    outcome: Future[Outcome] = Future()

    def done(finished: Future[Outcome]) -> None:
        error = finished.exception()
        if error is None:
            outcome.set_result(finished.result())
        else:
            outcome.set_result(Outcome(cell.name, FAILED, f"Ray: {first_line(error)}"))

    reference.future().add_done_callback(done)
    return outcome
