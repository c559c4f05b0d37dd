"""Thresholds from a few good images: out-of-fold scores against a hold-out, on the other images.

Each draw takes some images of a pool at random. The detector that is trained on all of them gets
its threshold from out-of-fold scores, by the code of `train.fit`; another one is trained on four
fifths of them and gets its threshold from the held-out fifth. The rest of the pool shows which
rates of false alarms the two thresholds have.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flawline.runtime.calibration import Calibration
from flawline.runtime.good_images.folds import DEFAULT_FOLDS, random_fifth
from flawline.runtime.good_images.out_of_fold import OutOfFold
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image, prepare
from flawline.runtime.manifest import Spread
from flawline.runtime.threshold import CalibrationError, set_threshold
from flawline.runtime.tolerances import tolerance_of
from flawline.train.data import PreparedImages, data_name, open_data
from flawline.train.data.demo import PRODUCTS
from flawline.train.data.demo.products import render
from flawline.train.data.split import list_hash
from flawline.train.fold_training import ChosenImages, FoldTraining, SharedFeatures, plan_parts
from flawline.train.method import Fit, Method
from flawline.train.progress import Progress
from flawline.train.recipe import Recipe

Scores = NDArray[np.float64]

DEMO = "demo"
DEMO_POOL = 160  # images of each product
DEMO_SIZE = 256  # pixels
BATCH = 20  # images that are scored together


@dataclass(frozen=True)
class Pool:
    """Good images of one kind of part, uint8 [H, W, 3] each, and their files or names."""

    name: str
    paths: list[Path]
    images: list[Image]


@dataclass
class Simulation:
    """Draws from one pool with one recipe.

    count: images of a draw. tested: images at most that test a threshold.
    """

    recipe: Recipe
    pool: Pool
    count: int
    tested: int
    features: SharedFeatures = field(default_factory=SharedFeatures)

    def __post_init__(self) -> None:
        if len(self.pool.images) <= self.count:
            raise CalibrationError(
                f"{self.pool.name}: {len(self.pool.images)} good images leave none to test on; "
                f"give more, or a smaller --count"
            )
        self._untrained = self.recipe.method_class(self.recipe.settings)
        self._untrained.load_weights(self.recipe.weights, self.recipe.seed, self.pool.images)
        # Every image once, so that batches of them are in the memory.
        model = self._new_model()
        for image in self.pool.images:
            for backbone in model.backbones().values():
                with torch.inference_mode():
                    backbone.extract(torch.from_numpy(image)[None])

    def draw(self, number: int) -> dict[str, Any]:
        """Return the row of one draw, which its number alone determines."""
        rng = np.random.default_rng(number)
        order = rng.permutation(len(self.pool.images)).tolist()
        # In the order of the pool, because folds are blocks of it.
        drawn = sorted(order[: self.count])
        others = ChosenImages(self.pool.images, order[self.count :][: self.tested])
        paths = [self.pool.paths[index] for index in drawn]
        images = ChosenImages(self.pool.images, drawn)
        out_of_fold = self._out_of_fold(paths, images)
        held_out = random_fifth(paths)
        kept = [index for index in range(len(paths)) if index not in set(held_out)]
        partly = self._trained(ChosenImages(images, kept))
        on_all = _scores(self._trained(images), others)
        on_part = _scores(partly, others)
        threshold = _calibrate(out_of_fold, DEFAULT_FOLDS)
        split = _calibrate(_scores(partly, ChosenImages(images, held_out)), 0)
        equal = _calibrate(out_of_fold, DEFAULT_FOLDS, split.false_alarm_rate)
        return {
            "draw": number,
            "tested": len(others),
            "out_of_fold": _outcome(threshold, on_all),
            "equal_rate": _outcome(equal, on_all),
            "hold_out": _outcome(split, on_part),
        }

    def _out_of_fold(self, paths: Sequence[Path], images: Sequence[Image]) -> Scores:
        record = OutOfFold(tuple(str(path) for path in paths), DEFAULT_FOLDS)
        kept: list[OutOfFold] = []
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            training = FoldTraining(
                recipe=self.recipe,
                model=self._untrained,
                device=self._untrained.device,
                images=images,
                graph_input=GraphInput(self.recipe.settings.geometry),
                features=self.features,
                unfinished=Path(folder) / "fold.pt",
                provenance={},
                report=lambda line: None,
            )
            # The last part compares the blocks with a random fifth, and sets no threshold.
            parts = plan_parts(self.recipe, paths, DEFAULT_FOLDS)[:-1]
            parts = [replace(part, division=replace(part.division, seen=())) for part in parts]
            training.run(parts, record, kept.append)
        return kept[-1].scores()

    def _trained(self, images: Sequence[Image]) -> Method:
        model = self._new_model()
        used = model.images_used(self.recipe.settings, len(images))
        steps = self.recipe.length(used) or 1
        model.fit(Fit(images, steps, self.recipe.seed))
        return model.eval()

    def _new_model(self) -> Method:
        """Return a model before its training; all have the backbones of the first."""
        model = copy.deepcopy(self._untrained)
        self.features.attach(model)
        return model


def open_pools(data: str, recipe: Recipe, progress: Progress) -> list[Pool]:
    """Return the good images of a data set, of training and test, as one pool.

    `demo` gives one pool for each product of the demo data. Raises DataError.
    """
    geometry = recipe.settings.geometry
    pools = []
    if data == DEMO:
        for product in PRODUCTS:
            images = []
            paths = []
            for seed in range(DEMO_POOL):
                image, _ = render(product, None, seed, DEMO_SIZE)
                images.append(prepare(image, geometry))
                paths.append(Path(product) / f"{seed:03d}.png")
                progress(f"{DEMO} {product}", seed + 1, DEMO_POOL)
            pools.append(Pool(f"{DEMO} {product}", paths, images))
        return pools
    files = _good_files(data)
    prepared = PreparedImages(files, geometry, recipe.bit_depth)
    images = [prepared[index] for index in range(len(files))]
    return [Pool(data_name(Path(data)), files, images)]


def _good_files(data: str) -> list[Path]:
    """Return the good images of a data set, of training and test. Raises DataError."""
    data_set = open_data(data)
    files = list(data_set.train_good)
    for sample in data_set.test:
        if sample.defect is None:
            files.append(sample.path)
    return files


@torch.inference_mode()
def _scores(model: Method, images: Sequence[Image]) -> Scores:
    scores = []
    for start in range(0, len(images), BATCH):
        batch = np.stack(images[start : start + BATCH])
        scores.append(model(torch.from_numpy(batch))[0].numpy())
    return np.concatenate(scores).astype(np.float64)


def _calibrate(scores: Scores, folds: int, rate: float | None = None) -> Calibration:
    tolerance = tolerance_of(Spread.of(scores))
    return set_threshold(scores, rate, tolerance, folds=folds)


def _outcome(calibration: Calibration, scores: Scores) -> dict[str, float]:
    """Return what a threshold states, and its rate among scores [n] of other good images."""
    low, high = calibration.interval
    return {
        "stated": calibration.false_alarm_rate,
        "low": low,
        "high": high,
        "realised": round(float((scores > calibration.threshold).mean()), 5),
    }


def facts_of(recipe: Recipe, data: str, count: int, tested: int) -> dict[str, Any]:
    """Return what the rows of all draws have in common. Raises DataError."""
    images = DEMO if data == DEMO else list_hash(_good_files(data))
    return {
        "method": recipe.method,
        "set": data if data == DEMO else data_name(Path(data)),
        "weights": Path(recipe.weights).name,
        "size": recipe.settings.geometry.height,
        "steps": recipe.length(count),
        "count": count,
        "tested_at_most": tested,
        "images_sha256": images,
    }


def draw_rows(
    recipe: Recipe, data: str, numbers: Sequence[int], count: int, tested: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Yield the rows of some draws of a data set, or of the demo data, whose products share them.

    recipe: its data set is not used. data: a folder, or `demo`. count, tested: as in `Simulation`.
    Raises DataError, TrainError and CalibrationError.
    """
    pools = open_pools(data, recipe, progress)
    simulations = [Simulation(recipe, pool, count, tested) for pool in pools]
    facts = facts_of(recipe, data, count, tested)
    for done, number in enumerate(numbers, 1):
        yield {**facts, **simulations[number % len(simulations)].draw(number)}
        progress(f"{recipe.method} {facts['set']}", done, len(numbers))
