"""The messages of the protocol: images, results, and what a model declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError
from flawline.runtime.image import Image, Map

INPUT = "image"
MAP = "map"
OPEN = -1  # a side of a shape that the model leaves open
REMEDY = "serve the model that flawline triton writes from this bundle"


def new_request(model: str, version: str, image: Image, outputs: Sequence[str]) -> Any:
    """Return a ModelInferRequest for a batch of images, which are copied into it."""
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    request = ModelInferRequest(model_name=model, model_version=version)
    tensor = request.inputs.add()
    tensor.name = INPUT
    tensor.datatype = "UINT8"
    tensor.shape.extend(image.shape)
    for name in outputs:
        request.outputs.add().name = name
    request.raw_input_contents.append(np.ascontiguousarray(image).tobytes())
    return request


def read_answer(answer: Any, count: int, map_size: tuple[int, int]) -> tuple[Map, Map]:
    """Return the scores [count] and maps [count, *map_size] of a ModelInferResponse.

    `map_size` (0, 0) is that of a bundle without maps. Raises EngineError for other outputs.
    """
    scores = _read_output(answer, "score", (count,))
    if map_size == (0, 0):
        return scores, np.empty((count, 0, 0), np.float32)
    return scores, _read_output(answer, MAP, (count, *map_size))


def _read_output(answer: Any, name: str, shape: tuple[int, ...]) -> Map:
    """Return one output as a new array of float32."""
    names = [output.name for output in answer.outputs]
    if name not in names:
        raise EngineError(f"the server gives no output {name}, only {names}; {REMEDY}")
    place = names.index(name)
    output = answer.outputs[place]
    if output.datatype != "FP32":
        raise EngineError(f"the server gives {name} as {output.datatype}, not FP32; {REMEDY}")
    if place < len(answer.raw_output_contents):
        data = answer.raw_output_contents[place]
        # An incomplete value at the end is a wrong size, and not ValueError.
        values = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float32)
    else:
        values = np.array(output.contents.fp32_contents, np.float32)
    # Triton adds an axis of one to the score, because it has no batch of scalars.
    if values.size != np.prod(shape) or tuple(output.shape) not in (shape, (*shape, 1)):
        found = list(output.shape)
        raise EngineError(f"the server gives {name} {found}, not {list(shape)}; {REMEDY}")
    return values.reshape(shape)


def check_metadata(metadata: Any, bundle: Bundle) -> int | None:
    """Compare what a model declares with a bundle; return the largest batch, or None for any.

    A server need not declare inputs and outputs, which are then not compared. Raises EngineError
    for an input or output of another name, type or shape.
    """
    largest = None
    shape = (OPEN, *bundle.manifest.graph_input.shape)
    if metadata.inputs:
        _require_tensor(metadata.inputs, "input", INPUT, "UINT8", [shape])
        first = metadata.inputs[0].shape[0]
        largest = None if first == OPEN else int(first)
    if metadata.outputs:
        _require_tensor(metadata.outputs, "output", "score", "FP32", [(OPEN,), (OPEN, 1)])
        if bundle.has_map:
            shape = (OPEN, *bundle.map_size)
            _require_tensor(metadata.outputs, "output", MAP, "FP32", [shape])
    return largest


def _require_tensor(
    tensors: Any, kind: str, name: str, datatype: str, shapes: Sequence[Sequence[int]]
) -> None:
    """Raise EngineError unless a tensor of this name has the type and one of the shapes."""
    expected = f"{kind} {name} {datatype} {list(shapes[0])}"
    declared = []
    for tensor in tensors:
        declared.append(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}")
        if tensor.name != name or tensor.datatype != datatype:
            continue
        for shape in shapes:
            if _fits(tensor.shape, shape):
                return
    raise EngineError(
        f"the model has the {kind}s {', '.join(declared)}, and the bundle needs the {expected}; "
        f"{REMEDY}"
    )


def _fits(declared: Sequence[int], expected: Sequence[int]) -> bool:
    """Tell whether two shapes agree where neither of them is open."""
    if len(declared) != len(expected):
        return False
    return all(a == b or OPEN in (a, b) for a, b in zip(declared, expected, strict=True))


def check_config(config: Any, precision: str, sha256: str) -> int | None:
    """Compare Triton's configuration with the graph of a bundle; return the largest batch or None.

    `sha256` is the hash of the graph. The configuration states it, and the precision, if Flawline
    wrote it. Raises EngineError for another one.
    """
    computes = config.parameters["precision"].string_value
    if computes and computes != precision:
        raise EngineError(f"the model computes in {computes}; choose --precision {computes}")
    stated = config.parameters["onnx_sha256"].string_value
    if stated and stated != sha256:
        raise EngineError(
            f"the model was made from another graph (SHA-256 {stated[:12]}, and not "
            f"{sha256[:12]}); {REMEDY}"
        )
    return int(config.max_batch_size) or None
