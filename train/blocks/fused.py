"""Exact rewrites that the exported forms of the methods share, and their base class.

Every rewrite is algebra: the same function with less work; tests compare both. Matrices and kernels
are float64: `build_fused` builds a method's exported form in float64 and casts the whole once.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.method import Method

Size = tuple[int, int]
Module = TypeVar("Module", bound=nn.Module)

# ---------------------------------------------------------------- the exported form of a method


class FusedMethod(nn.Module, abc.ABC):
    """The exported form of a method with one backbone: input and backbone folded, then a head."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        folded_input, backbone = fold_backbone(method.backbone)
        self.backbone = backbone
        self.input = folded_input

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        return self.head(*self.backbone(self.input(image)))

    @abc.abstractmethod
    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from the levels of the backbone."""


def build_fused(method: Method, build: Callable[[Any], Module]) -> Module:
    """Build the exported form of a method, in eval mode and in the method's own dtype.

    `build` gets a copy of the method in float64, so that rounding happens once, at the end.
    """
    exact = copy.deepcopy(method).double()
    return build(exact).to(method.dtype).eval()


def fp32(module: Module) -> Module:
    """Mark a module of an exported form that FP16 would harm; returns the module."""
    module.keep_fp32 = True  # type: ignore[assignment]
    return module


def fp32_islands(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of node names that the marked modules have in the exported graph.

    The exporter names a node by the modules that are called around it:
    /flow/couplings.0/affine/Exp. A list of modules is never called, so that it stands in front of
    the index only.
    """
    modules = dict(module.named_modules())
    islands = []
    for path, child in modules.items():
        if getattr(child, "keep_fp32", False):
            islands.append(_scope(path, modules))
    return tuple(islands)


def _scope(path: str, modules: dict[str, nn.Module]) -> str:
    """Return the exporter's name for the module at a path such as flow.couplings.0.affine."""
    scope = ""
    names = path.split(".")
    for depth in range(1, len(names) + 1):
        ancestor = modules[".".join(names[:depth])]
        if isinstance(ancestor, (nn.ModuleList, nn.ModuleDict)):
            continue
        # An index has the name of its container in front, also where the container is called.
        first = depth - 1
        while names[first].isnumeric():
            first -= 1
        scope += "/" + ".".join(names[first:depth])
    return scope


# ---------------------------------------------------------------- input and backbone


def fold_backbone(backbone: Backbone) -> tuple[FoldedInput, Backbone]:
    """Return the input and the backbone of an exported form; the given backbone stays as it is.

    The backbone is a copy with BatchNorm folded, whose first convolution also contains the channel
    order and the scale of the normalisation. Raises TrainError as `fold_batchnorm` does.
    """
    folded = fold_batchnorm(backbone)
    weight = folded.first_convolution.weight.data
    scale = weight.new_tensor([255 * std for std in backbone.std_rgb]).view(1, 3, 1, 1)
    folded.first_convolution.weight.data = (weight / scale).flip(1).contiguous()
    mean = weight.new_tensor([255 * mean for mean in reversed(backbone.mean_rgb)])
    return FoldedInput(mean), folded


def fold_batchnorm(module: Module) -> Module:
    """Copy a module, in eval mode, with every BatchNorm folded into the convolution before it.

    The convolution may be transposed. Pairs are recognised by torchvision's names: conv1 and bn1,
    conv2 and bn2, conv3 and bn3, and 0 and 1 in a shortcut. Raises TrainError for a BatchNorm that
    belongs to no such pair.
    """
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for name, norm in children.items():
            conv_name = name.replace("bn", "conv") if name.startswith("bn") else "0"
            conv = children.get(conv_name)
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
                transposed = isinstance(conv, nn.ConvTranspose2d)
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm, transposed))
                setattr(parent, name, nn.Identity())
    for path, remaining in module.named_modules():
        if isinstance(remaining, _BatchNorm):
            raise TrainError(
                f"{type(module).__name__}: the BatchNorm {path} cannot be folded; name it bn1 "
                "after a convolution conv1 of the same module, or 1 after 0"
            )
    return module


class FoldedInput(nn.Module):
    """Converts uint8 BGR [N, H, W, 3] to what the first convolution reads, [N, 3, H, W].

    mean: BGR in 0..255, [3]. `fold_backbone` moves channel order and scale into the weights of the
    convolution. The mean is subtracted here, because the convolution pads with zeros, which must
    stay the zeros of the normalised image: with the mean folded too, the border would change.
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        # The cast comes first because TensorRT reads uint8 into no other node. The mean comes last,
        # one value per plane, because subtracting interleaved values takes a CPU ten times as long.
        return image.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean


# ---------------------------------------------------------------- patch aggregation


def pool_matrix(n_in: int, n_out: int) -> Tensor:
    """Return adaptive average pooling of n_in values as a matrix [n_out, n_in], float64."""
    eye = torch.eye(n_in, dtype=torch.float64)[:, None]
    return F.adaptive_avg_pool1d(eye, n_out)[:, 0].T.contiguous()


def patch_stencils(
    channels: tuple[int, ...], level_dim: int, target_dim: int
) -> tuple[Tensor, Tensor]:
    """Return the patch aggregation of PatchCore and SimpleNet as one 3x3 kernel per level.

    The methods unfold 3x3 patches, pool the 9C values of each level to `level_dim` and both levels
    together to `target_dim`. `channels` are those of the two levels. Returns two kernels, float64
    [target_dim, C, 3, 3].
    """
    both = pool_matrix(2 * level_dim, target_dim)
    first = both[:, :level_dim] @ pool_matrix(9 * channels[0], level_dim)
    second = both[:, level_dim:] @ pool_matrix(9 * channels[1], level_dim)
    return (
        first.view(target_dim, channels[0], 3, 3),
        second.view(target_dim, channels[1], 3, 3),
    )


def grouped_convolution(kernel: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Return a kernel [rows, C, 3, 3] as a zero-padded convolution.

    It has the largest number of groups that represents the kernel exactly.
    """
    rows, channels = kernel.shape[:2]
    nonzero = torch.count_nonzero(kernel)
    for groups in range(math.gcd(rows, channels), 0, -1):
        if rows % groups or channels % groups:
            continue
        blocks = kernel.view(groups, rows // groups, groups, channels // groups, 3, 3)
        diagonal = torch.stack([blocks[group, :, group] for group in range(groups)])
        if torch.count_nonzero(diagonal) == nonzero:
            break
    conv = nn.Conv2d(channels, rows, 3, padding=1, groups=groups, bias=bias is not None)
    conv.weight.data = diagonal.reshape(rows, channels // groups, 3, 3)
    if conv.bias is not None and bias is not None:
        conv.bias.data = bias
    return conv


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Return a matrix [rows, columns] as a 1x1 convolution."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight.data = weight[..., None, None]
    if conv.bias is not None and bias is not None:
        conv.bias.data = bias
    return conv


# ---------------------------------------------------------------- maps


class Upsample(nn.Module):
    """Bilinear resize [N, C, h, w] to a fixed size, with half-pixel centres.

    An integer factor is one Resize node with a constant scale. Any other factor is two small matrix
    products, since a scale would have to be rounded.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size) -> None:
        super().__init__()
        self.factor: tuple[float, float] | None = None
        if target[0] % source[0] == 0 and target[1] % source[1] == 0:
            self.factor = (target[0] / source[0], target[1] / source[1])
        else:
            self.register_buffer("rows", resize_matrix(source[0], target[0]))
            self.register_buffer("columns", resize_matrix(source[1], target[1]).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is not None:
            return F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return self.rows @ (x @ self.columns)


def resize_matrix(n_in: int, n_out: int, align_corners: bool = False) -> Tensor:
    """Return the bilinear resize of a line as a matrix [n_out, n_in], float64.

    Centres are at half pixels, and samples beyond the ends take the value of the end. With
    `align_corners`, the first and the last sample of both lines coincide.
    """
    eye = torch.eye(n_in, dtype=torch.float64)[None, None]
    size = (n_out, n_in)
    return F.interpolate(eye, size=size, mode="bilinear", align_corners=align_corners)[0, 0]


def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Return the Gaussian filter of a line as a matrix [n, n], float64.

    It is scipy's gaussian_filter1d with mode "reflect"; sigma is in samples, and the filter ends at
    4 sigma.
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    taps /= taps.sum()
    source = (torch.arange(n)[:, None] + offsets) % (2 * n)
    source = torch.where(source >= n, 2 * n - 1 - source, source)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, source, taps.expand(n, -1).contiguous())


class SmoothUpsample(nn.Module):
    """Bilinear upsampling and a Gaussian, as two matrix products: [N, h, w] to [N, H, W].

    gaussian: returns the filter of a line of n samples as a matrix, from n and sigma.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        source: Size,
        target: Size,
        sigma: float,
        gaussian: Callable[[int, float], Tensor] = gaussian_matrix,
    ) -> None:
        super().__init__()
        rows = gaussian(target[0], sigma) @ resize_matrix(source[0], target[0])
        columns = gaussian(target[1], sigma) @ resize_matrix(source[1], target[1])
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)


class Largest(nn.Module):
    """The largest value of each map, [N, H, W] to [N]; a module, so that it can be marked FP32."""

    def forward(self, anomaly_map: Tensor) -> Tensor:
        return anomaly_map.amax((1, 2))


class Sum(nn.Module):
    """The sum of several tensors; a module, so that it can be marked FP32."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return first
