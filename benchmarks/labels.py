"""The labels of the test images of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flawline.runtime.image import Geometry
from flawline.train.data import DataError, DataSet, PreparedImages
from flawline.train.metrics import Labels


def labels_of(data_set: DataSet) -> Labels:
    """Return True for every test image with a defect: bool [n].

    Raises DataError unless there are images of both kinds, because no accuracy is defined for one
    kind alone.
    """
    labels = np.array([sample.defect is not None for sample in data_set.test], bool)
    if labels.all() or not labels.any():
        raise DataError(
            f"data {data_set.root}: accuracy needs good and defective test images; "
            f"see --data in the README"
        )
    return labels


def labelled_test_images(
    data_set: DataSet, geometry: Geometry, bit_depth: int | None = None
) -> tuple[PreparedImages, Labels]:
    """Return all test images as the model sees them, and their labels, bool [n].

    Raises DataError unless there are good and defective ones.
    """
    paths: list[Path] = []
    for sample in data_set.test:
        paths.append(sample.path)
    return PreparedImages(paths, geometry, bit_depth), labels_of(data_set)
