"""The criterion and the test accuracy of the bundles of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from flawline.benchmarks.sweep.shapes import ROW
from flawline.benchmarks.sweep.store import DamagedFileError, Store, read_json
from flawline.export.choosing.rank import criteria, kind_aurocs
from flawline.export.choosing.scoring import (
    TrialSet,
    make_trial_set,
    score_trial_set,
    split_good,
)
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.engines import open_reference
from flawline.runtime.environment import versions
from flawline.runtime.files import write_file
from flawline.runtime.json_shapes import Shape, misfit
from flawline.runtime.precisions import FP32
from flawline.train.data import DataError, data_name, open_data
from flawline.train.data.split import list_hash, require_not_trained_on, samples_hash
from flawline.train.method import resolve_method
from flawline.train.progress import Bars, Progress

Row = dict[str, Any]
# Of a row with an accuracy.
MEASURED: Shape = {
    "data": str,
    "cell": str,
    "seed": int,
    "method": str,
    "backbone": (str, None),
    "bundle_id": str,
}
SCORES: Shape = {"good": [float], "anomalies": {str: {str: [float]}}}


def measure(sweep: Path, data: Sequence[Path], threads: int | None) -> list[Row]:
    """Return a row per bundle of a sweep: its criterion and its image AUROC on the test images.

    Raises DataError for a folder that holds no rows of a data set, for rows of other bundles or
    test images, and where the bundles were trained on the images that would be held out.
    """
    store = Store(sweep)
    measured = _read_measured(store)
    rows = []
    for folder in data:
        of_data = [row for row in measured if row["data"] == data_name(folder)]
        if not of_data:
            raise DataError(
                f"--sweep {sweep} has no rows of {data_name(folder)} in measured/; measure it "
                f"first, or leave {folder} out"
            )
        for seed in sorted({row["seed"] for row in of_data}):
            same_seed = [row for row in of_data if row["seed"] == seed]
            rows += _rows_of_data(store, folder, same_seed, threads)
    if not rows:
        raise DataError(
            f"--sweep {sweep}: every detector was trained against all kinds of anomalies, so that "
            f"none is ranked; measure other methods"
        )
    return rows


def _read_measured(store: Store) -> list[Row]:
    """Return one row per cell, in FP32. Raises DataError for a damaged file."""
    rows: dict[str, Row] = {}
    for path in sorted((store.root / "measured").glob("*.json")):
        for row in _read(path, [ROW], "delete it and measure the cell again"):
            # An engine that refused the bundle has a row without an accuracy.
            if row.get("precision") != FP32.name or row.get("image_auroc") is None:
                continue
            reason = misfit(row, MEASURED)
            if reason is not None:
                raise DataError(f"{path} is damaged ({reason}); delete it and measure again")
            rows.setdefault(row["cell"], row)
    return list(rows.values())


def _read(path: Path, shape: Shape, remedy: str) -> Any:
    try:
        return read_json(path, shape)
    except DamagedFileError as error:
        raise DataError(f"{error}; {remedy}") from error


def _rows_of_data(
    store: Store, data: Path, measured: Sequence[Row], threads: int | None
) -> list[Row]:
    """Return the rows of one data set and one seed."""
    data_set = open_data(data)
    _, held_out = split_good(data_set)
    test = samples_hash(data_set)
    trial: TrialSet | None = None
    aurocs = {}
    against = {}
    with Bars() as bars:
        for row in measured:
            cell = row["cell"]
            bundle = read_bundle(store.bundle(cell))
            _require_same(row, bundle, test, data)
            require_not_trained_on(held_out, bundle.manifest.trained_images)
            path = store.root / "regret" / f"{cell}.json"
            identity = _identity(bundle, held_out)
            scores = _read_scores(path, identity)
            if scores is None:
                if trial is None:
                    depth = bundle.manifest.file_bit_depth
                    trial = make_trial_set(held_out, depth, row["seed"], bars)
                scores = {**identity, **_score(bundle, trial, threads, bars)}
                write_file(path, json.dumps(scores).encode(), DataError, "--sweep")
            aurocs[cell] = kind_aurocs(scores["good"], scores["anomalies"])
            against[cell] = resolve_method(bundle.manifest.method).trains_against
    return _with_criteria(data_name(data), measured, aurocs, against)


def _require_same(row: Row, bundle: Bundle, test: str, data: Path) -> None:
    """Raise DataError if the accuracy of a row is of another bundle or of other test images."""
    cell = row["cell"]
    if row["bundle_id"] != bundle.short_id:
        raise DataError(
            f"the accuracy of {cell} is that of another bundle than {bundle.path}; measure it "
            f"again with flawline sweep"
        )
    # Rows of earlier versions do not state their test images.
    if row.get("test_sha256", test) != test:
        raise DataError(
            f"the accuracy of {cell} was measured on other test images than those of {data}; "
            f"measure it again with flawline sweep, or give the data set of the sweep"
        )


def _identity(bundle: Bundle, held_out: Sequence[Path]) -> Row:
    """Return what must be equal for scores to be those of a bundle on these images."""
    return {
        "model_sha256": bundle.model_sha256(),
        "held_out": list_hash(held_out),
        "versions": versions(),
    }


def _read_scores(path: Path, identity: Row) -> Row | None:
    """Return what was scored; None for nothing, or for another bundle, images or versions."""
    scores: Row | None = _read(path, SCORES, "delete it and run the command again")
    if scores is None or any(scores.get(key) != value for key, value in identity.items()):
        return None
    return scores


def _score(bundle: Bundle, trial: TrialSet, threads: int | None, progress: Progress) -> Row:
    with closing(open_reference(bundle.model(), bundle.map_size, threads=threads)) as engine:
        geometry = bundle.manifest.geometry
        good, anomalies = score_trial_set(engine, geometry, trial, progress, bundle.path.name)
    return {"good": good, "anomalies": anomalies}


def _with_criteria(
    data: str,
    measured: Sequence[Row],
    aurocs: Mapping[str, Mapping[str, float]],
    against: Mapping[str, Sequence[str]],
) -> list[Row]:
    values = criteria(aurocs, against)
    rows = []
    for row in measured:
        cell = row["cell"]
        if cell not in values:
            continue
        rows.append(
            {
                "data": data,
                "seed": row["seed"],
                "cell": cell,
                "method": row["method"],
                "backbone": row["backbone"],
                "criterion": round(values[cell], 4),
                "aurocs": {kind: round(value, 4) for kind, value in aurocs[cell].items()},
                "not_counted": list(against[cell]),
                "image_auroc": row["image_auroc"],
            }
        )
    return rows
