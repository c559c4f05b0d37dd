"""Models as another program might export them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch


def write_convolution(path: Path, size: int | None, dynamic: bool = False) -> Path:
    """Write a model of one convolution, of float images [1, 3, size, size]; None leaves it open.

    With `dynamic` the batch is open too.
    """
    axes = {0: "n"}
    if size is None:
        axes[2] = "h"
    example = torch.zeros(1, 3, size or 64, 64 if size is None else size)
    with warnings.catch_warnings():
        # Notices of torch's exporter about itself.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.nn.Conv2d(3, 2, 3),
            (example,),
            str(path),
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": axes} if dynamic else None,
        )
    return path
