"""ONNX models in plain sessions of ONNX Runtime, without the engine that ships around them.

The literal form and the backbone alone can only be run this way, so that all of them are timed
under the same conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

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
