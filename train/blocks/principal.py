"""The principal components of rows of features: the directions in which they vary most."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.teaching import principal
from flawline.train.blocks.patches import allocate_features


def principal_directions(rows: npt.NDArray[Any], count: int) -> Tensor:
    """Return the directions [D, count] of rows [n, D], which may be mapped from disk.

    They are those that a detector is taught with on the box.
    """
    return torch.from_numpy(principal.principal_directions(rows, count))


def components_of(
    rows: npt.NDArray[np.float32], directions: Tensor, folder: str
) -> npt.NDArray[np.float32]:
    """Return the components [n, count] of rows [n, D] along directions [D, count].

    `folder` holds the file that a large array is mapped from; it must exist as long as the array is
    used. Raises TrainError where the disk has no space for it.
    """
    matrix = directions.cpu().numpy()
    components = allocate_features((len(rows), matrix.shape[1]), folder)
    for start in range(0, len(rows), principal.CHUNK):
        components[start : start + principal.CHUNK] = rows[start : start + principal.CHUNK] @ matrix
    return components
