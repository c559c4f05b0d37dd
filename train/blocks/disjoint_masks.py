"""Masks that hide each pixel of an image in exactly one of several copies of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def disjoint_masks(
    size: tuple[int, int], cell: int, parts: int, rng: np.random.Generator
) -> Tensor:
    """Divide the square cells of an image of (H, W) pixels into so many random parts.

    cell: side of a cell in pixels, which divides H and W. The parts have equal numbers of cells,
    or numbers that differ by one. Returns bool [parts, 1, H, W], True where an image is kept and
    False in the cells of the part, which are hidden.
    """
    rows = size[0] // cell
    columns = size[1] // cell
    part_of = np.empty(rows * columns, np.int64)
    for part, chosen in enumerate(np.array_split(rng.permutation(rows * columns), parts)):
        part_of[chosen] = part
    cells = torch.from_numpy(part_of).view(rows, columns)
    pixels = cells.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    # On the CPU as the cells are, whatever the default device is.
    number = torch.arange(parts, device="cpu")
    return (pixels != number[:, None, None])[:, None]
