"""What streams of the study show: demo products, and the good test images of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from flawline.cameras.decode import read_image
from flawline.runtime.image import Image
from flawline.train.data import DataError, data_name, open_data
from flawline.train.data.demo import render, write_demo
from flawline.train.data.demo.dataset import MARKER

# Far from the seeds of the demo data and of other studies. Those of the frames are drawn at random
# from so many, because seeds that follow each other have exposures that are spread evenly.
FIRST_SEED = 9 << 20
SEEDS = 1 << 20
# Good images to train on, and good and defective ones that the export compares graphs on.
TRAINED = 100
COMPARED = (5, 1)


@dataclass(frozen=True)
class Subject:
    """A data set to train on, and its good frames.

    `product` is that of a demo, whose good frames are `rendered` in number; None for another set.
    """

    name: str
    data: Path
    product: str | None = None
    rendered: int = 0

    @cached_property
    def _good(self) -> list[Path]:
        good = [sample.path for sample in open_data(self.data).test if sample.defect is None]
        if not good:
            raise DataError(f"data {self.data}: there are no good test images; give another set")
        return good

    @property
    def different(self) -> int:
        """How many different good frames there are."""
        return len(self._good) if self.product is None else self.rendered

    def numbers(self, count: int) -> list[int]:
        """Return the numbers of the frames of a stream: drawn at random, or all in random order."""
        rng = np.random.default_rng(23)
        if count <= self.different:
            return [int(number) for number in rng.permutation(self.different)[:count]]
        return [int(number) for number in rng.integers(0, self.different, count)]

    def frame(self, number: int) -> Image:
        """Return a good frame, uint8 [h, w, 3] BGR or [h, w]."""
        if self.product is not None:
            return _rendered(self.product, number)
        return read_image(self._good[number], None)


# Every change is made to the same frames.
@lru_cache(maxsize=256)
def _rendered(product: str, number: int) -> Image:
    seed = int(np.random.default_rng((29, number)).integers(SEEDS))
    image = np.asarray(render(product, None, FIRST_SEED + seed)[0], np.uint8)
    image.flags.writeable = False
    return image


def open_subjects(
    products: Sequence[str], data: Sequence[Path], folder: Path, rendered: int
) -> list[Subject]:
    """Return the demo products, which are written below `folder`, and data sets."""
    subjects = []
    for name in products:
        root = folder / "data" / name
        good, defective = COMPARED
        if not (root / MARKER).exists():
            write_demo(root, [name], TRAINED, good, defective)
        subjects.append(Subject(name, root / name, name, rendered))
    for path in data:
        subjects.append(Subject(data_name(path), path))
    return subjects
