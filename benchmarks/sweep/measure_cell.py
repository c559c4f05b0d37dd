"""The rows of one cell: its bundle judges the test images in every engine and precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.interleaved import EngineChoice, JudgingError
from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.sweep.plan import Cell
from flawline.benchmarks.sweep.store import Row, Store, read_record, read_rows, write_json
from flawline.benchmarks.sweep.train_cell import complete_graphs, is_trained
from flawline.runtime.console import printable
from flawline.runtime.engines import EngineError
from flawline.runtime.environment import cpu_name, versions

# The status of a row: its figures were measured, or `reason` says why the engine has none.
MEASURED = "measured"
REFUSED = "refused"
# Images that an engine judges before the next one's turn.
TURN = 16


def trained_facts(store: Store, cell: Cell) -> dict[str, Any] | None:
    """Return the facts of a cell that is trained as it says, None of any other.

    Raises DataError for an unsuitable data set.
    """
    return read_record(store.facts(cell.name)) if is_trained(store, cell) else None


def machine_of_rows() -> Row:
    """Return what must be equal for two rows to be compared: the device and the versions."""
    return {"device": cpu_name(), "versions": versions()}


def of_this_machine(row: Row) -> bool:
    """Whether a row was measured on this machine as it is."""
    return all(row.get(key) == value for key, value in machine_of_rows().items())


def identity_of_rows(cell: Cell, facts: dict[str, Any]) -> Row:
    """Return what must be equal for a row to be of this cell: the bundle and the test images.

    Raises DataError for an unsuitable data set.
    """
    return {"bundle_id": facts["bundle_id"], **cell.test_identity()}


def _is_of(row: Row, identity: Row) -> bool:
    return all(row.get(key) == value for key, value in identity.items())


def has_rows(rows: Sequence[Row], identity: Row, choices: Sequence[EngineChoice]) -> bool:
    """Whether there is a row of this machine and identity for each engine and precision.

    Rows with times count only if they were measured with the same number of threads.
    """
    found: dict[tuple[Any, Any], Any] = {}
    for row in rows:
        if _is_of(row, identity) and of_this_machine(row):
            found[row.get("engine_name"), row.get("precision")] = row.get("threads")
    for choice in choices:
        # A refusal and the rows of changed images have no times.
        allowed = (None, choice.options.threads or "all")
        if _key(choice) not in found or found[_key(choice)] not in allowed:
            return False
    return True


def other_rows(rows: Sequence[Row], identity: Row) -> list[Row]:
    """Return the rows of the same identity that were measured on other machines."""
    return [row for row in rows if _is_of(row, identity) and not of_this_machine(row)]


def known_reasons(store: Store, cell: Cell, facts: dict[str, Any]) -> dict[tuple[Any, Any], Any]:
    """Return why engines could not be used in the measurement of a cell on this machine."""
    identity = identity_of_rows(cell, facts)
    reasons = {}
    for row in read_rows(store.measured(cell.name)):
        refused = row.get("status") == REFUSED and _is_of(row, identity)
        if refused and of_this_machine(row):
            reasons[row.get("engine_name"), row.get("precision")] = row.get("reason")
    return reasons


def public_reason(error: object, store: Store, cell: Cell) -> str:
    """Return the text of an error without the folder that the sweep is in on this machine."""
    return str(error).replace(str(store.bundle(cell.name)), cell.name)


def measure_cell(
    store: Store, cell: Cell, facts: dict[str, Any], choices: Sequence[EngineChoice]
) -> list[Row]:
    """Measure a cell, write its rows and return them; rows of other machines stay in the file.

    An engine that cannot be used has a row with the status REFUSED and the reason. Raises
    BundleError for a damaged bundle, and DataError for data that cannot be tested on.
    """
    refused = complete_graphs(store, cell, [choice.options.precision for choice in choices])
    measured, reasons = _evaluate(store.bundle(cell.name), Path(cell.data), choices)
    machine = machine_facts()
    rows = []
    for choice in choices:
        row = facts_of_row(cell, facts, choice)
        if _key(choice) in measured:
            row |= measured[_key(choice)]
        else:
            reason = refused.get(choice.options.precision) or reasons[_key(choice)]
            row |= {"status": REFUSED, "reason": public_reason(reason, store, cell)}
        rows.append({**row, "machine": machine})
    path = store.measured(cell.name)
    write_json(path, [*other_rows(read_rows(path), identity_of_rows(cell, facts)), *rows])
    return rows


def _evaluate(
    bundle: Path, data: Path, choices: Sequence[EngineChoice]
) -> tuple[dict[tuple[str, str], Row], dict[tuple[str, str], str]]:
    """Return the rows of the engines that can be used, and why the others cannot."""
    from flawline.benchmarks.evaluate import evaluate_bundles

    reasons: dict[tuple[str, str], str] = {}

    def left_out(choice: EngineChoice, reason: str) -> None:
        reasons[choice.name, choice.options.precision] = reason

    remaining = list(choices)
    while remaining:
        try:
            rows = evaluate_bundles([bundle], data, remaining, 1, True, True, left_out, TURN)
        except JudgingError as error:
            # The others are measured without it.
            reasons[error.engine, error.precision] = str(error)
        except EngineError:
            # None of them could be opened.
            break
        else:
            used = [choice for choice in remaining if _key(choice) not in reasons]
            return {_key(choice): row for choice, row in zip(used, rows, strict=True)}, reasons
        remaining = [choice for choice in remaining if _key(choice) not in reasons]
    return {}, reasons


def _key(choice: EngineChoice) -> tuple[str, str]:
    return choice.name, choice.options.precision


def facts_of_row(cell: Cell, facts: dict[str, Any], choice: EngineChoice) -> Row:
    """Return what a row states about its training and engine, whether it was measured or not."""
    return {
        "cell": cell.name,
        "status": MEASURED,
        "reason": None,
        "method": cell.method,
        "backbone": cell.backbone,
        "weights": facts["weights_found"],
        "data": printable(cell.data_name),
        "seed": cell.seed,
        "flags": cell.flags,
        "steps": facts["steps"],
        "minutes_to_bundle": facts["minutes"],
        "trained_on": facts["device"],
        **identity_of_rows(cell, facts),
        "engine": choice.name,
        "engine_name": choice.name,
        "precision": choice.options.precision,
        **machine_of_rows(),
    }
