"""Out-of-fold scores: every good image is scored by a detector that was trained without it.

The deployed detector is trained on all good images. Its own scores of them would be too low to set
a threshold, so further detectors are trained with the same settings, each without one block of the
images, and score that block. This is cross-conformal prediction (Vovk, "Cross-conformal
predictors", 2015) with one simplification: a new part is scored by the deployed detector and not
by those of the folds. See `flawline.runtime.threshold` for what that guarantees.

Scores of all folds are pooled as they are. Detectors of separate trainings differ a little in
offset, and the scores could be mapped by those of images that both have seen. That was measured
(60 images of mvtec_bottle at 128 px, 40 draws, stated rate 1.6 %): PatchCore's mean rate rose from
0.6 to 1.9 %, because its scores of images in the bank depend on how many there are; PaDiM's changed
from 1.2 to 1.0 %. On elpv_mono no mapping was better either, nor for SimpleNet (6 draws).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.good_images.folds import Division

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PartScores:
    """Scores of some good images from a detector that was trained on the others.

    images: their indices in the list of all good images.
    scores, peaks: their scores, and the largest values of their maps, 0 in a method without map.
    seen, seen_scores: indices and scores of some images that the detector was trained on, by which
        the scales of two detectors are compared.
    """

    images: tuple[int, ...]
    scores: tuple[float, ...]
    peaks: tuple[float, ...]
    seen: tuple[int, ...] = ()
    seen_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class OutOfFold:
    """The out-of-fold scores of a training; more are added while its folds are trained.

    images: content hashes of all n good images, in the order of the data set.
    count: the number of folds.
    folds: the scores of the blocks that are done, in the order of the blocks.
    random: scores of a fifth that was drawn at random, for comparison with those of the blocks;
        None before they are there.
    """

    images: tuple[str, ...]
    count: int
    folds: tuple[PartScores, ...] = ()
    random: PartScores | None = None

    @property
    def parts_done(self) -> int:
        """How many of the trainings are done: one for each fold, and the comparison."""
        return len(self.folds) + (self.random is not None)

    @property
    def complete(self) -> bool:
        """Whether every image has its score and the comparison is done."""
        return self.parts_done == self.count + 1

    def scores(self) -> Array:
        """Return the scores [n] of all images in the order of `images`; all folds must be done."""
        return self._in_order([part.scores for part in self.folds])

    def peaks(self) -> Array:
        """Return the largest map values [n] of all images in the order of `images`."""
        return self._in_order([part.peaks for part in self.folds])

    def pairs(self) -> tuple[Array, Array]:
        """Return the scores [k] of the random fifth, and those of the same images in their blocks.

        Both come from detectors that did not see the image. The second kind of detector did not see
        its neighbours in the sequence either. Detectors of separate trainings can differ by an
        offset, which is estimated from images that both have seen, and subtracted.
        """
        assert self.random is not None
        from_random = dict(zip(self.random.images, self.random.scores, strict=True))
        from_blocks = {}
        for part in self.folds:
            offset = _offset(part, self.random)
            for image, score in zip(part.images, part.scores, strict=True):
                from_blocks[image] = score - offset
        chosen = self.random.images
        return (
            np.array([from_random[image] for image in chosen]),
            np.array([from_blocks[image] for image in chosen]),
        )

    def _in_order(self, values: Sequence[Sequence[float]]) -> Array:
        ordered = np.full(len(self.images), np.nan)
        for part, block in zip(self.folds, values, strict=True):
            ordered[list(part.images)] = block
        return ordered


def part_scores(
    division: Division, scores: npt.NDArray[Any], peaks: npt.NDArray[Any]
) -> PartScores:
    """Return the record of a part, from the results for its images left out and then those seen."""
    count = len(division.left_out)
    return PartScores(
        images=division.left_out,
        scores=tuple(scores[:count].tolist()),
        peaks=tuple(peaks[:count].tolist()),
        seen=division.seen,
        seen_scores=tuple(scores[count:].tolist()),
    )


def _offset(part: PartScores, other: PartScores) -> float:
    """Return by how much a detector's scores are higher than another's on images both have seen."""
    known = dict(zip(other.seen, other.seen_scores, strict=True))
    differences = []
    for image, score in zip(part.seen, part.seen_scores, strict=True):
        if image in known:
            differences.append(score - known[image])
    if not differences:
        return 0.0
    return float(np.median(differences))


def independent_images(record: OutOfFold) -> list[int]:
    """Return the indices of images that were not seen in training; see `independent_of`."""
    return independent_of(record.images, [part.images for part in record.folds])


def independent_of(images: Sequence[str], folds: Sequence[Sequence[int]]) -> list[int]:
    """Return the indices of images that are not seen in training, each content once.

    An image with a copy in another fold is seen by the detector that scores it, and copies within
    a fold say no more than one of them. `images` are content hashes, and `folds` has the indices of
    each block.
    """
    folds_of: dict[str, set[int]] = {}
    for number, block in enumerate(folds):
        for image in block:
            folds_of.setdefault(images[image], set()).add(number)
    chosen = []
    counted: set[str] = set()
    for index, content in enumerate(images):
        if len(folds_of[content]) == 1 and content not in counted:
            counted.add(content)
            chosen.append(index)
    return chosen


def match_images(known: Sequence[str], found: Sequence[str]) -> list[int] | None:
    """Return for each of `found` its index in `known`; None if the two are not the same images.

    Both are content hashes. A hash may occur several times, for copies of one image.
    """
    if sorted(known) != sorted(found):
        return None
    places: dict[str, list[int]] = {}
    for index, image in enumerate(known):
        places.setdefault(image, []).append(index)
    return [places[image].pop(0) for image in found]


def out_of_fold_to_json(record: OutOfFold | None) -> dict[str, Any] | None:
    """Return the content of `out_of_fold` in a checkpoint."""
    if record is None:
        return None
    return {
        "images": list(record.images),
        "count": record.count,
        "folds": [_part_to_json(part) for part in record.folds],
        "random": None if record.random is None else _part_to_json(record.random),
    }


def out_of_fold_from_json(content: Mapping[str, Any] | None) -> OutOfFold | None:
    """Read what `out_of_fold_to_json` returned. Raises KeyError or TypeError for other content."""
    if content is None:
        return None
    random = content["random"]
    return OutOfFold(
        images=tuple(content["images"]),
        count=content["count"],
        folds=tuple(_part_from_json(part) for part in content["folds"]),
        random=None if random is None else _part_from_json(random),
    )


def _part_to_json(part: PartScores) -> dict[str, Any]:
    return {name: list(values) for name, values in asdict(part).items()}


def _part_from_json(content: Mapping[str, Any]) -> PartScores:
    return PartScores(**{name: tuple(values) for name, values in content.items()})
