"""Series of normal images with two kinds of synthetic partners, for a classifier of three classes.

`CutPaste` is the series of Li et al. (CVPR 2021): a patch of the image, pasted elsewhere, and a
thin rotated scar. `train/anomalies/cut_swap.py` has that of CutSwap.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flawline.runtime.image import Image
from flawline.train.anomalies import Mask
from flawline.train.anomalies.rectangles import (
    content,
    draw_patch_size,
    draw_position,
    draw_scar,
    jitter,
    paste,
    paste_rotated,
    rotated,
)
from flawline.train.anomalies.series import ShuffledImages
from flawline.train.anomalies.sheet import outlined

# The classes, in the order of their labels.
NORMAL, PATCH, SCAR = range(3)


class Triple(NamedTuple):
    """A normal image and its two synthetic partners, uint8 [H, W, 3] each."""

    normal: Image
    patch: Image
    scar: Image


class ThreeWay(ShuffledImages, abc.ABC):
    """An endless series of triples; a `SyntheticAnomalies`."""

    description = ""

    def sources(self, draw: int) -> list[int]:
        """Return the indices of the images of a draw, which is one."""
        return [self.index(draw)]

    @abc.abstractmethod
    def triple(self, draw: int) -> Triple:
        """Return the images of a draw, all new arrays."""

    def sample(self, draw: int) -> tuple[Image, Image, Mask]:
        """Return the normal image, the one with a patch, and where they differ, bool [H, W]."""
        normal, patch, _ = self.triple(draw)
        return normal, patch, difference(normal, patch)

    def labelled(self, draws: Sequence[int]) -> tuple[list[Image], list[int]]:
        """Return the images of some draws and their labels.

        A synthetic image that equals its normal one, as on a plain background, is left out.
        """
        images: list[Image] = []
        labels: list[int] = []
        for draw in draws:
            triple = self.triple(draw)
            for label, image in enumerate(triple):
                if label == NORMAL or difference(triple.normal, image).any():
                    images.append(image)
                    labels.append(label)
        return images, labels

    def stages(self, draw: int) -> dict[str, Image]:
        """Return pictures of how a draw is made, uint8 [H, W, 3] each, by their labels."""
        triple = self.triple(draw)
        return {"image": self.image(draw), **results(triple)}


def difference(first: Image, second: Image) -> Mask:
    """Return where two images, uint8 [H, W, 3], differ: bool [H, W]."""
    return np.asarray((first != second).any(2), bool)


def results(triple: Triple) -> dict[str, Image]:
    """Return the triple as pictures, the synthetic images also with outlines."""
    normal, patch, scar = triple
    return {
        "normal": normal,
        "patch": patch,
        "patch mask": outlined(patch, difference(normal, patch)),
        "scar": scar,
        "scar mask": outlined(scar, difference(normal, scar)),
    }


class CutPaste(ThreeWay):
    """A patch cut from the image, jittered and pasted elsewhere, and a jittered, rotated scar."""

    description = "CutPaste, patch and scar"

    def triple(self, draw: int) -> Triple:
        rng = self.rng(draw)
        normal = jitter(self.image(draw), rng)
        shape = (normal.shape[0], normal.shape[1])
        size = draw_patch_size(shape, rng)
        cut = content(normal, draw_position(shape, size, rng), size)
        patch = paste(normal, jitter(cut, rng), draw_position(shape, size, rng))
        size, angle = draw_scar(shape, rng)
        cut = jitter(content(normal, draw_position(shape, size, rng), size), rng)
        turned, _ = rotated(cut, angle)
        bounds = (min(turned.shape[0], shape[0]), min(turned.shape[1], shape[1]))
        scar = paste_rotated(normal, cut, angle, draw_position(shape, bounds, rng))
        return Triple(normal, patch, scar)
