"""OpenVINO on the CPU: in FP32, in BF16 where the CPU has it, and in INT8 from the bundle's Q/DQ graph."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.image import Image, Map

DEVICE = "CPU"


class OpenVino:
    """Compiles the graph once for each batch size it meets, which takes a moment; input and outputs are shared, not
    copied.

    OpenVINO left to itself computes FP32 graphs in BF16 wherever the CPU can: here every precision is asked for by
    name. `int8` computes in INT8 what the graph quantizes and the rest in BF16 where the CPU has it, else in FP32;
    `description` says which.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        import openvino

        self._ov, self._core = openvino, openvino.Core()
        self._map_size, self.precision = bundle.map_size, options.precision
        path = bundle.model("int8" if options.precision == "int8" else "fp32")
        native = "BF16" in self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        if options.precision == "bf16" and not native:
            raise EngineError(
                "this CPU has no native BF16, where it would only be slower; choose --precision fp32"
            )
        floats = "f32" if options.precision == "fp32" or not native else "bf16"
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": floats,
        }
        if options.threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads
        name = f"openvino {openvino.__version__.partition('-')[0]} {DEVICE}"
        self.description = f"{name} {self.precision}" + (
            f" (rest {floats})" if self.precision == "int8" else ""
        )
        try:
            self._model = self._core.read_model(path)
        except Exception as error:  # its exceptions share no public base class
            raise EngineError(
                f"{name} cannot load {path} ({_reason(error)}); "
                f"pip install --upgrade openvino, or build the bundle again"
            ) from error
        self._requests: dict[int, tuple[Any, tuple[Map, Map]]] = {}

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> OpenVino:
        return cls(bundle, options)

    @staticmethod
    def missing() -> str | None:
        try:
            version("openvino")
        except PackageNotFoundError:
            return "pip install 'flawline[openvino]'"
        return None

    def __call__(self, image: Image) -> tuple[Map, Map]:
        image = np.ascontiguousarray(image)
        try:
            if len(image) not in self._requests:
                self._requests[len(image)] = self._compile(len(image))
            request, outputs = self._requests[len(image)]
            request.set_input_tensor(self._ov.Tensor(image, shared_memory=True))
            request.infer()
        except Exception as error:
            raise EngineError(
                f"{self.description} cannot run this graph on {list(image.shape)} ({_reason(error)}); "
                f"build the bundle again"
            ) from error
        return outputs

    def _compile(self, n: int) -> tuple[Any, tuple[Map, Map]]:
        """Fixed shapes run a few percent faster than a dynamic batch (2 cores, ResNet18, BF16: 3 %)."""
        model = self._model.clone()
        shape = model.input().partial_shape
        shape[0] = n
        model.reshape(shape)
        request = self._core.compile_model(model, DEVICE, self._settings).create_infer_request()
        outputs = np.empty(n, np.float32), np.empty((n, *self._map_size), np.float32)
        for port in model.outputs:  # a bundle for the score alone has no map
            owned = outputs[0] if "score" in port.names else outputs[1]
            request.set_tensor(port, self._ov.Tensor(owned, shared_memory=True))
        return request, outputs

    def close(self) -> None:
        self._requests.clear()


def _reason(error: Exception) -> str:
    """OpenVINO begins with where in its sources it failed; the last line says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
