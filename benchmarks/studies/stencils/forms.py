"""Four exact forms of one linear map of 3x3 neighbourhoods.

Each takes `kernel` [rows, C, 3, 3] and `weight` [hidden, rows], both float64, and returns a module
from [N, C, h, w] to [N, hidden, h, w], zero-padded, or None when it cannot represent the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flawline.train.blocks.fused import grouped_convolution, pointwise


def grouped(kernel: Tensor, weight: Tensor) -> nn.Module:
    """As shipped: the kernel with the most groups that represent it, then a 1x1 convolution."""
    return nn.Sequential(grouped_convolution(kernel), pointwise(weight))


def depthwise(kernel: Tensor, weight: Tensor) -> nn.Module:
    """Each channel's distinct filters as a depthwise convolution, then a 1x1 over all of them."""
    channels = kernel.shape[1]
    distinct = []
    most = 0
    for channel in range(channels):
        filters, rows_of_filters = _distinct_filters(kernel[:, channel])
        distinct.append((filters, rows_of_filters))
        most = max(most, len(filters))
    # A depthwise convolution has the same number of filters for every channel; the rest are zero.
    conv = nn.Conv2d(channels, channels * most, 3, padding=1, groups=channels, bias=False)
    conv.weight.data = kernel.new_zeros(channels * most, 1, 3, 3)
    columns = weight.new_zeros(len(weight), channels * most)
    for channel, (filters, rows_of_filters) in enumerate(distinct):
        for number, rows in enumerate(rows_of_filters):
            position = channel * most + number
            conv.weight.data[position, 0] = filters[number]
            # Rows with the same filter share its result.
            columns[:, position] = weight[:, rows].sum(1)
    return nn.Sequential(conv, pointwise(columns))


def _distinct_filters(filters: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the distinct filters [3, 3] of [rows, 3, 3] that are not zero, and their rows.

    The rows of a filter are a mask, bool [rows].
    """
    unique, inverse = filters.flatten(1).unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    used = []
    rows = []
    for number, values in enumerate(unique):
        if values.abs().sum() > 0:
            used.append(values.view(3, 3))
            rows.append(inverse == number)
    return used, rows


def row_mean(kernel: Tensor, weight: Tensor) -> nn.Module | None:
    """Mean of three along the row, a grouped mix along the column, then a 1x1 convolution.

    It exists only for a kernel whose taps are equal within each row.
    """
    if not torch.equal(kernel, kernel[..., :1].expand_as(kernel)):
        return None
    # A row of three equal taps is their sum times the mean of the three pixels.
    vertical = torch.zeros_like(kernel)
    vertical[..., 1] = kernel.sum(-1)
    wide = grouped_convolution(vertical)
    narrow = nn.Conv2d(
        wide.in_channels,
        wide.out_channels,
        (3, 1),
        padding=(1, 0),
        groups=wide.groups,
        bias=False,
    )
    # Only the middle column has taps.
    narrow.weight.data = wide.weight.data[..., 1:2].clone()
    return nn.Sequential(nn.AvgPool2d((1, 3), 1, (0, 1)), narrow, pointwise(weight))


def dense(kernel: Tensor, weight: Tensor) -> nn.Module:
    """Both maps multiplied out: nine times the arithmetic in one node."""
    rows, channels = kernel.shape[:2]
    conv = nn.Conv2d(channels, len(weight), 3, padding=1, bias=False)
    # [hidden, rows] times [rows, C * 9]
    conv.weight.data = (weight @ kernel.view(rows, -1)).view(-1, channels, 3, 3)
    return conv


STENCILS: dict[str, Callable[[Tensor, Tensor], nn.Module | None]] = {
    "grouped 3x3 + 1x1": grouped,
    "depthwise 3x3 + 1x1": depthwise,
    "row mean + grouped 3x1 + 1x1": row_mean,
    "dense 3x3": dense,
}
