"""Structural similarity (SSIM) of two images, as a loss, as a residual map and for export.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Transactions on Image Processing 2004. Means, variances and the covariance are
those of a window around each pixel, for every channel alone. Images are from 0 to 1.

1 - SSIM is small where two images are nearly equal. As 1 minus a product of quotients it is the
difference of two nearly equal numbers there. The equal form A + B - AB has none:

    A = (mean x - mean y)^2 / ((mean x)^2 + (mean y)^2 + C1)
    B = variance of x - y / (variance of x + variance of y + C2)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Side of the window in pixels, and standard deviation of a Gaussian one.
WINDOW = 11
SIGMA = 1.5
CHANNELS = 3
C1 = 0.01**2
C2 = 0.03**2
# An estimate of a variance from n samples is the mean square times n / (n - 1).
SAMPLE = WINDOW**2 / (WINDOW**2 - 1)

Mean = Callable[[Tensor], Tensor]


def uniform_mean(x: Tensor) -> Tensor:
    """Average [N, 3, H, W] over 11 x 11 pixels; at the border, over those within the image.

    Columns come first and then rows, because sums of fewer terms round less.
    """
    half = WINDOW // 2
    x = F.avg_pool2d(x, (WINDOW, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, WINDOW), 1, (0, half), count_include_pad=False)


def similarity(first: Tensor, second: Tensor, mean: Mean) -> Tensor:
    """Compute SSIM [N, 3, H, W] of two images [N, 3, H, W], literally and with sample variances.

    mean: averages an image over a window around each pixel. The result is float64, as that of
    scikit-image: in float32, the differences of squares would round to a ten thousandth.
    """
    x = first.double()
    y = second.double()
    mean_x = mean(x)
    mean_y = mean(y)
    variance_x = SAMPLE * (mean(x * x) - mean_x * mean_x)
    variance_y = SAMPLE * (mean(y * y) - mean_y * mean_y)
    covariance = SAMPLE * (mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return luminance * (2 * covariance + C2) / (variance_x + variance_y + C2)


def dissimilarity(
    x: Tensor, difference: Tensor, mean: Mean, centre: Tensor, sample: float = 1.0
) -> Tensor:
    """Compute 1 - SSIM of an image and of another one in the form that does not cancel.

    x: the first image minus `centre`, [N, 3, H, W]. difference: the second image minus the first.
    mean: averages an image over a window around each pixel; the weights of a window add up to 1.
    centre: a grey level of each channel, [3, 1, 1]. The result does not depend on it, but rounds
    less where x is close to 0. sample: SAMPLE for sample variances, 1 for mean squares.
    """
    y = x + difference
    averaged = mean(torch.cat([x, y, difference, difference * difference, x * x + y * y], 1))
    # Not `chunk`, for which the exporter writes a Shape.
    mean_x, mean_y, mean_d, square_d, squares = torch.split(averaged, CHANNELS, 1)
    # A factor of all variances is the same as its reciprocal at the constant that they meet.
    variances = squares - mean_x * mean_x - mean_y * mean_y
    contrast = (square_d - mean_d * mean_d) / (variances + C2 / sample)
    mean_x = mean_x + centre
    mean_y = mean_y + centre
    luminance = mean_d * mean_d / (mean_x * mean_x + mean_y * mean_y + C1)
    result: Tensor = luminance + contrast - luminance * contrast
    return result


class GaussianMean(nn.Module):
    """Gaussian means of the windows that lie within an image: [N, C, H, W] to [N, C, h, w].

    stride: pixels from one window to the next, 1 to 3; 1 gives H - 10 and W - 10 of them. Up to 3,
    the windows together weigh all pixels the same to 2 %, except at the border.

    The means are two matrix products, which a CPU trains faster than convolutions of single
    channels.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, stride: int = 1) -> None:
        super().__init__()
        columns = _gaussian_matrix(width, stride).T.contiguous()
        self.register_buffer("rows", _gaussian_matrix(height, stride), persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)


def _gaussian_matrix(side: int, stride: int) -> Tensor:
    """Return the Gaussian means of a line of `side` pixels as a matrix [windows, side]."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    taps = torch.exp(-0.5 * (offsets.double() / SIGMA) ** 2)
    taps /= taps.sum()
    starts = range(0, side - WINDOW + 1, stride)
    matrix = torch.zeros(len(starts), side)
    for row, start in enumerate(starts):
        matrix[row, start : start + WINDOW] = taps
    return matrix


def similarity_loss(first: Tensor, second: Tensor, mean: Mean) -> Tensor:
    """Compute the mean of 1 - SSIM of two images [N, 3, H, W], with `mean` as window."""
    centre = first.mean((0, 2, 3))[:, None, None]
    return dissimilarity(first - centre, second - first, mean, centre).mean()
