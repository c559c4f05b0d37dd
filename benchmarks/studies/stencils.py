"""python -m benchmarks.stencils: the exact forms of SimpleNet's patch aggregation, timed against each other.

    python -m benchmarks.stencils --backbone wide_resnet50_2 --size 288

Between a level's feature map and the hidden layer stands one linear map of 3x3 neighbourhoods. It can be run as a
grouped convolution and a 1x1; as depthwise convolutions and a wider 1x1; as a mean along rows, a grouped mix along
columns and a 1x1; or as one dense 3x3. `export.fuse` uses the grouped form; this says what the others would cost.
"""

from __future__ import annotations

from flawline.train import require_extra

require_extra("benchmarks.stencils")

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flawline.benchmarks.measure.timing import alternate
from flawline.benchmarks.studies.fusion import session
from flawline.export.graphs.to_onnx import trace
from flawline.runtime.console import log
from flawline.train.backbones.resnet import ARCHITECTURES, ResNet
from flawline.train.blocks import fused as fuse
from flawline.train.methods.simplenet import SimpleNet

BOUND = 1e-5  # relative, float32


def grouped(kernel: Tensor, weight: Tensor) -> nn.Module:
    """As shipped: the stencil as the most groups that represent it, then 1x1."""
    return nn.Sequential(fuse.grouped_convolution(kernel), fuse.pointwise(weight))


def depthwise(kernel: Tensor, weight: Tensor) -> nn.Module:
    """Each channel's distinct filters as a depthwise convolution; the 1x1 has a column for each of them."""
    channels = kernel.shape[1]
    filters = [
        kernel[:, c].flatten(1).unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        for c in range(channels)
    ]
    kept = [[i for i, f in enumerate(found) if f.abs().sum() > 0] for found, _ in filters]
    each = max(map(len, kept))
    conv = nn.Conv2d(channels, channels * each, 3, padding=1, groups=channels, bias=False)
    conv.weight.data = kernel.new_zeros(channels * each, 1, 3, 3)
    columns = weight.new_zeros(len(weight), channels * each)
    for c, (found, inverse) in enumerate(filters):
        for k, i in enumerate(kept[c]):
            conv.weight.data[c * each + k, 0] = found[i].view(3, 3)
            columns[:, c * each + k] = weight[:, inverse == i].sum(1)
    return nn.Sequential(conv, fuse.pointwise(columns))


def row_mean(kernel: Tensor, weight: Tensor) -> nn.Module | None:
    """Mean of three along the row, grouped mix along the column, 1x1; None where the taps of a row differ."""
    if not torch.equal(kernel, kernel[..., :1].expand_as(kernel)):
        return None
    vertical = torch.zeros_like(kernel)
    vertical[..., 1] = kernel.sum(-1)
    conv = fuse.grouped_convolution(vertical)
    narrow = nn.Conv2d(
        conv.in_channels, conv.out_channels, (3, 1), padding=(1, 0), groups=conv.groups, bias=False
    )
    narrow.weight.data = conv.weight.data[..., 1:2].clone()
    return nn.Sequential(nn.AvgPool2d((1, 3), 1, (0, 1)), narrow, fuse.pointwise(weight))


def dense(kernel: Tensor, weight: Tensor) -> nn.Module:
    """Stencil and 1x1 multiplied out: nine times the arithmetic in one node."""
    rows, channels = kernel.shape[:2]
    conv = nn.Conv2d(channels, len(weight), 3, padding=1, bias=False)
    conv.weight.data = (weight @ kernel.view(rows, -1)).view(-1, channels, 3, 3)
    return conv


FORMS: dict[str, Callable[[Tensor, Tensor], nn.Module | None]] = {
    "grouped 3x3 + 1x1": grouped,
    "depthwise 3x3 + 1x1": depthwise,
    "row mean + grouped 3x1 + 1x1": row_mean,
    "dense 3x3": dense,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.stencils", description="Exact forms of the patch aggregation."
    )
    parser.add_argument("--backbone", default="resnet18", choices=ARCHITECTURES)
    parser.add_argument(
        "--size", type=int, default=256, help="input height and width; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    args = parser.parse_args(argv)
    settings = SimpleNet.settings_for(args.backbone)
    channels = ResNet(args.backbone).channels
    dims = (settings.level_dim, settings.target_dim)
    torch.manual_seed(0)
    wrong = False
    for level, (kernel, stride) in enumerate(
        zip(fuse.patch_stencils(channels, *dims), (8, 16), strict=True), 2
    ):
        kernel = kernel[kernel.flatten(1).abs().sum(1) > 0]
        weight = torch.randn(1024, len(kernel), dtype=torch.float64)
        x = torch.randn(1, kernel.shape[1], args.size // stride, args.size // stride)
        expected = grouped(kernel, weight)(x.double()).detach()
        calls: dict[str, Callable[[], Any]] = {}
        for name, form in FORMS.items():
            if (module := form(kernel, weight)) is None:
                log(f"layer{level}: no {name}: the taps of a row differ")
                continue
            model = trace(module.float(), x, ("hidden",), dynamic=False).SerializeToString()
            call = session(model, args.threads)
            error = float(np.abs(call(x.numpy())[0] - expected.numpy()).max() / expected.std())
            wrong |= not error <= BOUND
            print(
                f"layer{level}  {name:<30} error {error:.1e}, {sum(p.numel() for p in module.parameters()):,} values"
            )
            calls[name] = partial(call, x.numpy())
        medians = alternate(calls, args.rounds, 10, settle_s=0.05)
        for name, milliseconds in medians.items():
            ratio = milliseconds / medians["grouped 3x3 + 1x1"]
            print(f"layer{level}  {name:<30} {milliseconds:8.3f} ms {ratio:6.2f} x  ONNX Runtime")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
