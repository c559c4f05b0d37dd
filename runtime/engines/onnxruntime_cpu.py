"""ONNX Runtime on the CPU: the engine that is always there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.image import Image, Map


class OnnxRuntime:
    """Keeps its output buffers from call to call, so that a steady stream allocates no outputs."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    def __init__(
        self,
        model: Path,
        map_size: tuple[int, int],
        threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        """`map_size` is (0, 0) where the model gives no map; `precision` is what the model's graph computes in."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            # The provider is named: asked for one that is absent, ONNX Runtime only warns and runs on the CPU.
            self._session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no public base class
            first_line = str(error).strip().splitlines()[0]
            raise EngineError(
                f"onnxruntime {ort.__version__} cannot load {model} ({first_line}); "
                f"pip install --upgrade onnxruntime, or build the bundle again"
            ) from error
        self._names = [output.name for output in self._session.get_outputs()]
        self._map_size = map_size
        self._outputs: dict[int, tuple[Map, Map]] = {}
        self._binding = self._session.io_binding()
        self.precision = precision
        self.description = f"onnxruntime {ort.__version__} CPU {precision}"

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> OnnxRuntime:
        return cls(
            bundle.model(options.precision), bundle.map_size, options.threads, options.precision
        )

    @staticmethod
    def missing() -> str | None:
        try:
            version("onnxruntime")
        except PackageNotFoundError:
            return "pip install onnxruntime"
        return None

    def __call__(self, image: Image) -> tuple[Map, Map]:
        n, binding = len(image), self._binding
        if n not in self._outputs:
            self._outputs[n] = (np.empty(n, np.float32), np.empty((n, *self._map_size), np.float32))
        image = np.ascontiguousarray(image)
        binding.bind_input("image", "cpu", 0, np.uint8, image.shape, image.ctypes.data)
        for name, buffer in zip(
            self._names, self._outputs[n], strict=False
        ):  # score, then map where there is one
            binding.bind_output(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            why = str(error).strip().splitlines()[0]
            raise EngineError(
                f"{self.description} cannot run this graph ({why}); build the bundle again"
            ) from error
        return self._outputs[n]

    def close(self) -> None:
        self._outputs.clear()
