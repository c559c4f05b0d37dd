"""A data set whose training images are contaminated with defective test images, as links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline.benchmarks.labels import labels_of
from flawline.train.data import DataError, DataSet, Sample
from flawline.train.data.split import content_hashes

# Names of folders in which none of the names of a data set can be misunderstood.
GOOD = "good"
DEFECTIVE = "defective"


@dataclass(frozen=True)
class Contamination:
    """Which defective images move into the training, and which images are tested.

    moved: in the order in which they move; a share takes the first ones.
    test: is the same for every share.
    """

    data_set: DataSet
    shares: tuple[float, ...]
    moved: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def moved_at(self, share: float) -> tuple[Sample, ...]:
        """Return the images that make up this share of the training images."""
        return self.moved[: images_for_share(share, len(self.data_set.train_good))]


def images_for_share(share: float, good: int) -> int:
    """Return how many defective images among so many good ones are this share of all, rounded."""
    return round(share * good / (1 - share))


def choose_contamination(data_set: DataSet, shares: Sequence[float], seed: int) -> Contamination:
    """Choose at random which defective test images can move into the training.

    Those of the largest share, and copies of them, are left out of every test. Raises DataError for
    a share that is not from 0 to below 1, and where too few defective images are left to test.
    """
    labels_of(data_set)
    for share in shares:
        if not (math.isfinite(share) and 0 <= share < 1):
            raise DataError(f"--shares {share:g} is not from 0 to below 1; give 0.02 for 2 %")
    defective = [sample for sample in data_set.test if sample.defect is not None]
    most = images_for_share(max(shares), len(data_set.train_good))
    if most >= len(defective):
        raise DataError(
            f"data {data_set.root}: a share of {max(shares):g} takes {most} defective images, and "
            f"there are {len(defective)}; give a smaller share"
        )
    order = np.random.default_rng(seed).permutation(len(defective))[:most]
    moved = tuple(defective[index] for index in order)
    return Contamination(data_set, tuple(shares), moved, _without(data_set.test, moved))


def _without(samples: Sequence[Sample], moved: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples whose files have other contents than the moved ones."""
    trained = set(content_hashes([sample.path for sample in moved]))
    hashes = content_hashes([sample.path for sample in samples])
    kept = []
    for sample, content in zip(samples, hashes, strict=True):
        if content not in trained:
            kept.append(sample)
    return tuple(kept)


def write_contaminated(contamination: Contamination, share: float, root: Path) -> Path:
    """Write a data set in MVTec AD's layout, of links to the files, and return its folder.

    It has no masks. The names of the good images stay, because they decide which are held out; the
    defective ones among them are divided by their names as well.
    """
    data_set = contamination.data_set
    training = root / "train" / GOOD
    for path in data_set.train_good:
        _link(training / data_set.train_good.name_of(path), path)
    for number, sample in enumerate(contamination.moved_at(share)):
        _link(training / f"contaminant-{number:04d}{sample.path.suffix}", sample.path)
    for number, sample in enumerate(contamination.test):
        kind = GOOD if sample.defect is None else DEFECTIVE
        _link(root / "test" / kind / f"{number:05d}{sample.path.suffix}", sample.path)
    return root


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        raise DataError(
            f"{target} and {link.resolve()} have the same name in two folders of good images; "
            f"rename one of them"
        )
    link.symlink_to(target.resolve())
