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

    def __init__(self, evaluator: Any, version: str) -> None:
        self._evaluator = evaluator
        self.precision = "fp32"
        self.description = f"onnx {version} reference fp32"

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> ReferenceEngine:
        import onnx
        from onnx.reference import ReferenceEvaluator

        return cls(ReferenceEvaluator(str(bundle.model("fp32"))), onnx.__version__)

    @classmethod
    def missing(cls) -> str | None:
        from importlib.util import find_spec

        return None if find_spec("onnx") else "pip install onnx"

    @classmethod
    def installed(cls) -> str:
        from importlib.metadata import version

        return version("onnx")

    def __call__(self, image: Image) -> tuple[Map, Map]:
        outputs = self._evaluator.run(None, {"image": np.ascontiguousarray(host_image(image))})
        if len(outputs) == 1:
            return outputs[0], np.empty((len(image), 0, 0), np.float32)
        return outputs[0], outputs[1]

    def close(self) -> None:
        self._evaluator = None
