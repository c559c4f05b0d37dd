"""The robustness of one cell: its bundle judges the test images after changes of light and lens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flawline.benchmarks.interleaved import EngineChoice
from flawline.benchmarks.sweep.measure_cell import MEASURED, identity_of_rows, other_rows
from flawline.benchmarks.sweep.plan import Cell
from flawline.benchmarks.sweep.store import Row, Store, read_rows, write_json
from flawline.runtime.bundle import read_bundle


def measure_robustness(
    store: Store, cell: Cell, facts: dict[str, Any], choice: EngineChoice
) -> list[Row]:
    """Measure a cell in one engine, write its rows and return them.

    The rows of other machines stay in the file. Raises EngineError, BundleError and DataError.
    """
    # Imported here, because the command line must not wait for torch.
    from flawline.benchmarks.robustness import robustness_of
    from flawline.train.data import open_data

    identity = identity_of_rows(cell, facts)
    of_cell = {
        "cell": cell.name,
        "status": MEASURED,
        "seed": cell.seed,
        **identity,
    }
    bundle = read_bundle(store.bundle(cell.name))
    data_set = open_data(Path(cell.data))
    rows = robustness_of(bundle, data_set, choice.name, choice.options, facts=of_cell)
    path = store.robustness(cell.name)
    write_json(path, [*other_rows(read_rows(path), identity), *rows])
    return rows
