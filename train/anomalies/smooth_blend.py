"""SmoothBlend: a small patch of the image, blended into another place of it with soft edges.

Zou et al., "SPot-the-Difference self-supervised pre-training for anomaly detection and
segmentation" (ECCV 2022). A patch is cut out, its colours are jittered, and it is blended at a
random place with a mask that a Gaussian smooths. The authors published no training code; ours are:
the jitter, which is CutPaste's; the width of the smoothing, a share of the patch's shorter side;
and that the patch is cut with a margin, so that the soft edges show its own surroundings and not
black.

A draw also has a second view of the whole image, which differs by its colours alone: it is neither
shifted nor scaled, so that positions can be compared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image
from flawline.train.anomalies import Mask
from flawline.train.anomalies.rectangles import (
    Position,
    Size,
    content,
    draw_patch_size,
    draw_position,
    jitter,
    paste,
)
from flawline.train.anomalies.series import ShuffledImages
from flawline.train.anomalies.sheet import outlined

Alpha = npt.NDArray[np.float32]

# Fraction of the image's area; the height over the width is CutPaste's, 0.3 to 3.3.
AREA = (0.005, 0.01)
# Standard deviation of the Gaussian over the patch's shorter side.
SMOOTHING = 0.15
# The Gaussian is cut off after so many standard deviations.
REACH = 2.0
# Alpha values above this one are a difference: less changes no pixel of 8 bits by half a step.
VISIBLE = 0.5 / 255


class Views(NamedTuple):
    """The images of a draw, uint8 [H, W, 3] each.

    normal, other: the image with two different jitters of its colours. blended: `normal` with a
    patch. alpha: the share of the patch in every pixel, float32 [H, W] from 0 to 1.
    """

    normal: Image
    other: Image
    blended: Image
    alpha: Alpha


class SmoothBlend(ShuffledImages):
    """A patch cut from the image, jittered, and blended elsewhere; a `SyntheticAnomalies`."""

    description = "SmoothBlend"

    def sources(self, draw: int) -> list[int]:
        """Return the indices of the images of a draw, which is one."""
        return [self.index(draw)]

    def views(self, draw: int) -> Views:
        """Return the images of a draw, all new arrays."""
        return self._made(draw)[0]

    def _made(self, draw: int) -> tuple[Views, Mask]:
        """Return the images of a draw, and where the patch was cut out, bool [H, W]."""
        rng = self.rng(draw)
        image = self.image(draw)
        normal = jitter(image, rng)
        other = jitter(image, rng)
        shape = (normal.shape[0], normal.shape[1])
        alpha = soft_patch(draw_patch_size(shape, rng, AREA), shape)
        size = (alpha.shape[0], alpha.shape[1])
        source = draw_position(shape, size, rng)
        place = draw_position(shape, size, rng)
        patch = jitter(content(normal, source, size), rng)
        blended = blend(normal, patch, alpha, place)
        views = Views(normal, other, blended, _placed(alpha, place, shape))
        return views, _placed(alpha, source, shape) > VISIBLE

    def sample(self, draw: int) -> tuple[Image, Image, Mask]:
        """Return the normal image, the blended one, and where they may differ, bool [H, W]."""
        views = self.views(draw)
        return views.normal, views.blended, views.alpha > VISIBLE

    def stages(self, draw: int) -> dict[str, Image]:
        """Return pictures of how a draw is made, uint8 [H, W, 3] each, by their labels."""
        views, source = self._made(draw)
        grey = np.rint(255 * views.alpha).astype(np.uint8)
        return {
            "image": self.image(draw),
            "normal": views.normal,
            "other view": views.other,
            "cut out": outlined(views.normal, source),
            "alpha": np.stack([grey, grey, grey], 2),
            "blended": views.blended,
            "mask": outlined(views.blended, views.alpha > VISIBLE),
        }


def soft_patch(size: Size, shape: Size) -> Alpha:
    """Return alpha of a patch of this size with its margin, float32 [h, w], within an image.

    It is 1/2 at the edges of the patch. shape: height and width of the image, in pixels.
    """
    sigma = SMOOTHING * min(size)
    margin = math.ceil(REACH * sigma)
    solid = np.pad(np.ones(size, np.float32), margin)
    kernel = 2 * margin + 1
    smooth = cv2.GaussianBlur(solid, (kernel, kernel), sigmaX=sigma, borderType=cv2.BORDER_CONSTANT)
    height, width = smooth.shape
    # Of a patch that is as large as the image, the middle is kept.
    top = max(0, (height - shape[0]) // 2)
    left = max(0, (width - shape[1]) // 2)
    return np.asarray(smooth[top : top + shape[0], left : left + shape[1]], np.float32)


def blend(image: Image, patch: Image, alpha: Alpha, position: Position) -> Image:
    """Return the image with a patch, uint8 [h, w, 3], blended with alpha [h, w] at a position."""
    below = content(image, position, (alpha.shape[0], alpha.shape[1])).astype(np.float32)
    share = alpha[..., None]
    mixed = below + share * (patch.astype(np.float32) - below)
    return paste(image, np.rint(mixed).astype(np.uint8), position)


def _placed(alpha: Alpha, position: Position, shape: Size) -> Alpha:
    """Return alpha [h, w] at a position of an image, float32 [H, W], with 0 elsewhere."""
    whole = np.zeros(shape, np.float32)
    rows = slice(position[0], position[0] + alpha.shape[0])
    columns = slice(position[1], position[1] + alpha.shape[1])
    whole[rows, columns] = alpha
    return whole
