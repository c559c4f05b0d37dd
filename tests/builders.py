"""Images, data sets and small detectors that tests of several files share. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.image import Geometry
from flawline.train.data.demo import render
from flawline.train.method import Fit, Method
from flawline.train.methods.simplenet import SimpleNet, SimpleNetSettings

# Number of images in each folder of `write_squares`.
SQUARES = {"train/good": 20, "test/good": 4, "test/square": 4}


def random_images(size: int = 64, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Noise, uint8 [count, size, size, 3]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def board_images(size: int = 64, count: int = 10) -> list[Any]:
    """Good boards of the demo data, uint8 [size, size, 3] each."""
    return [render("board", None, seed, size)[0] for seed in range(count)]


def write_squares(root: Path, counts: dict[str, int] = SQUARES) -> Path:
    """Write a data set in MVTec AD's layout: grey noise, and a white square on defective images."""
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(120, 12, (80, 90, 3)).clip(0, 255).astype(np.uint8)
            if folder.endswith("square"):
                image[20:50, 30:60] = 255
            (root / folder / f"{number:03d}.png").write_bytes(cv2.imencode(".png", image)[1])
    return root


def fit_method(method: Method, images: Any, steps: int = 1, seed: int = 0, **fields: Any) -> Fit:
    """Fit a method completely and return the record, which has its notes."""
    record = Fit(list(images), steps, seed, **fields)
    assert method.fit(record) == steps
    assert not method.training
    return record


def exported(method: Method) -> bytes:
    """The FP32 graph of a method."""
    return onnx_from_module(method.fused(), method.geometry, method.outputs)


def small_simplenet(
    backbone: str = "resnet18",
    size: int = 64,
    level: int = 48,
    target: int = 48,
    vectors: int | None = None,
) -> SimpleNet:
    """A small SimpleNet whose BatchNorms and biases differ from their initial values."""
    torch.manual_seed(0)
    geometry = Geometry("stretch", size, size)
    settings = SimpleNetSettings(backbone, geometry, level, target, hidden=32, vectors=vectors)
    model = SimpleNet(settings)
    model.backbone.load("random", 0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()
