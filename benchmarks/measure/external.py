"""The models of other programs, timed on random input of their own signature.

They fit no bundle, so the libraries of the engines are called directly, with the same settings as
in the engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.runtime.console import last_line, log
from flawline.runtime.cores import default_threads
from flawline.runtime.engines import REFERENCE_ENGINE, EngineError, missing
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.image import Image
from flawline.runtime.precisions import FP32

OPENVINO = "openvino"

Inputs = dict[str, NDArray[np.float32]]


def external_calls(
    path: Path, size: tuple[int, int], threads: int | None
) -> dict[str, InferenceCall]:
    """Return a call for each engine and precision, such as "onnxruntime fp32".

    The image that a call gets is ignored. OpenVINO is left out with a note where it cannot run the
    model. Raises EngineError for a file that ONNX Runtime cannot load, and for a model that does
    not take float images of `size` (height, width).
    """
    call, inputs = _in_onnxruntime(path, size, threads)
    calls = {f"{REFERENCE_ENGINE} {FP32.name}": call}
    if missing(OPENVINO) is None:
        name = f"{OPENVINO} {FP32.name}"
        try:
            calls[name] = _in_openvino(path, inputs, threads)
        except EngineError as error:
            log(f"{name} is left out: {error}")
    return calls


def _in_onnxruntime(
    path: Path, size: tuple[int, int], threads: int | None
) -> tuple[InferenceCall, Inputs]:
    """Return the call, and the random values of the inputs of the model by their names."""
    try:
        session = open_session(path, threads)
    except EngineError as error:
        raise EngineError(f"{path} cannot be timed: {error}") from error
    inputs: Inputs = {}
    for description in session.get_inputs():
        shape = _fixed_batch(description.shape)
        # An image of another size would not be the same work.
        if description.type != "tensor(float)" or not _has_size(shape, size):
            raise EngineError(
                f"{path} does not take float images of {size[1]}x{size[0]}, which this benchmark "
                "compares; export it for that size, or see --size"
            )
        inputs[description.name] = np.random.default_rng(0).random(shape, np.float32)

    def call(image: Image) -> Sequence[NDArray[Any]]:
        outputs: Sequence[NDArray[Any]] = session.run(None, inputs)
        return outputs

    return call, inputs


def _in_openvino(path: Path, inputs: Inputs, threads: int | None) -> InferenceCall:
    """Return the call on the CPU. Raises EngineError where OpenVINO cannot run the model."""
    import openvino

    # Without the hint, OpenVINO computes in BF16 on a CPU that has it.
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    used = threads or default_threads()
    if used is not None:
        settings["INFERENCE_NUM_THREADS"] = used
    shapes = {name: list(values.shape) for name, values in inputs.items()}
    try:
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape(shapes)
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        for name, values in inputs.items():
            request.set_tensor(name, openvino.Tensor(values, shared_memory=True))
    except Exception as error:
        # The exceptions of OpenVINO share no public base class.
        raise EngineError(f"{path} cannot be timed: {last_line(error)}") from error

    def call(image: Image) -> Sequence[NDArray[Any]]:
        request.infer()
        return [tensor.data for tensor in request.output_tensors]

    return call


def _fixed_batch(shape: Sequence[int | str | None]) -> list[Any]:
    """Set the first axis to 1 where it is dynamic."""
    fixed = list(shape)
    if fixed and not isinstance(fixed[0], int):
        fixed[0] = 1
    return fixed


def _has_size(shape: Sequence[Any], size: tuple[int, int]) -> bool:
    """Say whether [N, H, W, C] or [N, C, H, W] has this height and width."""
    return size in (tuple(shape[1:3]), tuple(shape[2:4]))
