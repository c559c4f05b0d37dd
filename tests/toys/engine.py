"""The smallest engine: ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import Engine, EngineOptions
from flawline.runtime.engines.arrays import host_image
from flawline.runtime.image import Image, Map


class ReferenceEngine(Engine):
    """Slow, exact and without options."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def __init__(self, evaluator: Any, version: str, shape: tuple[int, ...]) -> None:
        self._evaluator = evaluator
        self._shape = (None, *shape)
        self.precision = "fp32"
        self.description = f"onnx {version} reference fp32"

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> ReferenceEngine:
        import onnx
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(bundle.model("fp32")))
        return cls(evaluator, onnx.__version__, bundle.manifest.graph_input.shape)

    @classmethod
    def missing(cls) -> str | None:
        from importlib.util import find_spec

        return None if find_spec("onnx") else "pip install onnx"

    @classmethod
    def installed(cls) -> str:
        from importlib.metadata import version

        return version("onnx")

    def __call__(self, image: Image) -> tuple[Map, Map]:
        if self._evaluator is None:
            raise RuntimeError("the engine is closed")
        given = np.ascontiguousarray(host_image(image, self._shape))
        outputs = self._evaluator.run(None, {"image": given})
        if len(outputs) == 1:
            return outputs[0], np.empty((len(image), 0, 0), np.float32)
        return outputs[0], outputs[1]

    def close(self) -> None:
        self._evaluator = None
