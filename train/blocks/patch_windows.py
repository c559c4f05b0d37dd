"""Square patches of an image, and the windows of patches from which each of them is predicted."""

from __future__ import annotations

import torch
from torch import Tensor

# Sides of a patch in pixels and of a window in patches.
PATCH = 16
WINDOW = 7


def patches_of(image: Tensor) -> Tensor:
    """Divide images [N, 3, H, W] into patches [N, H / 16 * W / 16, 3 * 16 * 16], row by row."""
    n, channels, height, width = image.shape
    cells = image.reshape(n, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * PATCH * PATCH)


def image_of(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Put patches as from `patches_of` together: [N, 3, H, W] for a size of (H, W)."""
    rows = size[0] // PATCH
    columns = size[1] // PATCH
    cells = patches.reshape(-1, rows, columns, 3, PATCH, PATCH)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, *size)


def window_table(rows: int, columns: int) -> Tensor:
    """Return the patches of the window of each patch: int64 [rows * columns, 49].

    A window has 7 x 7 patches around its own one, or lies at the border of the image if that is
    nearer. Patches are numbered row by row; `rows` and `columns` are at least 7.
    """
    tops = _starts(rows)
    lefts = _starts(columns)
    offsets = torch.arange(WINDOW)
    down = (tops[:, None] + offsets)[:, None, :, None] * columns
    across = (lefts[:, None] + offsets)[None, :, None, :]
    return (down + across).reshape(rows * columns, WINDOW * WINDOW)


def _starts(count: int) -> Tensor:
    """Return the first row or column of the window of each of so many rows or columns."""
    return (torch.arange(count) - WINDOW // 2).clamp(0, count - WINDOW)
