"""The order in which flows over positions see the features of the good images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flawline.train.loop import Indices

# The levels [N, C, h, w] of some images, from the number of the pass and their indices.
LevelsOf = Callable[[int, Indices], Sequence[Tensor]]


@dataclass(frozen=True)
class PositionBatch:
    """What one step trains on: vectors of one level, and where they lie.

    level: index of the level. vectors: [n, C]. places: int64 [n], the position of each in its map,
    row by row.
    """

    level: int
    vectors: Tensor
    places: Tensor


@dataclass(frozen=True)
class PositionSchedule:
    """The steps of a training: passes over the images, and batches of images in a pass.

    Every batch of images is divided into steps, level by level. Images and positions that do not
    fill a batch or a step are left out; every pass has a new order.

    images: how many there are. batch: images of a batch, if there are so many. grids: height and
    width of the levels. positions: positions of a step, if a level has so many in a batch. equal:
    every level takes as many steps as the one with the fewest, on a part of its positions.
    """

    images: int
    batch: int
    grids: tuple[tuple[int, int], ...]
    positions: int
    equal: bool = False

    @property
    def batch_size(self) -> int:
        """Images of a batch."""
        return min(self.batch, self.images)

    @property
    def steps_per_level(self) -> tuple[int, ...]:
        """Steps of each level in a batch of images."""
        steps = []
        for height, width in self.grids:
            steps.append(max(1, self.batch_size * height * width // self.positions))
        if self.equal:
            return (min(steps),) * len(steps)
        return tuple(steps)

    @property
    def steps_per_pass(self) -> int:
        """Steps of a pass over all images."""
        return self.images // self.batch_size * sum(self.steps_per_level)

    def batches(self, levels_of: LevelsOf, seed: int, start: int) -> Iterator[PositionBatch]:
        """Yield the batches of a training from step `start` on, without end.

        They are a function of the seed and the number of the step.
        """
        number, done = divmod(start, self.steps_per_pass)
        first, done = divmod(done, sum(self.steps_per_level))
        while True:
            order = np.random.default_rng((seed, number)).permutation(self.images)
            for index in range(first, self.images // self.batch_size):
                chosen = np.sort(order[index * self.batch_size : (index + 1) * self.batch_size])
                batches = self._of_images(levels_of(number, chosen), (seed, number, index))
                for step, batch in enumerate(batches):
                    if step >= done:
                        yield batch
                done = 0
            number += 1
            first = 0

    def _of_images(
        self, levels: Sequence[Tensor], seed: tuple[int, int, int]
    ) -> Iterator[PositionBatch]:
        """Yield the batches of a batch of images from their levels [N, C, h, w]."""
        for level, features in enumerate(levels):
            vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
            order = np.random.default_rng((*seed, level)).permutation(len(vectors))
            height, width = self.grids[level]
            for step in range(self.steps_per_level[level]):
                chosen = order[step * self.positions : (step + 1) * self.positions]
                indices = torch.from_numpy(chosen).to(vectors.device)
                yield PositionBatch(level, vectors[indices], indices % (height * width))
