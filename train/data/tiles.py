"""The tiles of images, as the images that a detector is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from flawline.runtime.image import Image
from flawline.runtime.tiles import TileGrid


class TileImages(Sequence[Image]):
    """Tiles of prepared images: uint8 [H, W, 3] BGR, those of one image after the other.

    `images` are uint8 [h, w, 3] of the grid. The image that was accessed last is kept, so that its
    tiles need one access. `chosen` are the numbers of the tiles; None takes all.
    """

    def __init__(
        self, images: Sequence[Image], grid: TileGrid, chosen: Sequence[int] | None = None
    ) -> None:
        self._images = images
        self._grid = grid
        self._chosen: Sequence[int] = range(len(images) * len(grid)) if chosen is None else chosen
        self._last: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> TileImages: ...

    def __getitem__(self, index: int | slice) -> Image | TileImages:
        """Return a new array that the caller owns; a slice shares the images."""
        if isinstance(index, slice):
            return TileImages(self._images, self._grid, self._chosen[index])
        number, tile = divmod(self._chosen[index], len(self._grid))
        last = self._last
        if last is None or last[0] != number:
            last = (number, self._images[number])
            self._last = last
        return np.array(self._grid.tile(last[1], tile))


def network_inputs(images: Sequence[Image], grid: TileGrid | None) -> Sequence[Image]:
    """Return all tiles of prepared images, or the images themselves without a grid.

    The tiles of an image follow each other. The next image begins one tile later, so that an even
    choice from the sequence, such as every second input, has tiles of all places.
    """
    if grid is None:
        return images
    chosen = []
    for number in range(len(images)):
        for step in range(len(grid)):
            chosen.append(number * len(grid) + (number + step) % len(grid))
    return TileImages(images, grid, chosen)
