"""Error and time of the four forms on the levels of a backbone, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flawline.benchmarks.measure.meter import count_parameters
from flawline.benchmarks.measure.sessions import inference_call
from flawline.benchmarks.measure.timing import alternate
from flawline.benchmarks.studies.stencils.forms import STENCILS, grouped
from flawline.export.graphs.to_onnx import trace
from flawline.runtime.console import log
from flawline.train.backbones import create_backbone
from flawline.train.blocks.fused import patch_stencils
from flawline.train.methods.simplenet import SimpleNet

# Allowed error in float32, relative to the standard deviation of the result.
BOUND = 1e-5
SHIPPED = "grouped 3x3 + 1x1"
# Hidden units of SimpleNet's discriminator, and the levels that it reads.
HIDDEN = 1024
LEVELS = (2, 3)
REPEATS = 10
SETTLE_S = 0.05


@dataclass(frozen=True)
class StencilRow:
    """One form on one level: median time, number of weights, and relative error."""

    name: str
    ms: float
    values: int
    error: float


def measure_stencils(
    backbone: str, size: int, rounds: int, threads: int | None
) -> Iterator[tuple[int, list[StencilRow]]]:
    """Yield each level and the rows of its forms, for square images of `size` pixels."""
    torch.manual_seed(0)
    settings = SimpleNet.settings_for(backbone)
    network = create_backbone(backbone, LEVELS)
    kernels = patch_stencils(network.channels, settings.level_dim, settings.target_dim)
    for level, kernel, stride in zip(LEVELS, kernels, network.strides, strict=True):
        # Rows without taps read nothing from this level.
        used = kernel.flatten(1).abs().sum(1) > 0
        features = torch.randn(1, kernel.shape[1], size // stride, size // stride)
        yield level, _measure_level(level, kernel[used], features, rounds, threads)


def _measure_level(
    level: int, kernel: Tensor, features: Tensor, rounds: int, threads: int | None
) -> list[StencilRow]:
    weight = torch.randn(HIDDEN, len(kernel), dtype=torch.float64)
    expected = grouped(kernel, weight)(features.double()).detach().numpy()
    image = features.numpy()
    calls: dict[str, Callable[[], object]] = {}
    sizes: dict[str, int] = {}
    errors: dict[str, float] = {}
    for name, make in STENCILS.items():
        module = make(kernel, weight)
        if module is None:
            log(f"layer{level}: no {name}, because the taps of a row differ")
            continue
        model = trace(module.float(), features, ("hidden",), dynamic=False)
        call = inference_call(model.SerializeToString(), threads)
        errors[name] = float(np.abs(call(image)[0] - expected).max() / expected.std())
        sizes[name] = count_parameters(module)
        calls[name] = partial(call, image)
    medians = alternate(calls, rounds, REPEATS, settle_s=SETTLE_S)
    rows = []
    for name, milliseconds in medians.items():
        rows.append(StencilRow(name, milliseconds, sizes[name], errors[name]))
    return rows
