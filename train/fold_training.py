"""Trains the detectors that give the out-of-fold scores; finished ones are never trained twice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch

from flawline.runtime.console import log
from flawline.runtime.image import Image
from flawline.train.backbones.memory import FeatureMemory
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.data.folds import blocks, random_fifth
from flawline.train.method import Fit, Method, evaluate
from flawline.train.out_of_fold import OutOfFold, PartScores
from flawline.train.progress import Progress
from flawline.train.recipe import Recipe

PART = "part"  # in the provenance of the unfinished training of a fold


class ChosenImages(Sequence[Image]):
    """Some of a sequence of images, uint8 [H, W, 3], by their indices."""

    def __init__(self, images: Sequence[Image], chosen: Sequence[int]) -> None:
        self._images = images
        self._chosen = list(chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> ChosenImages: ...

    def __getitem__(self, index: int | slice) -> Image | ChosenImages:
        if isinstance(index, slice):
            return ChosenImages(self._images, self._chosen[index])
        return self._images[self._chosen[index]]


@dataclass(frozen=True)
class Part:
    """One further training: its name, the images that it leaves out and scores, and its steps."""

    name: str
    left_out: tuple[int, ...]
    steps: int


def plan_parts(recipe: Recipe, paths: Sequence[Path], folds: int) -> list[Part]:
    """Return the trainings without each block of the images, then the one for comparison.

    The list is empty if `folds` is 0.
    """
    if folds == 0:
        return []
    divisions = []
    for number, block in enumerate(blocks(paths, folds), 1):
        divisions.append((f"fold {number} of {folds}", block))
    divisions.append(("comparison with a random fifth", random_fifth(paths)))
    parts = []
    for name, left_out in divisions:
        settings = recipe.settings
        used = recipe.method_class.images_used(settings, len(paths) - len(left_out))
        parts.append(Part(name, tuple(left_out), recipe.length(used) or 1))
    return parts


@dataclass
class SharedFeatures:
    """The features of frozen backbones, which are the same in every training of one recipe."""

    memories: dict[str, FeatureMemory] = field(default_factory=dict)

    def attach(self, model: Method) -> None:
        """Let the backbones of a model read and fill the memories."""
        for name, backbone in model.backbones().items():
            backbone.memory = self.memories.setdefault(name, FeatureMemory())


@dataclass
class FoldTraining:
    """Trains the parts of a recipe, one after the other.

    recipe, model: the recipe, and the detector on all images, whose backbones the others copy.
    device: what to train on.
    images: all good images, uint8 [H, W, 3] each.
    features: shared by all models.
    unfinished: where the part is saved that is being trained.
    provenance: of the whole training; an unfinished part of another one is not continued.
    deadline: as in `Fit`. A part without steps is never divided by it.
    progress: is called with the name of the part in front of the kind of work.
    """

    recipe: Recipe
    model: Method
    device: torch.device
    images: Sequence[Image]
    features: SharedFeatures
    unfinished: Path
    provenance: dict[str, str]
    deadline: float = math.inf
    progress: Progress = lambda label, done, total: None

    def run(
        self, parts: Sequence[Part], record: OutOfFold, save: Callable[[OutOfFold], None]
    ) -> int:
        """Train the parts that `record` lacks; return the steps of one that was not finished.

        `save` is called with the new record after every part. The steps are 0 if all parts were
        trained, or if time ran out between two of them.
        """
        finished = record.parts_done
        for number in range(finished, len(parts)):
            if number > finished and time.monotonic() > self.deadline:
                return 0
            scores, done = self._train(parts[number])
            if scores is None:
                return done
            if number < record.count:
                record = replace(record, folds=(*record.folds, scores))
            else:
                record = replace(record, random=scores)
            save(record)
            self.unfinished.unlink(missing_ok=True)
        return 0

    def _train(self, part: Part) -> tuple[PartScores | None, int]:
        """Return the scores of a part, or None if time ran out, and the steps done."""
        left_out = set(part.left_out)
        kept = [index for index in range(len(self.images)) if index not in left_out]
        log(f"{part.name}: training on {len(kept)} good images, to score the other {len(left_out)}")
        provenance = {**self.provenance, PART: part.name}
        model, state = self._begin(provenance)
        self.features.attach(model)
        deadline = self.deadline
        if self.recipe.length(1) is None:
            deadline = math.inf

        def save(state: dict[str, Any]) -> None:
            save_checkpoint(self.unfinished, model, provenance, state)

        def progress(label: str, done: int, total: int) -> None:
            self.progress(f"{part.name}: {label}", done, total)

        images = ChosenImages(self.images, kept)
        fit = Fit(images, part.steps, self.recipe.seed, deadline, progress, save, state)
        done = model.fit(fit)
        if done < part.steps or fit.missing(model.phases):
            return None, done
        left_out_images = ChosenImages(self.images, part.left_out)
        scores, maps = evaluate(model.eval(), left_out_images, progress, "scores")
        peaks = maps.reshape(len(maps), -1).max(1)
        return PartScores(part.left_out, tuple(scores.tolist()), tuple(peaks.tolist())), done

    def _begin(self, provenance: dict[str, str]) -> tuple[Method, dict[str, Any] | None]:
        """Return a new model, or that of the unfinished part, with its training state."""
        if self.unfinished.exists():
            saved = load_checkpoint(self.unfinished)
            same = saved.method.settings == self.recipe.settings
            if same and saved.provenance == provenance:
                return saved.method.to(self.device), saved.training
        model = self.recipe.method_class(self.recipe.settings)
        for name, backbone in model.backbones().items():
            backbone.load_state_dict(self.model.backbones()[name].state_dict())
        return model.to(self.device), None
