"""The stages of a method's exported form in torch, in FP32 and on a GPU also in FP16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flawline.benchmarks.studies.gpu_check.stages import Stage, Stages
from flawline.benchmarks.studies.gpu_check.torch_forms import run_on
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.train.method import Method

Forward = Callable[[Tensor], Any]


def torch_stages(method: Method, device_name: str, golden: Golden) -> Iterator[tuple[str, Stages]]:
    """Yield the precision of each form, and its stages with their description."""
    device = torch.device(device_name)
    yield "fp32", _stages(method, device, torch.float32, golden)
    if device.type != "cpu":
        yield "fp16", _stages(method, device, torch.float16, golden)


def _stages(method: Method, device: torch.device, dtype: torch.dtype, golden: Golden) -> Stages:
    module = method.fused().to(dtype).to(device)
    precision = "fp32" if dtype == torch.float32 else "fp16"
    description = f"torch {torch.__version__} eager {precision}, fused"
    if device.type != "cpu":
        yield description, Stage("engine", _OnDevice(module, device), golden)

    def from_host(images: Image) -> Sequence[NDArray[Any]]:
        return run_on(device, module, images)

    yield description, Stage("host", from_host, golden)


class _OnDevice:
    """Runs a module on images that stay on the device; the map stays there, too."""

    def __init__(self, module: Forward, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._images: Image | None = None
        self._given: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, images: Image) -> Sequence[NDArray[Any]]:
        if images is not self._images:
            self._given = torch.from_numpy(images).to(self._device)
            self._images = images
        assert self._given is not None
        score, _ = self._module(self._given)
        return [np.asarray(score.float().cpu())]
