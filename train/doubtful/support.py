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
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.train.doubtful.descriptors import Descriptors, Report
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
# Images, evenly spaced, that all are compared with at most, and how many of their places in all: so
# neither the time for an image nor the memory grows with the number of images. In a window, and at
# all places.
MOST_REFERENCES = 512
MOST_ROWS = 1 << 19
MOST_REFERENCES_EVERYWHERE = 96
MOST_ROWS_EVERYWHERE = 24576
# Robust standard deviations above the median, so that most defects are listed, and with them some
# good images, which a person then keeps. See `benchmarks.studies.doubtful`.
LIMIT = 1.4
# The data set on which SUPPORTERS, WORST_PLACES and LIMIT were chosen.
TUNED_ON = "elpv_mono"
# Of the logarithmic distances: below it, the images differ by little more than their noise.
SMALLEST_SPREAD = 0.02
# The standard deviation of a normal distribution, relative to its median absolute deviation.
NORMAL_MAD = 1.4826
# Fewer images say nothing about what is usual.
FEWEST_IMAGES = 10
# The two steps, as their bars call them.
DESCRIBING = "features"
COMPARING = "comparing the images"
# Images whose distances are computed together.
CHUNK = 64

Array = npt.NDArray[np.float64]
Distances = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Grid = tuple[int, int]


class Describes(Protocol):
    """What gives the descriptors of images; see `Describer`."""

    grid: Grid
    places: int

    def describe(self, chosen: Sequence[int], report: Report) -> Descriptors:
        """Return the descriptors of the images with these indices."""


@dataclass(frozen=True)
class Support:
    """How far the images of a data set are from the others.

    distances: float32 [images, places]. deviations: float64 [images], robust standard deviations
    above the median of all images; an image is doubtful above LIMIT. limit: the distance at that
    limit. lies_still: whether the same places were compared.
    """

    distances: Distances
    deviations: Array
    limit: float
    lies_still: bool

    @property
    def doubtful(self) -> list[int]:
        """The indices of the doubtful images, the most doubtful first."""
        order = np.argsort(-self.deviations, kind="stable")
        return [int(index) for index in order if self.deviations[index] > LIMIT]


def measure_support(images: Describes, contents: Sequence[Hashable], progress: Progress) -> Support:
    """Compare each image with the others, of which there are at least FEWEST_IMAGES.

    contents: of each image what is equal for copies, which do not support each other.
    """
    distances, still = _measure(images, contents, progress)
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
        limit=float(np.exp(median + LIMIT * spread)),
        lies_still=still,
    )


def _measure(
    images: Describes, contents: Sequence[Hashable], progress: Progress
) -> tuple[Distances, bool]:
    """Return the distance of each place, and whether the same places were compared.

    Only the descriptors of the references are kept.
    """
    count = len(contents)
    # Where images have many places, fewer references are kept.
    most = max(SUPPORTERS + 1, min(MOST_REFERENCES, MOST_ROWS // images.places))
    references = spaced(count, most)
    known = images.describe(
        references.tolist(), lambda done: progress(DESCRIBING, done, len(references))
    )
    of_references = [contents[index] for index in references]
    still = lies_still(known, images.grid, of_references)
    comparison = Comparison(known, images.grid, of_references, WINDOW if still else None)
    distances = np.empty((count, images.places), np.float32)
    for first in range(0, len(references), CHUNK):
        part = slice(first, first + CHUNK)
        found = comparison.distances(known[:, part], of_references[part])
        distances[references[part]] = found
        progress(COMPARING, first + len(found), count)
    others = np.setdiff1d(np.arange(count), references)
    for first in range(0, len(others), CHUNK):
        chosen = others[first : first + CHUNK].tolist()
        before = len(references) + first
        described = images.describe(chosen, partial(_report, progress, before, count))
        distances[chosen] = comparison.distances(described, [contents[index] for index in chosen])
    return distances, still


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(COMPARING, before + done, total)


def lies_still(known: Descriptors, grid: Grid, contents: Sequence[Hashable]) -> bool:
    """Whether what is nearest to a place of an image lies about there in other images, too."""
    chosen = spaced(known.shape[1], RATIO_IMAGES)
    some = np.ascontiguousarray(known[:, chosen])
    own = [contents[index] for index in chosen]
    in_window = np.median(Comparison(some, grid, own, WINDOW).distances(some, own))
    anywhere = np.median(Comparison(some, grid, own, None).distances(some, own))
    return bool(in_window <= LARGEST_RATIO * anywhere)


def spaced(images: int, most: int) -> Indices:
    """Return the indices of so many images at most, evenly spaced."""
    return np.linspace(0, images - 1, min(images, most)).astype(np.int64)


class Comparison:
    """The distances of places to those of some images, the references.

    known: the descriptors of the references. contents: as of `measure_support`, of the references.
    window: how many places to each side of the same place are compared; None for all places.
    """

    def __init__(
        self, known: Descriptors, grid: Grid, contents: Sequence[Hashable], window: int | None
    ) -> None:
        self.known = known
        self.grid = grid
        self.contents = contents
        self.window = window
        self._everywhere: Tensor | None = None
        if window is None:
            self.known, self.contents = _some_everywhere(known, contents)
            self._everywhere = torch.from_numpy(self.known).float()

    @torch.inference_mode()
    def distances(self, described: Descriptors, contents: Sequence[Hashable]) -> Distances:
        """Return the distance of each place: float32 [images, places].

        described, contents: those of the images.
        """
        places, images, _ = described.shape
        supporters = min(SUPPORTERS, len(self.contents) - 1)
        # No image is supported by itself or by a copy.
        copies = torch.tensor([[own == other for other in self.contents] for own in contents])
        distances = np.empty((images, places), np.float32)
        for place in range(places):
            queries = torch.from_numpy(described[place]).float()
            nearest = _nearest(queries, self._compared(place))
            nearest[copies] = torch.inf
            found = nearest.topk(supporters, 1, largest=False).values[:, -1]
            distances[:, place] = found.clamp_(min=0).sqrt_().numpy()
        # Where nearly all images are copies of one, none of them has so many others.
        return np.nan_to_num(distances, posinf=0.0)

    def _compared(self, place: int) -> Tensor:
        """Return what a place is compared with: [k, references, VALUES], of k places."""
        if self._everywhere is not None:
            return self._everywhere
        return torch.from_numpy(self.known[self._around(place)]).float()

    def _around(self, place: int) -> list[int]:
        """Return a place and those in the window, in the same input of the network."""
        assert self.window is not None
        rows, columns = self.grid
        first = place - place % (rows * columns)
        row, column = divmod(place - first, columns)
        around = []
        for near_row in range(max(0, row - self.window), min(rows, row + self.window + 1)):
            left = max(0, column - self.window)
            for near in range(left, min(columns, column + self.window + 1)):
                around.append(first + near_row * columns + near)
        return around


def _some_everywhere(
    known: Descriptors, contents: Sequence[Hashable]
) -> tuple[Descriptors, Sequence[Hashable]]:
    """Return the references that are compared at all places, and some of their places."""
    chosen = spaced(known.shape[1], MOST_REFERENCES_EVERYWHERE)
    places = len(known)
    most = min(places, MOST_ROWS_EVERYWHERE // len(chosen))
    # At random: evenly spaced ones would leave out whole columns of the grid.
    kept = np.sort(np.random.default_rng(0).choice(places, most, replace=False))
    return known[kept][:, chosen], [contents[index] for index in chosen]


def _nearest(queries: Tensor, compared: Tensor) -> Tensor:
    """Return the squared distance of queries [Q, D] to the nearest of k places: [Q, R].

    compared: [k, R, D].
    """
    flat = compared.flatten(0, 1)
    products = torch.addmm(flat.square().sum(1), queries, flat.T, alpha=-2)
    nearest = products.view(len(queries), *compared.shape[:2]).amin(1)
    return nearest.add_(queries.square().sum(1, keepdim=True))
