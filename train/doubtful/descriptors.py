"""Descriptors of the places of an image, by which images are compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.runtime.tiles import TileGrid
from flawline.train.backbones.base import Backbone

# One place per so many pixels of the input, and at most so many places per side.
STRIDE = 16
MOST_PLACES = 32
# Values of a descriptor. Distances are kept approximately by a random projection (Johnson and
# Lindenstrauss).
VALUES = 128
# Images, evenly spaced, from which the scale of each level is estimated.
SCALE_IMAGES = 16

# float16 [places, images, VALUES]: a comparison takes the same place of all images.
Descriptors = npt.NDArray[np.float16]
# Called with how many images are done.
Report = Callable[[int], None]


class Describer:
    """Turns images into descriptors: the levels of a backbone on one grid, on a common scale.

    Each level is brought to the grid and divided by its norm; all of them together are centred and
    projected.

    frames: all images, uint8 [h, w, 3] BGR each. tiles: how each becomes inputs of the network;
    None for the image as it is.
    """

    def __init__(
        self, frames: Sequence[Image], backbone: Backbone, tiles: TileGrid | None = None
    ) -> None:
        self.frames = frames
        self.backbone = backbone
        self.tiles = tiles
        inputs = self.inputs(frames[0])
        height, width = inputs[0].shape[:2]
        # Rows and columns of places of an input; an image has one such grid after the other.
        self.grid = (_places(height), _places(width))
        self.places = len(inputs) * self.grid[0] * self.grid[1]
        self._scales: list[float] = []
        self._estimate()

    def describe(self, chosen: Sequence[int], report: Report) -> Descriptors:
        """Return the descriptors of the images with these indices.

        The places are those of the grid, row by row; with tiles, those of one after the other.
        """
        values = self._projection.shape[1]
        found = np.empty((self.places, len(chosen), values), np.float16)
        for done, number in enumerate(chosen):
            found[:, done] = self._described(self.frames[number])
            report(done + 1)
        return found

    def inputs(self, frame: Image) -> list[Image]:
        """Return the inputs of the network that a frame becomes: its tiles, or itself."""
        if self.tiles is None:
            return [frame]
        return [self.tiles.tile(frame, number) for number in range(len(self.tiles))]

    def _estimate(self) -> None:
        """Estimate the scale of each level, and the mean of all together."""
        images = len(self.frames)
        chosen = np.linspace(0, images - 1, min(SCALE_IMAGES, images)).astype(int)
        of_images = [self._levels(self.frames[number]) for number in chosen.tolist()]
        for level in zip(*of_images, strict=True):
            stacked = torch.cat(level)
            self._scales.append(float(stacked.square().sum(1).mean().sqrt()) or 1.0)
        joined = torch.cat([self._joined(levels) for levels in of_images])
        self._mean = joined.mean(0)
        values = joined.shape[1]
        self._projection = torch.eye(values)
        if values > VALUES:
            generator = torch.Generator().manual_seed(0)
            self._projection = torch.randn(values, VALUES, generator=generator) / VALUES**0.5

    def _described(self, frame: Image) -> npt.NDArray[np.float16]:
        """Return the descriptors of the places of a frame: float16 [places, VALUES]."""
        joined = self._joined(self._levels(frame)) - self._mean
        described: npt.NDArray[np.float16] = (joined @ self._projection).half().numpy()
        return described

    def _joined(self, levels: Sequence[Tensor]) -> Tensor:
        """Return levels [places, C] side by side, on a common scale."""
        scaled = []
        for level, scale in zip(levels, self._scales, strict=True):
            scaled.append(level / scale)
        return torch.cat(scaled, 1)

    @torch.inference_mode()
    def _levels(self, frame: Image) -> list[Tensor]:
        """Return the levels of a frame on the grid, [places, C] each."""
        levels: list[list[Tensor]] = []
        device = self.backbone.first_convolution.weight.device
        for image in self.inputs(frame):
            batch = torch.from_numpy(np.ascontiguousarray(image))[None].to(device)
            found = self.backbone.extract(batch)
            levels.append([_on_grid(level, self.grid) for level in found])
        # The places of all inputs in a row, for each level.
        return [torch.cat(of_inputs) for of_inputs in zip(*levels, strict=True)]


def _places(pixels: int) -> int:
    """Return how many places there are along a side of the input."""
    return min(MOST_PLACES, -(-pixels // STRIDE))


def _on_grid(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a level [1, C, h, w] to the grid: [places, C] on the CPU."""
    level = level.float()
    if level.shape[2] >= grid[0] and level.shape[3] >= grid[1]:
        resized = F.adaptive_avg_pool2d(level, grid)
    else:
        resized = F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
    return resized[0].flatten(1).T.cpu()
