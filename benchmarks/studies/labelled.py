"""The test images of a data set with their labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flawline.runtime.image import Geometry
from flawline.train.data import DataSet, PreparedImages


def labelled_test_images(
    data_set: DataSet, geometry: Geometry, bit_depth: int | None = None
) -> tuple[PreparedImages, NDArray[np.bool_]]:
    """Return all test images as the model sees them, and which of them have a defect, bool [n]."""
    paths = []
    labels = []
    for sample in data_set.test:
        paths.append(sample.path)
        labels.append(sample.defect is not None)
    return PreparedImages(paths, geometry, bit_depth), np.array(labels)
