"""CutSwap: two salient patches of an image exchange their places.

Qin et al., "CutSwap: self-supervised anomaly detection by swapping salient patches". A saliency map
is divided into clusters of grey levels; two pixels of one cluster become the upper-left corners of
the patches. Neighbouring parts of an object are thus mixed, where CutPaste often changes nothing
but background.

The paper leaves sizes and angles open; they are those of CutPaste here. It makes a pair for each of
the five maps of an image; a draw here takes one of the maps at random, so that the three classes
have equally many images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image
from flawline.train.anomalies import Mask
from flawline.train.anomalies.clusters import cluster_levels
from flawline.train.anomalies.rectangles import (
    Position,
    Size,
    content,
    draw_patch_size,
    draw_position,
    draw_scar,
    jitter,
    moved_inside,
    overlap,
    paste_rotated,
    swap,
)
from flawline.train.anomalies.three_way import ThreeWay, Triple, results

# The saliency maps of an image, uint8 [levels, H, W], as the image of the data set has them.
Maps = Callable[[Image], npt.NDArray[np.uint8]]
# Two patches are drawn again, up to ATTEMPTS times, if they have more of their area in common.
LARGEST_OVERLAP = 0.5
ATTEMPTS = 50
CLUSTER_CHOICES = ("highest", "lowest", "random")
# Grey value of the lowest cluster, and by how much that of the highest is above it.
DARK = 40
RANGE = 150
# BGR, of the pixels that anchors are drawn of, and of the two patches.
BRIGHT = (60, 220, 250)
FIRST = (60, 60, 255)
SECOND = (255, 160, 40)


@dataclass(frozen=True)
class SwapSettings:
    """How the places of the patches are chosen; the defaults are the paper's best.

    clusters: number of clusters of a saliency map. cluster: which of them is used, `highest`,
    `lowest` or `random`. levels: indices of the saliency maps that are used. most_salient: use so
    many of the most salient pixels instead of a cluster; 0 for the cluster.
    """

    clusters: int = 4
    cluster: str = "highest"
    levels: tuple[int, ...] = (0, 1, 2, 3, 4)
    most_salient: int = 0


class Anchors(NamedTuple):
    """The corners of two patches as they were drawn, and the size of both."""

    first: Position
    second: Position
    size: Size

    def inside(self, shape: Size) -> tuple[Position, Position]:
        """Return the corners, moved so that both patches are inside the image."""
        first = moved_inside(self.first, self.size, shape)
        return first, moved_inside(self.second, self.size, shape)


def chosen_pixels(
    saliency: npt.NDArray[np.uint8], settings: SwapSettings, rng: np.random.Generator
) -> Mask:
    """Return the pixels of a saliency map [H, W] of which anchors are drawn: bool [H, W]."""
    if settings.most_salient:
        count = min(settings.most_salient, saliency.size)
        order = np.argsort(saliency.ravel(), kind="stable")[-count:]
        chosen = np.zeros(saliency.size, bool)
        chosen[order] = True
        return chosen.reshape(saliency.shape)
    labels = cluster_levels(saliency, settings.clusters)
    number = 0
    if settings.cluster == "highest":
        number = int(labels.max())
    elif settings.cluster == "random":
        number = int(rng.integers(0, int(labels.max()) + 1))
    return np.asarray(labels == number, bool)


def draw_anchors(pixels: Mask, size: Size, rng: np.random.Generator) -> Anchors:
    """Draw the corners of two patches of this size from pixels, bool [H, W], of an image.

    Where no draw gives two patches that are mostly apart, as with a cluster of few pixels, the
    second one may lie anywhere.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    rows, columns = np.nonzero(pixels)
    first = second = (0, 0)
    for attempt in range(2 * ATTEMPTS):
        index = rng.integers(0, len(rows), 2)
        first = (int(rows[index[0]]), int(columns[index[0]]))
        second = (int(rows[index[1]]), int(columns[index[1]]))
        if attempt >= ATTEMPTS:
            second = draw_position(shape, size, rng)
        anchors = Anchors(first, second, size)
        if overlap(*anchors.inside(shape), size) <= LARGEST_OVERLAP:
            break
    return anchors


class CutSwap(ThreeWay):
    """Two patches that have changed places, and two scars that have, each of them rotated."""

    def __init__(
        self,
        images: Sequence[Image],
        maps: Maps,
        settings: SwapSettings,
        seed: int,
        description: str = "CutSwap, patch and scar",
    ) -> None:
        super().__init__(images, seed)
        self.maps = maps
        self.settings = settings
        self.description = description

    def level(self, draw: int) -> int:
        """Return the index of the saliency map of a draw."""
        levels = self.settings.levels
        rng = np.random.default_rng([3, self.seed, draw])
        return levels[int(rng.integers(0, len(levels)))]

    def triple(self, draw: int) -> Triple:
        return self._made(draw)[0]

    def _made(self, draw: int) -> tuple[Triple, Mask, Anchors]:
        """Return the images of a draw, and the pixels and the anchors of the patches."""
        rng = self.rng(draw)
        image = self.image(draw)
        normal = jitter(image, rng)
        shape = (normal.shape[0], normal.shape[1])
        pixels = chosen_pixels(self.maps(image)[self.level(draw)], self.settings, rng)
        anchors = draw_anchors(pixels, draw_patch_size(shape, rng), rng)
        patch = swap(normal, *anchors.inside(shape), anchors.size)
        size, angle = draw_scar(shape, rng)
        scar = swap_rotated(normal, draw_anchors(pixels, size, rng), angle)
        return Triple(normal, patch, scar), pixels, anchors

    def stages(self, draw: int) -> dict[str, Image]:
        image = self.image(draw)
        maps = self.maps(image)
        triple, pixels, anchors = self._made(draw)
        pictures = {"image": image}
        for number in self.settings.levels:
            coloured = cv2.applyColorMap(maps[number], cv2.COLORMAP_VIRIDIS)
            pictures[f"map {number + 1}"] = np.asarray(coloured, np.uint8)
        level = self.level(draw)
        clusters = _drawn_clusters(maps[level], self.settings, pixels)
        cv2.putText(clusters, f"map {level + 1}", (4, 14), 0, 0.45, (255, 255, 255), 1, 16)
        pictures["clusters"] = clusters
        pictures["anchors"] = _drawn_anchors(triple.normal, anchors)
        return {**pictures, **results(triple)}


def swap_rotated(image: Image, anchors: Anchors, angle: float) -> Image:
    """Return the image with the contents of two rectangles exchanged, each rotated in degrees."""
    first, second = anchors.inside((image.shape[0], image.shape[1]))
    from_first = content(image, first, anchors.size)
    from_second = content(image, second, anchors.size)
    swapped = paste_rotated(image, from_first, angle, second)
    return paste_rotated(swapped, from_second, angle, first)


def _drawn_clusters(saliency: npt.NDArray[np.uint8], settings: SwapSettings, pixels: Mask) -> Image:
    """Draw the clusters in grey, from dark to bright, and the pixels that anchors are drawn of."""
    labels = cluster_levels(saliency, settings.clusters)
    share = labels / max(int(labels.max()), 1)
    grey = (DARK + RANGE * share).astype(np.uint8)
    picture = np.stack([grey, grey, grey], 2)
    picture[pixels] = BRIGHT
    return picture


def _drawn_anchors(image: Image, anchors: Anchors) -> Image:
    """Draw both patches as rectangles, and their anchors as they were drawn as dots."""
    picture: Image = image.copy()
    places = anchors.inside((image.shape[0], image.shape[1]))
    height, width = anchors.size
    drawn = zip((anchors.first, anchors.second), places, (FIRST, SECOND), strict=True)
    for (row, column), (top, left), colour in drawn:
        bottom_right = (left + width - 1, top + height - 1)
        cv2.rectangle(picture, (left, top), bottom_right, colour, 2)
        cv2.circle(picture, (column, row), 5, colour, -1)
    return picture
