"""Builders and formulas for the tests of the methods that learn the features of a teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flawline.train.method import Method


@torch.no_grad()
def trained_like(method: Method, seed: int = 0) -> Any:
    """The method with random weights, none of whose BatchNorms is near its initial state."""
    generator = torch.Generator().manual_seed(seed)
    method.load_weights("random", seed, [])
    for name, module in method.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("backbone."):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.uniform_(0.5, 1, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
    return method.eval()


def unit(x: Tensor) -> Any:
    """Vectors [N, C, h, w] divided by their lengths."""
    values = x.double().numpy()
    return values / np.sqrt((values**2).sum(1, keepdims=True))


def resized(plane: Any, size: tuple[int, int], align_corners: bool) -> Any:
    """Bilinear resize of numpy [N, h, w] by its formula."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = plane.shape[axis]
        if align_corners:
            at = np.arange(target) * (source - 1) / (target - 1)
        else:
            at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.minimum(np.floor(at).astype(int), source - 1)
        high = np.minimum(low + 1, source - 1)
        shape = [1, 1, 1]
        shape[axis] = -1
        part = (at - low).reshape(shape)
        plane = plane.take(low, axis) * (1 - part) + plane.take(high, axis) * part
    return plane


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
