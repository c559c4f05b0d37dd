"""Two levels on twice the grid of the first one, averaged over 3x3: literally, and as matrices.

Rolih et al., "SuperSimpleNet" (ICPR 2024). The average divides by 9 everywhere, also at the border,
where the values outside are 0. Resize and average act on positions alone, one axis after the other,
so that both together are a matrix per level and axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.fused import Size, resize_matrix

WINDOW = 3


def upscaled_grid(first: Size) -> Size:
    """Return the grid of the features of levels of which the first has this grid."""
    return 2 * first[0], 2 * first[1]


def upscale_levels(levels: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Resize levels [N, C, h, w] bilinearly to twice the grid of the first, join and average them.

    align_corners: whether the centres of the corner values of both grids coincide, or the corners
    of the grids. Returns features [N, channels of all levels, 2h, 2w].
    """
    size = upscaled_grid((levels[0].shape[2], levels[0].shape[3]))
    resized = []
    for level in levels:
        resized.append(
            F.interpolate(level, size=size, mode="bilinear", align_corners=align_corners)
        )
    return F.avg_pool2d(torch.cat(resized, 1), WINDOW, 1, WINDOW // 2)


def upscaling_matrix(n_in: int, n_out: int, align_corners: bool) -> Tensor:
    """Return resize and average of a line as a matrix [n_out, n_in], float64."""
    places = torch.arange(n_out)
    inside = (places[:, None] - places).abs() <= WINDOW // 2
    return inside.double() / WINDOW @ resize_matrix(n_in, n_out, align_corners)


class UpscaledPositions(nn.Module):
    """The features of `upscale_levels` at some positions only, with the same values.

    A position is a product with a matrix of its own, which has 9 values that are not 0.
    grids: of the levels.
    """

    def __init__(self, grids: Sequence[Size], align_corners: bool) -> None:
        super().__init__()
        self.size = upscaled_grid(grids[0])
        self.count = len(grids)
        for number, grid in enumerate(grids):
            rows = upscaling_matrix(grid[0], self.size[0], align_corners)
            columns = upscaling_matrix(grid[1], self.size[1], align_corners)
            self.register_buffer(f"rows{number}", rows.float(), persistent=False)
            self.register_buffer(f"columns{number}", columns.float(), persistent=False)

    def forward(self, levels: Sequence[Tensor], places: Tensor) -> Tensor:
        """Return vectors [N, V, channels of all levels] from levels [N, C, h, w].

        places: int64 [N, V], positions on the upscaled grid, row by row.
        """
        row = places // self.size[1]
        column = places % self.size[1]
        vectors = []
        for number, level in enumerate(levels):
            of_row = self.get_buffer(f"rows{number}")[row]  # [N, V, h]
            of_column = self.get_buffer(f"columns{number}")[column]  # [N, V, w]
            weights = of_row[..., None] * of_column[..., None, :]
            vectors.append(weights.flatten(2) @ level.flatten(2).transpose(1, 2))
        return torch.cat(vectors, 2)


class FusedUpscaling(nn.Module):
    """The sum of two levels, each resized to twice the grid of the first and averaged over 3x3.

    Both levels have the same channels: [N, C, h, w] and [N, C, k, l] to [N, C, 2h, 2w]. The columns
    of each level are one product, the rows of both another, which also adds them. grids: of the
    levels.
    """

    columns_fine: Tensor
    columns_coarse: Tensor
    rows: Tensor

    def __init__(self, grids: Sequence[Size], align_corners: bool) -> None:
        super().__init__()
        height, width = upscaled_grid(grids[0])
        rows = []
        for name, grid in zip(("fine", "coarse"), grids, strict=True):
            columns = upscaling_matrix(grid[1], width, align_corners)
            self.register_buffer(f"columns_{name}", columns.T.contiguous())
            rows.append(upscaling_matrix(grid[0], height, align_corners))
        self.register_buffer("rows", torch.cat(rows, 1))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        both = torch.cat([fine @ self.columns_fine, coarse @ self.columns_coarse], 2)
        return self.rows @ both
