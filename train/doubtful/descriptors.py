"""Descriptors of the places of an image, by which images are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.runtime.tiles import TileGrid
from flawline.train.backbones.base import Backbone
from flawline.train.progress import Progress

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


class Describer:
    """Turns frames into descriptors: the levels of a backbone on one grid, on a common scale.

    Each level is brought to the grid and divided by its norm; all of them together are centred and
    projected.
    """

    def __init__(self, backbone: Backbone, tiles: TileGrid | None = None) -> None:
        self.backbone = backbone
        self.tiles = tiles
        self._scales: list[float] = []
        self._mean = torch.zeros(0)
        self._projection = torch.zeros(0, 0)

    def describe(self, frames: Sequence[Image], progress: Progress) -> Descriptors:
        """Return the descriptors of frames, uint8 [h, w, 3] BGR each.

        The places are those of the grid, row by row; with tiles, those of one after the other.
        """
        self._estimate(frames)
        found: Descriptors | None = None
        for number in range(len(frames)):
            projected = self._described(frames[number])
            if found is None:
                found = np.empty((len(projected), len(frames), projected.shape[1]), np.float16)
            found[:, number] = projected
            progress("features", number + 1, len(frames))
        assert found is not None
        return found

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the grid of an input of this size."""
        rows = min(MOST_PLACES, -(-height // STRIDE))
        return rows, min(MOST_PLACES, -(-width // STRIDE))

    def inputs(self, frame: Image) -> list[Image]:
        """Return the inputs of the network that a frame becomes: its tiles, or itself."""
        if self.tiles is None:
            return [frame]
        return [self.tiles.tile(frame, number) for number in range(len(self.tiles))]

    def _estimate(self, frames: Sequence[Image]) -> None:
        """Estimate the scale of each level, and the mean of all together."""
        chosen = np.linspace(0, len(frames) - 1, min(SCALE_IMAGES, len(frames))).astype(int)
        of_images = [self._levels(frames[number]) for number in chosen.tolist()]
        self._scales = []
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
            grid = self.grid_of(*image.shape[:2])
            batch = torch.from_numpy(np.ascontiguousarray(image))[None].to(device)
            found = self.backbone.extract(batch)
            levels.append([_on_grid(level, grid) for level in found])
        # The places of all inputs in a row, for each level.
        return [torch.cat(of_inputs) for of_inputs in zip(*levels, strict=True)]


def _on_grid(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a level [1, C, h, w] to the grid: [places, C] on the CPU."""
    level = level.float()
    if level.shape[2] >= grid[0] and level.shape[3] >= grid[1]:
        resized = F.adaptive_avg_pool2d(level, grid)
    else:
        resized = F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
    return resized[0].flatten(1).T.cpu()
