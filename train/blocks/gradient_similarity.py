"""Multi-scale similarity of gradient magnitudes (MSGMS) of two images, for every channel alone.

Xue, Zhang, Mou and Bovik, "Gradient magnitude similarity deviation: a highly efficient perceptual
image quality index", IEEE Transactions on Image Processing 2014. With the magnitudes a and b of the
gradients of two images, the similarity is (2ab + c) / (a^2 + b^2 + c).

It is close to 1 where two images are nearly equal, so that 1 minus the similarity is the difference
of two nearly equal numbers. The equal form (a - b)^2 / (a^2 + b^2 + c) has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.fused import resize_matrix

C = 0.0026
CHANNELS = 3
# Below the root, because its derivative at 0 is not finite.
SMALLEST = 1e-12


def prewitt() -> Tensor:
    """Return the two Prewitt kernels as weights of a convolution, float64 [2, 1, 3, 3]."""
    rows = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=torch.float64) / 3
    return torch.stack([rows, rows.T])[:, None]


def gradient_magnitude(x: Tensor) -> Tensor:
    """Compute the magnitudes of the gradients of planes [..., H, W]; beyond the border, x is 0."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    gradient = F.conv2d(planes, prewitt().to(x), padding=1)
    return (gradient.square().sum(1) + SMALLEST).sqrt().reshape(x.shape)


def similarity_map(first: Tensor, second: Tensor, scales: int) -> Tensor:
    """Compute MSGMS [N, C, H, W] of two images [N, C, H, W], literally.

    The similarity is computed for the images, for their halves and so on for `scales` sizes,
    resized to the size of the images and averaged over the scales.
    """
    size = first.shape[-2:]
    total = torch.zeros_like(first)
    for x, y in _pyramid(first, second, scales):
        a = gradient_magnitude(x)
        b = gradient_magnitude(y)
        similarity = (2 * a * b + C) / (a * a + b * b + C)
        total = total + F.interpolate(similarity, size=size, mode="bilinear", align_corners=False)
    return total / scales


def gradient_loss(first: Tensor, second: Tensor, scales: int) -> Tensor:
    """Compute the mean of 1 - MSGMS of two images [N, C, H, W].

    `2 ** (scales - 1)` must divide both sides: the mean over a scale is then that of its resized
    map, in which all pixels of the scale have the same weight.
    """
    losses = []
    for x, y in _pyramid(first, second, scales):
        losses.append(dissimilarity(gradient_magnitude(x), gradient_magnitude(y)).mean())
    return torch.stack(losses).mean()


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute 1 minus the similarity of two magnitudes, in the form that does not cancel."""
    difference = a - b
    return difference * difference / (a * a + b * b + C)


def _pyramid(first: Tensor, second: Tensor, scales: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both images at each scale, the finest first."""
    for scale in range(scales):
        if scale > 0:
            first = F.avg_pool2d(first, 2)
            second = F.avg_pool2d(second, 2)
        yield first, second


# ---------------------------------------------------------------- the exported form


class GradientResidual(nn.Module):
    """1 - MSGMS of an image and each of its reconstructions, averaged and smoothed: [N, H, W].

    size: of the images; `2 ** (scales - 1)` divides both sides. reconstructions: of an image.
    filters: a linear filter of columns and one of rows, [H, H] and [W, W], which are applied to the
    average over the reconstructions, channels and scales. Resizing and filter are one matrix on
    each side of a scale.
    """

    kernels: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        scales: int,
        reconstructions: int,
        filters: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        # Numbers, because the exporter writes a Shape for those that it reads from a tensor.
        self.sizes = [(size[0] >> scale, size[1] >> scale) for scale in range(scales)]
        self.reconstructions = reconstructions
        self.register_buffer("kernels", prewitt())
        averaged = scales * reconstructions * CHANNELS
        for scale, (height, width) in enumerate(self.sizes):
            rows = filters[0] @ resize_matrix(height, size[0]) / averaged
            columns = filters[1] @ resize_matrix(width, size[1])
            self.register_buffer(f"rows{scale}", rows)
            self.register_buffer(f"columns{scale}", columns.T.contiguous())

    def forward(self, image: Tensor, reconstructions: Tensor) -> Tensor:
        """Compute the map of images [N, 1, 3, H, W] and reconstructions [N, K, 3, H, W]."""
        results = []
        planes = torch.cat([image, reconstructions], 1)
        planes = planes.reshape(-1, (self.reconstructions + 1) * CHANNELS, *self.sizes[0])
        for scale, size in enumerate(self.sizes):
            if scale > 0:
                planes = F.avg_pool2d(planes, 2)
            gradient = F.conv2d(planes.reshape(-1, 1, *size), self.kernels, padding=1)
            squares = (gradient * gradient).sum(1) + SMALLEST
            magnitudes = squares.sqrt().reshape(-1, self.reconstructions + 1, CHANNELS, *size)
            difference = dissimilarity(magnitudes[:, :1], magnitudes[:, 1:]).sum((1, 2))
            rows = getattr(self, f"rows{scale}")
            results.append(rows @ (difference @ getattr(self, f"columns{scale}")))
        total: Tensor = sum(results[1:], results[0])
        return total


def mean_matrix(n: int, window: int) -> Tensor:
    """Return the mean over an odd `window` of a line of n values, with 0 beyond its ends.

    It is a matrix [n, n], float64.
    """
    offsets = torch.arange(n)[:, None] - torch.arange(n)
    return (offsets.abs() <= window // 2).double() / window
