"""The criterion and the test accuracy of the bundles of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from flawline.export.choosing.rank import criteria, kind_aurocs
from flawline.export.choosing.scoring import TrialSet, make_trial_set, score_trial_set
from flawline.os_errors import reason_of
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.engines import open_reference
from flawline.runtime.files import write_file
from flawline.runtime.precisions import FP32
from flawline.train.data import DataError, hold_out, open_data
from flawline.train.data.split import require_not_trained_on, without_copies
from flawline.train.method import resolve_method
from flawline.train.progress import Bars, Progress

Row = dict[str, Any]


def measure(sweep: Path, data: Sequence[Path], threads: int | None) -> list[Row]:
    """Return a row per bundle of a sweep: its criterion and its image AUROC on the test images.

    Raises DataError for a folder that holds no rows of a data set, and where the bundles were
    trained on the images that would be held out.
    """
    measured = _read_measured(sweep)
    rows = []
    for folder in data:
        of_data = [row for row in measured if row["data"] == folder.name]
        if not of_data:
            raise DataError(
                f"--sweep {sweep} has no rows of {folder.name} in measured/; measure it first, or "
                f"leave {folder} out"
            )
        for seed in sorted({row["seed"] for row in of_data}):
            same_seed = [row for row in of_data if row["seed"] == seed]
            rows += _rows_of_data(sweep, folder, same_seed, threads)
    return rows


def _read_measured(sweep: Path) -> list[Row]:
    """Return one row per cell, in FP32. Raises DataError for a file that cannot be read."""
    rows: dict[str, Row] = {}
    for path in sorted((sweep / "measured").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({reason_of(error)}); see --sweep") from error
        except ValueError as error:
            raise DataError(f"{path} is damaged; delete it and measure the cell again") from error
        for row in content:
            # An engine that refused the bundle has a row without an accuracy.
            if row["precision"] == FP32.name and row.get("image_auroc") is not None:
                rows.setdefault(row["cell"], row)
    return list(rows.values())


def _rows_of_data(
    sweep: Path, data: Path, measured: Sequence[Row], threads: int | None
) -> list[Row]:
    """Return the rows of one data set and one seed."""
    data_set = open_data(data)
    learnt, held_out = hold_out(data_set.train_good)
    held_out = without_copies(held_out, learnt)
    trial: TrialSet | None = None
    aurocs = {}
    against = {}
    with Bars() as bars:
        for row in measured:
            cell = row["cell"]
            bundle = read_bundle(sweep / "trained" / cell)
            require_not_trained_on(held_out, bundle.manifest.trained_images)
            path = sweep / "regret" / f"{cell}.json"
            scores = _read_scores(path, bundle)
            if scores is None:
                if trial is None:
                    depth = bundle.manifest.file_bit_depth
                    trial = make_trial_set(held_out, depth, row["seed"], bars)
                scores = _score(bundle, trial, threads, bars)
                write_file(path, json.dumps(scores).encode(), DataError, "--sweep")
            aurocs[cell] = kind_aurocs(scores["good"], scores["anomalies"])
            against[cell] = resolve_method(bundle.manifest.method).trains_against
    return _with_criteria(data.name, measured, aurocs, against)


def _read_scores(path: Path, bundle: Bundle) -> Row | None:
    """Return what was scored of this bundle; None for nothing, or for another bundle."""
    try:
        scores: Row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is damaged; delete it and run the command again") from error
    if scores["model_sha256"] != bundle.model_sha256():
        return None
    return scores


def _score(bundle: Bundle, trial: TrialSet, threads: int | None, progress: Progress) -> Row:
    with closing(open_reference(bundle.model(), bundle.map_size, threads=threads)) as engine:
        geometry = bundle.manifest.geometry
        good, anomalies = score_trial_set(engine, geometry, trial, progress, bundle.path.name)
    return {"model_sha256": bundle.model_sha256(), "good": good, "anomalies": anomalies}


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
