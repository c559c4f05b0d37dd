"""ONNX models in plain sessions of ONNX Runtime, without the engine that ships around them.

The literal form, the backbone alone and models of other programs can only be run this way, so that
all of them are timed under the same conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.runtime.engines import EngineError
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.image import Image

# uint8 [N, H, W, 3] to score [N] and, where there is one, map [N, H, W].
InferenceCall = Callable[[Image], Sequence[NDArray[Any]]]


def inference_call(model: bytes, threads: int | None) -> InferenceCall:
    """Return a call that runs all outputs of a serialised model with the one input `image`."""
    session = open_session(model, threads)

    def call(image: Image) -> Sequence[NDArray[Any]]:
        outputs: Sequence[NDArray[Any]] = session.run(None, {"image": image})
        return outputs

    return call


def external_call(path: Path, size: tuple[int, int], threads: int | None) -> InferenceCall:
    """Return a call that runs the model of another program on random values of its own signature.

    The image that the call gets is ignored. Raises EngineError for a file that ONNX Runtime cannot
    load, and for a model that does not take float images of `size` (height, width).
    """
    try:
        session = open_session(path, threads)
    except EngineError as error:
        raise EngineError(f"{path} cannot be timed: {error}") from error
    inputs = {}
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
