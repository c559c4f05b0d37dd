"""Training on contaminated images, and the row of one share."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.evaluate import evaluate_bundles
from flawline.benchmarks.interleaved import EngineChoice
from flawline.benchmarks.studies.contamination.data import Contamination, write_contaminated
from flawline.benchmarks.train_bundle import train_bundle
from flawline.runtime.bundle import read_bundle
from flawline.runtime.console import printable
from flawline.runtime.engines import EngineOptions
from flawline.train import TrainError
from flawline.train.data import data_name
from flawline.train.data.split import content_hashes


def measure_share(
    contamination: Contamination,
    share: float,
    method: str,
    seed: int,
    flags: Sequence[str],
    choice: EngineChoice | None = None,
) -> dict[str, Any]:
    """Train on a contaminated copy of the data, test on the images that never move; return the row.

    A fifth of the training images, and so of the defective ones among them, sets the threshold.
    `flags` go to `export.build`; `choice` is the engine, None for `auto`. The copy is of links, in
    a temporary folder. Raises TrainError when the build ends with an error, which it has reported
    itself.
    """
    name = data_name(contamination.data_set.root)
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        # The last part is the name of the data set, which some methods read.
        data = write_contaminated(contamination, share, Path(folder) / "data" / name)
        bundle = Path(folder) / "bundle"
        words = ["--method", method, *flags]
        if train_bundle(data, seed, words, bundle, Path(folder) / "run.pt") is None:
            raise TrainError(f"share {share:g}: no bundle was built; see the message above")
        engine = choice or EngineChoice("auto", EngineOptions())
        (row,) = evaluate_bundles([bundle], data, [engine], 1, protocol=True)
        row["held_out"] = read_bundle(bundle).calibration.good_images
    row["data"] = printable(name)
    moved = len(contamination.moved_at(share))
    training = len(contamination.data_set.train_good) + moved
    return {
        "share": share,
        "moved": moved,
        "training_images": training,
        "test_images": hash_of_test(contamination),
        "seed": seed,
        **row,
    }


def hash_of_test(contamination: Contamination) -> str:
    """Return a hash of the contents of the test images: rows with the same one are comparable."""
    contents = content_hashes([sample.path for sample in contamination.test])
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]
