"""Graphs in plain sessions of ONNX Runtime and OpenVINO, ours and others', so that all are run alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.runtime.engines import missing
from flawline.train import TrainError

AGAINST = "another's"
ORT, OPENVINO = "onnxruntime fp32", "openvino default"

Call = Callable[[Any], Any]  # uint8 [N, H, W, 3] to (score, map) as arrays
Calls = dict[tuple[str, str], Call]  # by form and engine


def session(model: bytes, threads: int | None) -> Call:
    """ONNX Runtime without our engine around it, so that the literal form and the bare backbone run alike."""
    opened = _onnxruntime(model, threads)
    return lambda image: opened.run(None, {"image": image})


def _onnxruntime(model: bytes | str, threads: int | None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def openvino_session(path: Path, threads: int | None) -> Call:
    """OpenVINO as it is left to itself, which computes in BF16 where the CPU can; compiled for each batch."""
    requests: dict[int, Any] = {}

    def call(image: Any) -> Any:
        if len(image) not in requests:
            requests[len(image)] = _openvino(path, threads, len(image)).create_infer_request()
        found = requests[len(image)].infer({"image": image})
        return found["score"], found["map"]

    return call


def _openvino(path: Path, threads: int | None, batch: int) -> Any:
    """The compiled model, the first axis of each input fixed where it is open."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    shapes = {port: port.partial_shape for port in model.inputs}
    for shape in shapes.values():
        if shape[0].is_dynamic:
            shape[0] = batch
    model.reshape(shapes)
    limit = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    return core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **limit})


def against(
    onnx_file: Path | None, openvino_file: Path | None, size: tuple[int, int], threads: int | None
) -> Calls:
    """Others' models, each called with random values of its own signature. Raises TrainError."""
    found: Calls = {}
    if onnx_file is not None:
        opened = _opened(onnx_file, lambda: _onnxruntime(str(onnx_file), threads))
        fed = {
            i.name: _random(onnx_file, i.shape, i.type == "tensor(float)", size)
            for i in opened.get_inputs()
        }
        found[AGAINST, ORT] = lambda image: opened.run(None, fed)
    if openvino_file is not None:
        if why := missing("openvino"):
            raise TrainError(f"--against-openvino: {why}")
        compiled = _opened(openvino_file, lambda: _openvino(openvino_file, threads, 1))
        request, given = compiled.create_infer_request(), {}
        for port in compiled.inputs:
            shape = [None if n.is_dynamic else n.get_length() for n in port.partial_shape]
            given[port] = _random(
                openvino_file, shape, port.element_type.to_dtype() == np.float32, size
            )
        found[AGAINST, OPENVINO] = lambda image: request.infer(given)
    return found


def _opened(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # what the two libraries raise shares no public base class
        raise TrainError(
            f"{path} cannot be loaded ({str(error).strip().splitlines()[-1]}); export it again"
        ) from error


def _random(path: Path, shape: Sequence[Any], floats: bool, size: tuple[int, int]) -> Any:
    shape = [1 if i == 0 and not isinstance(n, int) else n for i, n in enumerate(shape)]
    if not floats or size not in (tuple(shape[1:3]), tuple(shape[2:4])):
        raise TrainError(
            f"{path} does not take float images of {size[1]}x{size[0]} as here; export it for that, or see --size"
        )
    return np.random.default_rng(0).random(shape, np.float32)
