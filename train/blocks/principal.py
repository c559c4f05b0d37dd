"""The principal components of rows of features: the directions in which they vary most."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.train.blocks.patches import allocate_features

CHUNK = 1 << 14  # rows that are processed together


def principal_directions(rows: npt.NDArray[Any], count: int) -> Tensor:
    """Return the directions [D, count] of rows [n, D], orthonormal, the largest variance first.

    They are eigenvectors of the covariance in float64, and float32. The largest entry of each is
    positive, so that they follow from the rows. The rows may be mapped from disk.
    """
    mean = rows.mean(0, dtype=np.float64)
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), CHUNK):
        centred = rows[start : start + CHUNK] - mean
        covariance += centred.T @ centred
    # In the order of growing variance.
    _, vectors = np.linalg.eigh(covariance)
    directions = vectors[:, ::-1][:, :count]
    largest = directions[np.abs(directions).argmax(0), np.arange(count)]
    return torch.from_numpy((directions * np.sign(largest)).astype(np.float32))


def components_of(
    rows: npt.NDArray[np.float32], directions: Tensor, folder: str
) -> npt.NDArray[np.float32]:
    """Return the components [n, count] of rows [n, D] along directions [D, count].

    `folder` holds the file that a large array is mapped from; it must exist as long as the array is
    used. Raises TrainError where the disk has no space for it.
    """
    matrix = directions.cpu().numpy()
    components = allocate_features((len(rows), matrix.shape[1]), folder)
    for start in range(0, len(rows), CHUNK):
        components[start : start + CHUNK] = rows[start : start + CHUNK] @ matrix
    return components
