"""Literal formulas and builders for the tests of flows and of the methods that are made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.train.blocks.attention import AttentionSubnetwork, Dropout
from flawline.train.blocks.flow import build_flow, initialise_flow
from flawline.train.data.demo import render
from flawline.train.methods.fastflow import ConvolutionSubnetwork

Size = int | tuple[int, int]
SIZE = 64
GRID = (3, 4)
KINDS = ("1x1", "3x3", "alternate", "attention")
# As in oracles.py. The scales of a flow as a long training might leave it stretch rounding errors.
FLOW_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-2}
ALPHA = 2.0  # of the clamp of FrEIA's all-in-one block

# Nodes of the affine of a coupling: x e^(clamp tanh s) + t.
AFFINE = {"Tanh": 1, "Mul": 2, "Exp": 1, "Add": 1}
# The clamp of the latent that is read, a convolution, a ReLU that saturates, log-scale and shift.
CONVOLUTIONAL = Counter({"Conv": 3, "Min": 1, "Max": 1, "Clip": 1}) + Counter(AFFINE)
# Limits of what is read, and a clamp; 1x1 and 3x3 convolution, log-scale and shift; position code
# and residual; query, key, value and two products around the softmax.
ATTENTION = Counter(
    {
        "Min": 1,
        "Max": 1,
        "Clip": 1,
        "Conv": 4,
        "Add": 2,
        "Reshape": 2,
        "Transpose": 2,
        "MatMul": 5,
        "Softmax": 1,
    },
) + Counter(AFFINE)


# ---------------------------------------------------------------- flows


def flow_of(
    kind: str, channels: int, blocks: int, seed: int = 0, grid: tuple[int, int] = GRID
) -> Any:
    """A float64 flow as a long training might leave it: no constant is near its initial value."""

    def subnetwork(number: int, c_in: int, c_out: int) -> Any:
        if kind == "attention":
            return AttentionSubnetwork(c_in, c_out, 8, 2, Dropout(0.2), grid)
        small = kind == "1x1" or (kind == "alternate" and number % 2 == 1)
        return ConvolutionSubnetwork(c_in, c_out, 1 if small else 3)

    torch.manual_seed(seed)
    return trained_like(build_flow(channels, grid, blocks, subnetwork), seed).double().eval()


@torch.no_grad()
def trained_like(flow: Any, seed: int) -> Any:
    """The flow with every parameter drawn: scales from 0.2 to 2.5, offsets, bent log-scales."""
    generator = torch.Generator().manual_seed(seed)
    initialise_flow(flow, generator)
    for name, parameter in flow.named_parameters():
        if name.endswith("global_scale"):
            parameter.uniform_(0, 25, generator=generator)
        elif name.endswith("global_offset"):
            parameter.normal_(0, 1, generator=generator)
        elif name.endswith("original0"):  # the norms of the weight-normalised rows
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("original1"):
            parameter.normal_(0, 1, generator=generator)
        elif ".last." in name:
            parameter.mul_(15)
    return flow


def literal_flow(flow: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """FrEIA's all-in-one blocks step by step and channel by channel: z and the log-determinant."""
    log_determinant = torch.zeros(len(x), dtype=x.dtype)
    for block in flow.module_list:
        channels = x.shape[1]
        half = channels - channels // 2
        x1, x2 = x[:, :half], x[:, half:]
        a = 0.1 * block.subnet(x1)
        a_s, a_t = a[:, : channels // 2], a[:, channels // 2 :]
        s = ALPHA * torch.tanh(a_s)
        u = torch.cat([x1, x2 * torch.exp(s) + a_t], 1)
        g, o = block.global_scale.flatten(), block.global_offset.flatten()
        d = 0.1 * torch.log(1 + torch.exp(0.5 * g)) / 0.5
        permuted = torch.empty_like(u)
        for target, row in enumerate(block.w_perm.flatten(1)):
            source = int(row.nonzero())
            permuted[:, target] = u[:, source] * d[source] + o[source]
        positions = x.shape[2] * x.shape[3]
        log_determinant = log_determinant + s.sum((1, 2, 3)) + positions * d.log().sum()
        x = permuted
    return x, log_determinant


def points(channels: int, seed: int = 0, n: int = 2, grid: tuple[int, int] = GRID) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(n, channels, *grid, dtype=torch.float64, generator=generator)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got - expected).abs().max()) < tolerance * float(expected.abs().max())


# ---------------------------------------------------------------- images and maps


def random_images(n: int = 2, seed: int = 0, size: Size = SIZE) -> Any:
    height, width = both_sides(size)
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def boards(n: int = 10) -> list[Any]:
    return [render("board", None, seed, SIZE)[0] for seed in range(n)]


def both_sides(size: Size) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return size


def images_with_defect(level: int) -> tuple[Any, Any]:
    """Eight good grey images; two more, and one with a square that differs by `level`."""
    noise = np.random.default_rng(0).normal(120, 4, (10, SIZE, SIZE, 3))
    images = noise.clip(0, 255).astype(np.uint8)
    bad = images[0].astype(int)
    bad[16:40, 16:40] += (level, level, -level)
    return images[:8], np.concatenate([images[8:], bad.clip(0, 255).astype(np.uint8)[None]])


def upsampled(anomaly_map: Any, size: tuple[int, int]) -> Any:
    """Bilinear, half-pixel centres, the edge held: numpy [N, h, w] to [N, H, W]."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = anomaly_map.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, source - 1), at - low
        shape = [1, 1, 1]
        shape[axis] = -1
        part = part.reshape(shape)
        anomaly_map = anomaly_map.take(low, axis) * (1 - part) + anomaly_map.take(high, axis) * part
    return anomaly_map


# ---------------------------------------------------------------- graphs


def counted(nodes: Iterable[Any]) -> Counter[str]:
    """Nodes by type, without constants, which do no work."""
    return Counter(node.op_type for node in nodes if node.op_type not in ("Constant", "Identity"))


def exported(method: Any) -> bytes:
    return onnx_from_module(method.fused(), method.geometry)
