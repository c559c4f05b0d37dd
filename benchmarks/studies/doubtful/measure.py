"""The list of doubtful images of a contaminated data set, and trainings with and without it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.contamination.data import Contamination, write_contaminated
from flawline.benchmarks.studies.contamination.measure import hash_of_test, measure_share
from flawline.runtime.console import printable
from flawline.runtime.environment import versions
from flawline.runtime.graph_input import GraphInput
from flawline.train.data import data_name, open_data
from flawline.train.data.exclusion import COMMENT, FLAG
from flawline.train.data.images import frames_of
from flawline.train.doubtful.files import DoubtfulFiles
from flawline.train.doubtful.listing import list_doubtful
from flawline.train.fit import DEFAULT_METHOD
from flawline.train.fold_training import SharedFeatures
from flawline.train.method import resolve_method
from flawline.train.progress import Bars
from flawline.train.recipe import plan

# What was trained on. A person who looks at the list keeps its good images.
NOT_MOVED = "without the defective"
ALL_IMAGES = "all"
NOT_LISTED = "without the listed"
NOT_CONFIRMED = "without the listed defective"
# How `write_contaminated` names what was moved.
MOVED = "contaminant-"


@dataclass(frozen=True)
class Listed:
    """A list of doubtful images, and the row that counts them."""

    contamination: Contamination
    share: float
    names: Sequence[str]
    row: dict[str, Any]


def measure_list(
    contamination: Contamination,
    share: float,
    seed: int,
    weights: str,
    features: SharedFeatures,
) -> Listed:
    """List the doubtful images of a contaminated copy of the data, in a temporary folder.

    features: shared by the lists of all seeds, whose images are mostly the same.
    """
    name = data_name(contamination.data_set.root)
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        data = write_contaminated(contamination, share, Path(folder) / "data" / name)
        files = DoubtfulFiles(Path(folder) / "run.pt")
        recipe = plan(DEFAULT_METHOD, data, weights=weights)
        model = resolve_method(DEFAULT_METHOD)(recipe.settings)
        graph_input = GraphInput(model.geometry)
        frames = frames_of(open_data(data).train_good, graph_input, None)
        found = model.load_weights(weights, 0, frames)
        features.attach(model)
        with Bars() as bars:
            list_doubtful(files, data, frames, graph_input, model, bars)
        names = _listed_names(files)
    row = {
        "what": "list",
        "data": printable(name),
        "seed": seed,
        "share": share,
        "backbone": model.settings.backbone,
        "weights": found,
        "moved": len(contamination.moved_at(share)),
        "training_images": len(frames),
        "found": sum(map(_is_moved, names)),
        "listed": len(names),
        "test_images": hash_of_test(contamination),
        "versions": versions(),
    }
    return Listed(contamination, share, names, row)


def _listed_names(files: DoubtfulFiles) -> list[str]:
    if not files.list.exists():
        return []
    lines = files.list.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(COMMENT)]


def measure_trainings(
    listed: Listed, method: str, seed: int, weights: str, flags: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Train a method on several choices of the images, test it on the same ones; yield the rows.

    Raises TrainError when a build ends with an error.
    """
    if resolve_method(method).settings_for(listed.row["backbone"]).backbone:
        flags = ["--weights", weights, *flags]
    confirmed = [name for name in listed.names if _is_moved(name)]
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        file = Path(folder) / "list.txt"
        for kind, share, left_out in (
            (NOT_MOVED, 0.0, []),
            (ALL_IMAGES, listed.share, []),
            (NOT_LISTED, listed.share, listed.names),
            (NOT_CONFIRMED, listed.share, confirmed),
        ):
            file.write_text("\n".join(left_out), encoding="utf-8")
            words = [*flags, FLAG, str(file)]
            row = measure_share(listed.contamination, share, method, seed, words)
            yield {"what": "training", "kind": kind, **row, "share": listed.share}


def _is_moved(name: str) -> bool:
    return Path(name).name.startswith(MOVED)
