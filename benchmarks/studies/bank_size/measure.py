"""Accuracy and speed of PatchCore with banks of several sizes, from the coreset or random."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawline.benchmarks.measure.timing import percentiles
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.engines import open_reference
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.image import Image
from flawline.runtime.timing import time_calls
from flawline.train.methods.patchcore import PatchCore
from flawline.train.metrics import auroc
from flawline.train.progress import Progress

CORESET = "coreset"
RANDOM = "random"
# Untimed calls of each bank before the first image.
WARM_UP = 5


@dataclass(frozen=True)
class Patches:
    """Feature vectors [k, D], and which patch each is: image * positions + position, [k]."""

    vectors: Tensor
    origin: NDArray[np.int64]


def patch_grid(model: PatchCore) -> tuple[int, int]:
    """Return how many patches an image has in height and width: the grid of layer2."""
    return model.backbone.grids(*model.settings.size)[0]


@torch.inference_mode()
def random_patches(
    model: PatchCore, images: Sequence[Image], limit: int, seed: int, progress: Progress
) -> Patches:
    """Return up to `limit` patches of the images uint8 [H, W, 3], in random order."""
    rows, columns = patch_grid(model)
    positions = rows * columns
    chosen = np.random.default_rng(seed).permutation(len(images) * positions)[:limit]
    vectors = torch.empty(len(chosen), model.dimensions)
    for number, image in enumerate(images):
        of_image = np.flatnonzero(chosen // positions == number)
        if of_image.size > 0:
            tensor = torch.from_numpy(np.asarray(image))[None]
            features = model.features(tensor)[0].flatten(0, 1)
            vectors[of_image] = features[chosen[of_image] % positions]
        progress("random patches", number + 1, len(images))
    return Patches(vectors, chosen)


def compare_sizes(
    model: PatchCore,
    sizes: Sequence[int],
    random: Patches,
    images: Sequence[Image],
    labels: NDArray[np.bool_],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return two rows for each size: a bank of the coreset's first rows, and one of random patches.

    `model` holds the coreset of the largest size, whose first n rows are the coreset of n. `images`
    are test images uint8 [H, W, 3], `labels` [n] is True for those with a defect. Sizes are cut to
    the patches that there are.
    """
    sources = {CORESET: model.bank.vectors, RANDOM: random.vectors}
    largest = min(len(model.bank.vectors), len(random.vectors))
    kinds = []
    models = []
    # Sizes beyond the patches that there are become one size.
    for size in sorted(set(np.minimum(sizes, largest).tolist())):
        for kind, vectors in sources.items():
            kinds.append(kind)
            models.append(_with_bank(model, vectors[:size]))
    rows = measure_banks(models, images, labels, progress)
    environment = {"device": cpu_name(), "versions": versions()}
    for kind, row in zip(kinds, rows, strict=True):
        row.update(bank=kind, **environment)
    return rows


def _with_bank(model: PatchCore, vectors: Tensor) -> PatchCore:
    smaller = copy.deepcopy(model)
    # Where the rows come from is not needed for searching them.
    smaller.bank.fill(vectors, torch.zeros(len(vectors), dtype=torch.int64))
    return smaller


def measure_banks(
    models: Sequence[PatchCore],
    images: Sequence[Image],
    labels: NDArray[np.bool_],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return accuracy and speed of each model, both from the same calls of its exported graph.

    All models take turns on each image, so that a noisy machine is noisy for all of them.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
        banks = []
        for number, model in enumerate(models):
            bank = _ExportedBank(model, Path(folder) / f"{number}.onnx")
            stack.callback(bank.engine.close)
            time_calls(partial(bank.engine, images[0][None]), warm_up=WARM_UP, repeats=1)
            banks.append(bank)
        for index, image in enumerate(images):
            for bank in banks:
                bank.judge(image)
            progress("test images", index + 1, len(images))
        for model, bank in zip(models, banks, strict=True):
            rows.append(
                {
                    "rows": len(model.bank.vectors),
                    "image_auroc": round(auroc(labels, np.array(bank.scores)), 4),
                    "megabytes": bank.megabytes,
                    "engine": bank.engine.description,
                    **percentiles(bank.times),
                }
            )
    return rows


class _ExportedBank:
    """A model in the reference engine, with the score and the milliseconds of every call."""

    def __init__(self, model: PatchCore, path: Path) -> None:
        path.write_bytes(onnx_from_module(model.fused(), model.geometry))
        self.megabytes = round(path.stat().st_size / 1e6, 1)
        self.engine = open_reference(path, (model.geometry.height, model.geometry.width))
        self.scores: list[float] = []
        self.times: list[float] = []

    def judge(self, image: Image) -> None:
        def call() -> None:
            score, _ = self.engine(image[None])
            self.scores.append(float(score[0]))

        self.times += time_calls(call, warm_up=0, repeats=1)
