"""The forms of a method in torch, as calls from host to host, and a bundle around a new network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.published import find_published
from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED
from flawline.benchmarks.studies.network import build_network, bundle_of_network, value_range
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.runtime.source_frame import SourceFrame
from flawline.train import TrainError
from flawline.train.blocks.fused import fp32_islands
from flawline.train.checkpoint import load_checkpoint
from flawline.train.method import Method

# Number of images that drift is measured on.
IMAGES = 8


def open_device(name: str) -> torch.device:
    """Return the device. Raises EngineError for a GPU that torch does not find."""
    if name != "cpu" and not torch.cuda.is_available():
        raise EngineError(
            "torch finds no GPU on this machine; use a machine that has one, or try --device cpu"
        )
    return torch.device(name)


def gpu_name(device: torch.device) -> str | None:
    """Return the product name of a GPU; None for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return None


def method_of_bundle(checkpoint: Path, bundle: Bundle) -> Method:
    """Return the method of the checkpoint that a bundle was built from.

    Raises TrainError for a checkpoint that cannot be read or is of another kind of network, and for
    a bundle that takes a camera's frames.
    """
    manifest = bundle.manifest
    if manifest.source is not None:
        raise TrainError(
            f"{bundle.path} takes frames of {manifest.source}, and the forms in PyTorch take "
            f"prepared images; leave --checkpoint out"
        )
    method = load_checkpoint(checkpoint).method
    network = (method.name, method.settings.backbone, method.geometry)
    if network != (manifest.method, manifest.backbone, manifest.geometry):
        raise TrainError(
            f"{bundle.path} was not built from {checkpoint}, which has another method, backbone "
            f"or input; give its own --checkpoint, or leave it out"
        )
    return method


def torch_calls(method: Method, device: torch.device) -> Iterator[tuple[str, InferenceCall]]:
    """Yield name and call of each way to run a method in torch.

    Every call uploads its images and downloads its results.
    """
    published = find_published(method.name).as_published
    if published is not None:
        yield PUBLISHED, partial(run_on, device, published(method).eval().to(device))
    yield "torch eager fp32, fused", partial(run_on, device, method.fused().to(device))
    half = method.fused().half().to(device)
    yield "torch eager fp16, fused", partial(run_on, device, half)
    if device.type == "cuda":
        compiled = torch.compile(half, mode="max-autotune-no-cudagraphs", dynamic=False)
        yield "torch.compile fp16, fused", partial(run_on, device, compiled)


@torch.inference_mode()
def run_on(
    device: torch.device, module: Callable[[torch.Tensor], Any], images: Image
) -> Sequence[NDArray[Any]]:
    outputs = []
    for output in module(torch.from_numpy(images).to(device)):
        outputs.append(output.float().cpu().numpy())
    return outputs


def network_with_bundle(options: NetworkOptions, folder: Path) -> tuple[Method, Bundle]:
    """Make a network with statistics of real features, and write a bundle around it."""
    method, images = build_network(options, IMAGES)
    return method, write_study_bundle(method, images, folder)


def write_study_bundle(method: Method, images: Image, folder: Path) -> Bundle:
    """Write a bundle of FP32 and FP16 graphs; see `write_graph`. `images` is uint8 [n, H, W, 3]."""
    fused = method.fused()
    fp32 = onnx_from_module(fused, method.geometry, method.outputs)
    return write_graph(method, fp32, fp32_islands(fused), torch_results(method, images), folder)


def torch_results(method: Method, images: Image) -> Golden:
    """Return prepared images, uint8 [n, H, W, 3], with the results of the literal form in FP32."""
    with torch.inference_mode():
        score, anomaly_map = method(torch.from_numpy(images))
    return Golden(images, score.numpy(), anomaly_map.numpy())


def write_graph(
    method: Method,
    fp32: bytes,
    islands: tuple[str, ...],
    golden: Golden,
    folder: Path,
    source: SourceFrame | None = None,
) -> Bundle:
    """Write a bundle of an FP32 graph and of the same in FP16, with wide tolerances.

    Drift is reported by this study, so no engine is refused for it. `source` are the camera's
    frames that the graph takes.
    """
    tolerance = 10 * value_range(golden.scores, golden.maps) + 1.0
    models = {"fp32": fp32, "fp16": to_fp16(fp32, islands)}
    return bundle_of_network(method, models, golden, folder, tolerance, islands, source)
