"""How well the other images of a data set support an image, and which ones are doubtful.

Each place of an image is compared with the same place, and those next to it, of the other images;
with all their places if parts do not lie still. Its distance is the one to the image that is the
SUPPORTERS-th nearest there, so that two images with the same defect do not support each other. An
image is as doubtful as its most distant places are.

The distribution of good images is not known, because some of the images are not good. So the limit
lies LIMIT robust standard deviations above the median of the logarithmic distances; median and MAD
are changed little by a minority, however far away it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.train.doubtful.descriptors import Descriptors
from flawline.train.progress import Progress

# What an image needs to be supported in a place: so many others that are as near.
SUPPORTERS = 2
# Places to each side that are compared where parts lie still, not to the pixel.
WINDOW = 1
# Parts lie still if the nearest place in the window is about as near as the nearest of all. This
# ratio is 1.00 on the bottle, 1.01 on ELPV cells and 1.07 on a texture.
LARGEST_RATIO = 1.12
# Images, evenly spaced, by which that is decided.
RATIO_IMAGES = 16
# The most distant places, whose mean distance is that of the image.
WORST_PLACES = 8
# Images, evenly spaced, that all are compared with at most, so that the time does not grow with the
# square of their number; in a window, and at all places.
MOST_REFERENCES = 512
MOST_REFERENCES_EVERYWHERE = 96
# Robust standard deviations above the median. See `benchmarks.studies.doubtful`.
LIMIT = 1.4
# Of the logarithmic distances: below it, the images differ by little more than their noise.
SMALLEST_SPREAD = 0.02
# The standard deviation of a normal distribution, relative to its median absolute deviation.
NORMAL_MAD = 1.4826
# Fewer images say nothing about what is usual.
FEWEST_IMAGES = 10
# Images whose distances are computed together.
CHUNK = 512

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Support:
    """How far the images of a data set are from the others.

    distances: float32 [images, places]. deviations: float64 [images], robust standard deviations
    above the median of all images; an image is doubtful above LIMIT. typical, limit: distances of
    the median image and at the limit. lies_still: whether the same places were compared.
    """

    distances: npt.NDArray[np.float32]
    deviations: Array
    typical: float
    limit: float
    lies_still: bool

    @property
    def doubtful(self) -> list[int]:
        """The indices of the doubtful images, the most doubtful first."""
        order = np.argsort(-self.deviations, kind="stable")
        return [int(index) for index in order if self.deviations[index] > LIMIT]


def measure_support(
    descriptors: Descriptors, grid: Grid, contents: Sequence[Hashable], progress: Progress
) -> Support:
    """Compare each image with the others.

    descriptors: of at least FEWEST_IMAGES images. grid: rows and columns of the places of an input
    of the network; an image has one such grid after the other. contents: of each image what is
    equal for copies, which do not support each other.
    """
    still = lies_still(descriptors, grid, contents)
    most = MOST_REFERENCES if still else MOST_REFERENCES_EVERYWHERE
    comparison = _Comparison(descriptors, grid, _spaced(descriptors.shape[1], most), contents)
    distances = comparison.distances(WINDOW if still else None, progress)
    count = min(WORST_PLACES, distances.shape[1])
    worst = np.sort(distances, axis=1)[:, -count:].mean(1)
    # Copies have no distance, and a logarithm of 0 is not finite.
    logarithms = np.log(np.maximum(worst, 1e-6).astype(np.float64))
    median = float(np.median(logarithms))
    spread = NORMAL_MAD * float(np.median(np.abs(logarithms - median)))
    spread = max(spread, SMALLEST_SPREAD)
    return Support(
        distances=distances,
        deviations=(logarithms - median) / spread,
        typical=float(np.exp(median)),
        limit=float(np.exp(median + LIMIT * spread)),
        lies_still=still,
    )


def lies_still(descriptors: Descriptors, grid: Grid, contents: Sequence[Hashable]) -> bool:
    """Whether what is nearest to a place of an image lies about there in other images, too."""
    chosen = _spaced(descriptors.shape[1], RATIO_IMAGES)
    some = np.ascontiguousarray(descriptors[:, chosen])
    own = [contents[index] for index in chosen]
    comparison = _Comparison(some, grid, np.arange(len(chosen)), own)
    in_window = np.median(comparison.distances(WINDOW))
    anywhere = np.median(comparison.distances(None))
    return bool(in_window <= LARGEST_RATIO * anywhere)


def _spaced(images: int, most: int) -> Indices:
    """Return the indices of so many images at most, evenly spaced."""
    return np.linspace(0, images - 1, min(images, most)).astype(np.int64)


class _Comparison:
    """The distances of the places of all images to those of some of them, the references."""

    def __init__(
        self,
        descriptors: Descriptors,
        grid: Grid,
        references: Indices,
        contents: Sequence[Hashable],
    ) -> None:
        self.descriptors = descriptors
        self.grid = grid
        self.references = references
        # No image is supported by itself or by a copy: bool [images, references].
        numbers = {content: number for number, content in enumerate(dict.fromkeys(contents))}
        of_images = torch.tensor([numbers[content] for content in contents])
        self.own = of_images[:, None] == of_images[torch.from_numpy(references)]

    @torch.inference_mode()
    def distances(
        self, window: int | None, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the distance of each place: float32 [images, places].

        window: how many places to each side are compared; None for all places.
        """
        places, images, _ = self.descriptors.shape
        supporters = min(SUPPORTERS, len(self.references) - 1)
        distances = np.empty((images, places), np.float32)
        compared: Tensor | None = None
        for place in range(places):
            if compared is None or window is not None:
                compared = self._compared(place, window)
            for first in range(0, images, CHUNK):
                part = slice(first, first + CHUNK)
                queries = torch.from_numpy(self.descriptors[place, part]).float()
                nearest = _nearest(queries, compared)
                nearest[self.own[part]] = torch.inf
                found = nearest.topk(supporters, 1, largest=False).values[:, -1]
                distances[part, place] = found.clamp_(min=0).sqrt_().numpy()
            if progress is not None:
                progress("comparing the images", place + 1, places)
        # Where nearly all images are copies of one, none of them has so many others.
        return np.nan_to_num(distances, posinf=0.0)

    def _compared(self, place: int, window: int | None) -> Tensor:
        """Return what a place is compared with: [k, references, VALUES], of k places."""
        chosen: Sequence[int] = range(len(self.descriptors))
        if window is not None:
            chosen = self._around(place, window)
        return torch.from_numpy(self.descriptors[chosen][:, self.references]).float()

    def _around(self, place: int, window: int) -> list[int]:
        """Return a place and those around it, in the same input of the network."""
        rows, columns = self.grid
        first = place - place % (rows * columns)
        row, column = divmod(place - first, columns)
        around = []
        for near_row in range(max(0, row - window), min(rows, row + window + 1)):
            for near in range(max(0, column - window), min(columns, column + window + 1)):
                around.append(first + near_row * columns + near)
        return around


def _nearest(queries: Tensor, compared: Tensor) -> Tensor:
    """Return the squared distance of queries [Q, D] to the nearest of k places: [Q, R].

    compared: [k, R, D].
    """
    flat = compared.flatten(0, 1)
    products = torch.addmm(flat.square().sum(1), queries, flat.T, alpha=-2)
    nearest = products.view(len(queries), *compared.shape[:2]).amin(1)
    return nearest.add_(queries.square().sum(1, keepdim=True))
