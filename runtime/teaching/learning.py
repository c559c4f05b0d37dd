"""From pictures of good parts to what a detector learns, and scores that set thresholds.

Which images set the thresholds is decided as in `train/training.py`: below a number of images, each
is scored by a further detector that was taught without its block; otherwise a fifth is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.good_images import GoodImages
from flawline.runtime.good_images.folds import divisions
from flawline.runtime.good_images.hold_out import hold_out, require_different_images
from flawline.runtime.good_images.out_of_fold import OutOfFold, independent_images, part_scores
from flawline.runtime.good_images.scores import GoodScores, note_copies
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.teaching.base import Learned, Teacher
from flawline.runtime.teaching.features import Features, FrameScores, Head, score_frames
from flawline.runtime.teaching.pictures import Pictures

if TYPE_CHECKING:
    # It needs onnx.
    from flawline.runtime.teaching.graph import TaughtGraph


@dataclass(frozen=True)
class Setup:
    """What teaches: a bundle with its graph and the teacher of its method.

    `threads` is the number of threads of ONNX Runtime; None uses the cores of this process.
    """

    bundle: Bundle
    graph: TaughtGraph
    teacher: Teacher
    threads: int | None

    @property
    def graph_input(self) -> GraphInput:
        """How a frame becomes the inputs of the graph."""
        return self.bundle.manifest.graph_input

    def head(self, learned: Learned, features: Features) -> Head:
        """Return the part of a graph that has learned something, for features of some pictures."""
        model = self.graph.head(learned.constants)
        return Head(model, features, learned, self.bundle.has_map, self.threads)

    def scores(self, learned: Learned, features: Features, frames: Sequence[int]) -> FrameScores:
        """Score some of the pictures by their features."""
        head = self.head(learned, features)
        return score_frames(head, features, frames, self.graph_input)


@dataclass(frozen=True)
class Taught:
    """What was learned, and from what.

    Attributes:
        learned: what goes into the graph.
        trained: the indices of the pictures that it was learned from.
        good: the scores of the images that set the thresholds.
    """

    learned: Learned
    trained: list[int]
    good: GoodScores

    @cached_property
    def folds(self) -> int:
        """The number of detectors that gave the scores; 0 for the taught one."""
        return self.good.folds


def teach_new(setup: Setup, pictures: Pictures, features: Features, folds: int) -> Taught:
    """Learn from pictures alone, whatever the bundle was trained on.

    `folds` is the number of blocks of which each is left out once; 0 holds out a fifth. Raises
    DataError if all pictures are equal, EngineError and TeachError.
    """
    require_different_images(pictures.contents)
    setup.teacher.study(features.values)
    if folds == 0:
        return _with_hold_out(setup, pictures, features)
    return _with_folds(setup, pictures, features, folds)


def teach_more(
    setup: Setup,
    false_rejects: Features,
    pictures: Pictures,
    features: Features,
    limit: int | None,
) -> Taught:
    """Add the features of false rejects to what the bundle has learned.

    `pictures`, with their `features`, are of other good parts, which set the thresholds; `limit` is
    that of `Teacher.append`. No picture is trained on. Raises EngineError and TeachError.
    """
    setup.teacher.study(false_rejects.values)
    learned = setup.teacher.append(limit)
    log(learned.note)
    chosen = _first_of_each(pictures.contents, range(len(pictures)))
    note_copies(len(pictures), len(chosen))
    found = setup.scores(learned, features, chosen)
    good = GoodScores(_chosen(pictures.paths, chosen), found.scores, found.peaks)
    return Taught(learned, [], good)


def _with_folds(setup: Setup, pictures: Pictures, features: Features, folds: int) -> Taught:
    everything = list(range(len(pictures)))
    learned = setup.teacher.learn(features.inputs_of(everything))
    log(learned.note)
    parts = []
    for division in divisions(pictures.paths, folds):
        kept = division.kept(len(pictures))
        others = len(division.left_out)
        log(f"{division.name}: learning from {len(kept)} pictures, to score the other {others}")
        part = setup.teacher.learn(features.inputs_of(kept))
        found = setup.scores(part, features, (*division.left_out, *division.seen))
        parts.append(part_scores(division, found.scores, found.peaks))
    *blocks, random = parts
    record = OutOfFold(tuple(pictures.contents), folds, tuple(blocks), random)
    chosen = independent_images(record)
    note_copies(len(pictures), len(chosen))
    paths = _chosen(pictures.paths, chosen)
    good = GoodScores(paths, record.scores()[chosen], record.peaks()[chosen], record)
    return Taught(learned, everything, good)


def _with_hold_out(setup: Setup, pictures: Pictures, features: Features) -> Taught:
    training, held_out = hold_out(pictures.paths)
    places = {path: place for place, path in enumerate(pictures.paths)}
    trained = [places[path] for path in training]
    learned = setup.teacher.learn(features.inputs_of(trained))
    log(learned.note)
    known = {pictures.contents[place] for place in trained}
    held = [places[path] for path in held_out]
    new = [place for place in held if pictures.contents[place] not in known]
    chosen = _first_of_each(pictures.contents, new)
    note_copies(len(held), len(chosen))
    found = setup.scores(learned, features, chosen)
    good = GoodScores(_chosen(pictures.paths, chosen), found.scores, found.peaks)
    return Taught(learned, trained, good)


def _first_of_each(contents: Sequence[str], places: Sequence[int]) -> list[int]:
    """Return those of the places whose content is at no earlier one of them."""
    seen: set[str] = set()
    first = []
    for place in places:
        if contents[place] not in seen:
            seen.add(contents[place])
            first.append(place)
    return first


def _chosen(paths: GoodImages, places: Sequence[int]) -> GoodImages:
    return GoodImages([paths[place] for place in places], paths.folders)
