"""The folds of good images: blocks of the sequence in which they were taken.

Each block in turn is left out of a training, and the detector of that training scores it. The
images of a block are neighbours in the sequence. Neighbours are often similar: two images of one
part, or parts of one hour. Random folds would leave such neighbours in the training, and their
scores would be lower than those of new parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline.cameras.listing import natural_key
from flawline.runtime.good_images import DataError
from flawline.runtime.good_images.hold_out import hold_out, require_enough

DEFAULT_FOLDS = 5
# From so many good images on, a fifth of them is enough to set a threshold of 1 %.
HOLD_OUT_FROM = 500
# Images at most on which the scales of two detectors are compared.
IMAGES_SEEN = 50


@dataclass(frozen=True)
class Division:
    """A part of the images that is left out of a training and scored, by its name.

    `left_out` and `seen` are indices of the images; those of `seen` are trained on and scored, too:
    see `PartScores`.
    """

    name: str
    left_out: tuple[int, ...]
    seen: tuple[int, ...]

    def kept(self, images: int) -> list[int]:
        """Return the indices of the images that are trained on, of so many in all."""
        left_out = set(self.left_out)
        return [index for index in range(images) if index not in left_out]


def choose_folds(requested: int | None, images: int) -> int:
    """Return the number of folds for so many good images; 0 means a hold-out.

    requested: the number that the user gave; None for 5 folds below 500 images and a hold-out from
    there on. Raises DataError where there are too few images.
    """
    require_enough(images)
    if requested is None:
        if images < HOLD_OUT_FROM:
            return DEFAULT_FOLDS
        return 0
    if requested > images:
        raise DataError(
            f"--folds {requested} needs {requested} good images, there are {images}; give a "
            f"smaller number, or --folds 0 to hold out a fifth"
        )
    return requested


def sequence_order(paths: Sequence[Path]) -> list[int]:
    """Return the indices of images in the order of their folders, and of their names in each.

    Numbers within names are compared by their value, so that part9 comes before part10.
    """
    keys = []
    for path in paths:
        keys.append((natural_key(str(path.parent)), natural_key(path.name), str(path)))
    return sorted(range(len(paths)), key=keys.__getitem__)


def blocks(paths: Sequence[Path], folds: int) -> list[list[int]]:
    """Divide images into blocks that are contiguous in their sequence.

    Returns the indices of `paths` in each block, in the order of the sequence. The sizes of the
    blocks differ by one at most. The division depends on the names alone.
    """
    order = np.array(sequence_order(paths))
    return [block.tolist() for block in np.array_split(order, folds)]


def random_fifth(paths: Sequence[Path]) -> list[int]:
    """Return the indices of the images that `hold_out` would hold out."""
    _, held_out = hold_out(paths)
    chosen = set(held_out)
    return [index for index, path in enumerate(paths) if path in chosen]


def divisions(paths: Sequence[Path], folds: int) -> list[Division]:
    """Return what is left out of each further training: each block, then a fifth for comparison.

    The list is empty if `folds` is 0.
    """
    if folds == 0:
        return []
    named = []
    for number, block in enumerate(blocks(paths, folds), 1):
        named.append((f"fold {number} of {folds}", block))
    chosen = random_fifth(paths)
    named.append(("comparison with a random fifth", chosen))
    others = [index for index in range(len(paths)) if index not in set(chosen)]
    common = others[:: math.ceil(len(others) / IMAGES_SEEN)]
    parts = []
    for name, left_out in named:
        seen = tuple(index for index in common if index not in left_out)
        parts.append(Division(name, tuple(left_out), seen))
    return parts
