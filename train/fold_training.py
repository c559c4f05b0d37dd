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
from flawline.runtime.good_images.folds import Division, divisions
from flawline.runtime.good_images.out_of_fold import OutOfFold, PartScores, part_scores
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image
from flawline.train.backbones.memory import FeatureMemory
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.data.tiles import network_inputs
from flawline.train.judging import evaluate_frames
from flawline.train.method import Fit, Method
from flawline.train.progress import Progress, Remark, no_progress, no_remark
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
    """One further training: the images that it leaves out and scores, and its steps."""

    division: Division
    steps: int

    @property
    def name(self) -> str:
        """How messages and the provenance of an unfinished training call it."""
        return self.division.name


def plan_parts(
    recipe: Recipe, paths: Sequence[Path], folds: int, inputs_per_image: int = 1
) -> list[Part]:
    """Return the trainings without each block of the images, then the one for comparison.

    The list is empty if `folds` is 0. Each image becomes `inputs_per_image` inputs of the network.
    """
    parts = []
    for division in divisions(paths, folds):
        inputs = inputs_per_image * (len(paths) - len(division.left_out))
        used = recipe.method_class.images_used(recipe.settings, inputs)
        parts.append(Part(division, recipe.length(used) or 1))
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
    images: all good images, uint8 [h, w, 3] each, prepared to the frame's geometry.
    graph_input: how they become inputs of the network, and what of their maps is inspected.
    features: shared by all models.
    unfinished: where the part is saved that is being trained.
    provenance: of the whole training; an unfinished part of another one is not continued.
    deadline: as in `Fit`. A part without steps is never divided by it.
    progress: is called with the name of the part in front of the kind of work.
    report: is called with a line at the begin of each part.
    remark: as in `Fit`.
    """

    recipe: Recipe
    model: Method
    device: torch.device
    images: Sequence[Image]
    graph_input: GraphInput
    features: SharedFeatures
    unfinished: Path
    provenance: dict[str, str]
    deadline: float = math.inf
    progress: Progress = no_progress
    report: Callable[[str], None] = log
    remark: Remark = no_remark

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
        kept = part.division.kept(len(self.images))
        others = len(part.division.left_out)
        self.report(
            f"{part.name}: training on {len(kept)} good images, to score the other {others}"
        )
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

        images = network_inputs(ChosenImages(self.images, kept), self.graph_input.grid)
        seed = self.recipe.seed
        fit = Fit(images, part.steps, seed, deadline, progress, save, state, self.remark)
        done = model.fit(fit)
        if done < part.steps or fit.missing(model.phases):
            return None, done
        return self._score(model.eval(), part, progress), done

    def _score(self, model: Method, part: Part, progress: Progress) -> PartScores:
        division = part.division
        chosen = (*division.left_out, *division.seen)
        images = ChosenImages(self.images, chosen)
        scores, peaks = evaluate_frames(model, images, self.graph_input, progress, "scores")
        return part_scores(division, scores, peaks)

    def _begin(self, provenance: dict[str, str]) -> tuple[Method, dict[str, Any] | None]:
        """Return a new model, or that of the unfinished part, with its training state."""
        if self.unfinished.exists():
            saved = load_checkpoint(self.unfinished)
            same = saved.method.settings == self.recipe.settings
            if same and saved.provenance == provenance:
                return saved.method.to(self.device), saved.training
        model = self.recipe.method_class(self.recipe.settings)
        model.start_like(self.model)
        return model.to(self.device), None
