"""Exact rewrites that exporters share. Every one is algebra: same function, less work; tests hold them equal.

Matrices and kernels are float64: a method's `fused()` builds in float64 and casts the whole once.
Imports torch alone, so that the methods in train may use it.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """A copy in eval mode with every BatchNorm folded into the convolution before it, in the module's own dtype.

    Pairs are found by torchvision's names: conv1/bn1, conv2/bn2, conv3/bn3, and 0/1 in a shortcut.
    """
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for name, norm in children.items():
            conv = children.get(name.replace("bn", "conv") if name.startswith("bn") else "0")
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
                setattr(
                    parent,
                    name.replace("bn", "conv") if name.startswith("bn") else "0",
                    fuse_conv_bn_eval(conv, norm),
                )
                setattr(parent, name, nn.Identity())
    return module


class FoldedInput(nn.Module):
    """uint8 [N, H, W, 3] BGR to what the first convolution expects, after `fold` has moved order and scale into it.

    Only the mean is subtracted here: the convolution pads with zeros, which must stay the normalised image's zeros,
    so folding the mean too would change the border.
    """

    mean: Tensor

    def __init__(
        self, conv: nn.Conv2d, mean_rgb: tuple[float, ...], std_rgb: tuple[float, ...]
    ) -> None:
        super().__init__()
        weight = conv.weight.data
        scale = weight.new_tensor([255 * s for s in std_rgb]).view(1, 3, 1, 1)
        conv.weight.data = (weight / scale).flip(1).contiguous()
        self.register_buffer(
            "mean", weight.new_tensor([255 * m for m in reversed(mean_rgb)]).view(3, 1, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        # The cast comes first because TensorRT reads uint8 into nothing else; the mean last, one number per plane,
        # because subtracting three in turn takes a CPU ten times as long.
        return image.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean


def pool_matrix(n_in: int, n_out: int) -> Tensor:
    """Adaptive average pooling of n_in values to n_out as a matrix [n_out, n_in], float64."""
    return F.adaptive_avg_pool1d(torch.eye(n_in, dtype=torch.float64)[:, None], n_out)[
        :, 0
    ].T.contiguous()


def patch_stencils(
    channels: tuple[int, int], level_dim: int, target_dim: int
) -> tuple[Tensor, Tensor]:
    """PatchCore's and SimpleNet's patch aggregation as one 3x3 kernel per level (methods: unfold 3x3, pool each
    level's 9C values to level_dim, pool both together to target_dim): two [target_dim, C, 3, 3], float64."""
    both = pool_matrix(2 * level_dim, target_dim)
    parts = (both[:, :level_dim], both[:, level_dim:])
    kernels = [
        part @ pool_matrix(9 * c, level_dim) for part, c in zip(parts, channels, strict=True)
    ]
    return kernels[0].view(target_dim, channels[0], 3, 3), kernels[1].view(
        target_dim, channels[1], 3, 3
    )


def grouped_convolution(kernel: Tensor) -> nn.Conv2d:
    """A 3x3 kernel [rows, C, 3, 3] as the zero-padded convolution with the most groups that represents it exactly."""
    rows, channels = kernel.shape[:2]
    for groups in sorted(_common_divisors(rows, channels), reverse=True):
        blocks = kernel.view(groups, rows // groups, groups, channels // groups, 3, 3)
        diagonal = torch.stack([blocks[g, :, g] for g in range(groups)])
        if torch.count_nonzero(diagonal) == torch.count_nonzero(kernel):
            break
    conv = nn.Conv2d(channels, rows, 3, padding=1, groups=groups, bias=False)
    conv.weight.data = diagonal.reshape(rows, channels // groups, 3, 3)
    return conv


def _common_divisors(a: int, b: int) -> list[int]:
    shared = math.gcd(a, b)
    return [d for d in range(1, shared + 1) if shared % d == 0]


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A matrix [rows, columns] as a 1x1 convolution."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight.data = weight[..., None, None]
    if bias is not None:
        assert conv.bias is not None
        conv.bias.data = bias
    return conv


class Upsample(nn.Module):
    """Bilinear resize [N, C, h, w] to a fixed size (half-pixel centres). An integer factor is one Resize node with a
    constant scale; any other is two small matrix products, since a scale would have to be rounded."""

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.factor = None
        if all(t % s == 0 for s, t in zip(source, target, strict=True)):
            self.factor = (target[0] / source[0], target[1] / source[1])
        else:
            self.register_buffer("rows", resize_matrix(source[0], target[0]))
            self.register_buffer("columns", resize_matrix(source[1], target[1]).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is not None:
            return F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return self.rows @ (x @ self.columns)


def resize_matrix(n_in: int, n_out: int) -> Tensor:
    """Bilinear resize of a line as a matrix [n_out, n_in], float64; half-pixel centres, clamped at the ends."""
    eye = torch.eye(n_in, dtype=torch.float64)[None, None]
    return F.interpolate(eye, size=(n_out, n_in), mode="bilinear", align_corners=False)[0, 0]


def gaussian_matrix(n: int, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian filter of a line as a matrix [n, n], float64: scipy's gaussian_filter1d with mode "reflect"."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    taps /= taps.sum()
    source = (torch.arange(n)[:, None] + offsets) % (2 * n)
    source = torch.where(source >= n, 2 * n - 1 - source, source)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(
        1, source, taps.expand(n, -1).contiguous()
    )


class SmoothUpsample(nn.Module):
    """Bilinear upsampling followed by a Gaussian, as U_h S U_w^T: [N, h, w] to [N, H, W]."""

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int], sigma: float) -> None:
        super().__init__()
        rows, columns = (
            gaussian_matrix(t, sigma) @ resize_matrix(s, t)
            for s, t in zip(source, target, strict=True)
        )
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)


class Largest(nn.Module):
    """The largest value of each map: [N, H, W] to [N]. A module, so that FP32 can be asked of it."""

    def forward(self, heat: Tensor) -> Tensor:
        return heat.amax((1, 2))
