"""A network of a method as two bundles: one for prepared images, one for a camera's frames."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from flawline.benchmarks.measure.meter import measure_cost
from flawline.benchmarks.studies.gpu_check.torch_forms import IMAGES, torch_results, write_graph
from flawline.benchmarks.studies.network import DEMO_IMAGES, build_network
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.export.graphs.edit import islands_in
from flawline.export.graphs.prologue import PROLOGUE
from flawline.export.graphs.source import with_source
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image, prepare
from flawline.runtime.source_frame import MONO, SourceFrame
from flawline.train.blocks.fused import fp32_islands
from flawline.train.data.demo import render
from flawline.train.method import Method

# Good images of a usual training: a memory bank gets as large as it would be with so many.
GOOD_IMAGES = 200
FRAMES = 2
# Operators that take no kernel of their own: views, and what is computed value by value along with
# the operator before it.
FUSED = {
    "Abs", "Add", "Cast", "Clip", "Constant", "Div", "Erf", "Exp", "Flatten", "Identity",
    "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Reshape", "Sigmoid", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Unsqueeze",
}  # fmt: skip


def make_network(
    options: NetworkOptions, source: SourceFrame, folder: Path
) -> tuple[Method, dict[str, Any]]:
    """Make a network and write its bundles to FOLDER/images and FOLDER/frames.

    Returns the method, and what decides about its speed: backbone, size, multiply-accumulates,
    kernels and bytes of the weights in FP16. A folder that is there is replaced. Raises TrainError
    and ExportError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    method, images = build_network(options, IMAGES, GOOD_IMAGES)
    fused = method.fused()
    fp32 = onnx_from_module(fused, method.geometry, method.outputs)
    islands = islands_in(fp32, fp32_islands(fused))
    golden = torch_results(method, images)
    plain = write_graph(method, fp32, islands, golden, folder / "images")
    graph = with_source(fp32, source, method.geometry).model
    golden = _results_of_frames(method, source)
    write_graph(method, graph, (*islands, PROLOGUE), golden, folder / "frames", source)
    types = node_types(fp32)
    network = {
        "backbone": method.settings.backbone,
        "size": list(method.settings.size),
        "macs": measure_cost(partial(fused, torch.from_numpy(images[:1]))).macs,
        "kernels": sum(count for kind, count in types.items() if kind not in FUSED),
        "weight_bytes": plain.model("fp16").stat().st_size,
    }
    return method, network


def _results_of_frames(method: Method, source: SourceFrame) -> Golden:
    """Return frames of a camera with the results of what `prepare` makes of them."""
    frames = []
    for seed in range(FRAMES):
        # Other pictures than those of the images.
        frames.append(_frame(source, 1000 + seed))
    prepared = [prepare(source.picture(frame), method.geometry) for frame in frames]
    results = torch_results(method, np.stack(prepared))
    return Golden(np.stack(frames), results.scores, results.maps)


def _frame(source: SourceFrame, seed: int) -> Image:
    picture, _ = render(DEMO_IMAGES, None, seed)
    picture = np.asarray(cv2.resize(picture, (source.width, source.height)), np.uint8)
    if source.layout == MONO:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8)
    return source.frame_of(picture)
