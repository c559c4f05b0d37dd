"""Image AUROC of SimpleNet along its training, with the weights of the step and their average."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flawline.benchmarks.labels import labelled_test_images
from flawline.train.blocks.coreset import greedy_k_centre, project
from flawline.train.blocks.patches import collect_features
from flawline.train.data import PreparedImages, data_name, hold_out, open_data
from flawline.train.data.split import list_hash
from flawline.train.loop import half_precision
from flawline.train.method import Fit
from flawline.train.methods.patchcore import DEFAULT_CORESET
from flawline.train.methods.simplenet import SimpleNet, SimpleNetSettings
from flawline.train.metrics import auroc
from flawline.train.progress import Progress

Row = dict[str, Any]
FIXED_SHARE = 0.1
# Shares of the training after which AUROC is measured; its last half more closely.
MEASURED_AT = (0.1, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass(frozen=True)
class Features:
    """The patch features of a data set, float32 [n, positions, D2] each.

    `train` are of the good images that are not held out, `test` of the test images, whose `labels`
    [n] are True for a defective one. `weights` describes the backbone's weights.
    """

    name: str
    train: npt.NDArray[np.float32]
    test: npt.NDArray[np.float32]
    labels: npt.NDArray[np.bool_]
    weights: str


def collect(
    data: Path, settings: SimpleNetSettings, weights: str, cache: Path, progress: Progress
) -> Features:
    """Compute the features of a data set, or read those that `cache` already has."""
    model = SimpleNet(settings)
    dataset = open_data(data)
    good = PreparedImages(hold_out(dataset.train_good)[0], model.geometry)
    test, labels = labelled_test_images(dataset, model.geometry)
    description = model.load_weights(weights, 0, good)
    model.eval()
    arrays = {}
    for part, images in (("train", good), ("test", test)):
        # Of the same features only: another backbone or other images are computed.
        path = cache / f"{data_name(data)}.{part}-{_key(settings, description, images.paths)}.npy"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            np.save(
                path,
                collect_features(
                    images,
                    lambda image: model.features(image).flatten(1, 2),
                    model.device,
                    str(cache),
                    progress,
                ),
            )
        arrays[part] = np.load(path, mmap_mode="c")
    return Features(data_name(data), arrays["train"], arrays["test"], labels, description)


def _key(settings: SimpleNetSettings, weights: str, paths: Sequence[Path]) -> str:
    """Return a hash of what features depend on."""
    text = f"{settings} {weights} {list_hash(paths)}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def nearest_auroc(features: Features, seed: int = 0) -> float:
    """Return the image AUROC of PatchCore's bank, with its default coreset, on these features."""
    flat = features.train.reshape(-1, features.train.shape[-1])
    rows = round(DEFAULT_CORESET * len(flat))
    device = torch.device("cpu")
    selected = greedy_k_centre(project(flat, seed, device), rows, seed, _silent)
    bank = torch.from_numpy(flat[selected.numpy()])
    squared_lengths = (bank**2).sum(1)
    scores = []
    for image in features.test:
        vectors = torch.from_numpy(image)
        nearest = (squared_lengths - 2 * vectors @ bank.T).amin(1)
        scores.append(float((nearest + (vectors**2).sum(1)).max()))
    return auroc(features.labels, np.array(scores))


def _silent(label: str, done: int, total: int) -> None:
    """Report no progress."""


def measure_curve(
    features: Features, settings: SimpleNetSettings, steps: int, seed: int, fixed_decay: bool
) -> Row:
    """Train once; return the AUROC at each measured step, and the time of the steps.

    `last` are those of the weights after the step, `averaged` those of their running average: the
    one that the method keeps or, with `fixed_decay`, one with the same decay from the first step
    on, over FIXED_SHARE of the training. `seconds` is the CPU time of the training without the
    measurements. `defective` and `good` are the numbers of test images.
    """
    model = SimpleNet(settings)
    measured = {max(1, round(share * steps)) for share in MEASURED_AT}
    points: list[Mapping[str, float]] = []
    fixed = _FixedDecay(FIXED_SHARE * steps)
    spent = 0.0

    def watch(step: int, last: nn.Module, averaged: nn.Module) -> None:
        nonlocal spent
        if fixed_decay:
            averaged = fixed.update(last)
        if step not in measured:
            return
        start = time.process_time()
        of_last = round(_auroc(last, features), 4)
        of_averaged = round(_auroc(averaged, features), 4)
        points.append({"step": step, "last": of_last, "averaged": of_averaged})
        spent += time.process_time() - start

    start = time.process_time()
    model.train_on(features.train, Fit([], steps, seed), watch)
    seconds = time.process_time() - start - spent
    return {
        "data": features.name,
        "defective": int(features.labels.sum()),
        "good": int((~features.labels).sum()),
        "seed": seed,
        "steps": steps,
        "points": points,
        "seconds": round(seconds, 1),
    }


class _FixedDecay:
    """The average of a head's weights and buffers with a fixed decay of 1 - 1 / window."""

    def __init__(self, window: float) -> None:
        decay = max(0.0, 1 - 1 / max(1.0, window))
        self.averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.average: AveragedModel | None = None

    def update(self, head: nn.Module) -> nn.Module:
        """Take in the weights of one step and return the average."""
        if self.average is None:
            self.average = AveragedModel(head, multi_avg_fn=self.averaging, use_buffers=True)
        self.average.update_parameters(head)
        return self.average.module


@torch.inference_mode()
def _auroc(head: nn.Module, features: Features) -> float:
    """Return the image AUROC of a head, which is left in training mode."""
    head.eval()
    scores = []
    for image in features.test:
        scores.append(image_score(head, torch.from_numpy(image)))
    head.train()
    return auroc(features.labels, np.array(scores))


def image_score(head: nn.Module, vectors: Tensor) -> float:
    """Return the score of an image's vectors [positions, D2]: the highest of all."""
    with half_precision(vectors.device):
        return -float(head(vectors).float().min())


def spread(rows: Sequence[Row], key: str = "averaged") -> float:
    """Return the largest difference of AUROC over the last half of the training and all seeds."""
    values = last_half(rows, key)
    return max(values) - min(values)


def standard_error(auroc: float, defective: int, good: int) -> float:
    """Return the standard error of an AUROC because these numbers of test images are finite.

    Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic
    (ROC) curve", Radiology 143, 1982, with the two probabilities of their table II.
    """
    two_defective = auroc / (2 - auroc)
    two_good = 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc)
    variance += (defective - 1) * (two_defective - auroc**2)
    variance += (good - 1) * (two_good - auroc**2)
    return math.sqrt(variance / (defective * good))


def last_half(rows: Sequence[Row], key: str) -> list[float]:
    """Return the AUROC at all points of the last half of the training, of all rows."""
    values = []
    for row in rows:
        for point in row["points"]:
            if 2 * point["step"] >= row["steps"]:
                values.append(point[key])
    return values
