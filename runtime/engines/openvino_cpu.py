"""OpenVINO on the CPU: FP32, BF16 if the CPU has it, and INT8 from the bundle's Q/DQ graph."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

from flawline.extras import install_command, pip_command
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import last_line
from flawline.runtime.cores import default_threads
from flawline.runtime.engines import Engine, EngineError, EngineOptions
from flawline.runtime.files import has_unicode_name
from flawline.runtime.image import Image, Map

DEVICE = "CPU"


class OpenVino(Engine):
    """Compiles the graph once for each batch size that is used.

    Inputs and outputs are shared with OpenVINO, not copied. By default, OpenVINO computes FP32
    graphs in BF16 on a CPU that has it; this class always sets the precision. `int8` computes in
    INT8 what the graph quantizes, and the rest in BF16 if the CPU has it, else in FP32;
    `description` says which.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        import openvino

        self._ov = openvino
        self._core = openvino.Core()
        self._map_size = bundle.map_size
        self.precision = options.precision
        library = f"openvino {openvino.__version__.partition('-')[0]} {DEVICE}"
        floats = self._float_precision()
        self.description = f"{library} {self.precision}"
        if self.precision == "int8":
            self.description += f" (rest {floats})"
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": floats,
        }
        threads = options.threads or default_threads()
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        # For each batch size: the request, and its scores and maps.
        self._requests: dict[int, tuple[Any, tuple[Map, Map]]] = {}
        path = bundle.model(self.precision)
        try:
            source = path if has_unicode_name(path) else path.read_bytes()
            self._model = self._core.read_model(source)
        except Exception as error:
            # The exceptions of OpenVINO share no public base class.
            raise EngineError(
                f"{library} cannot load {path} ({last_line(error)}); "
                f"{pip_command('install', '--upgrade', 'openvino')}, or build the bundle again"
            ) from error
        size = self._model.input().partial_shape[0]
        if size.is_static:
            self.largest_batch = size.get_length()

    def _float_precision(self) -> str:
        """Return OpenVINO's name of the precision of floating-point operators.

        Raises EngineError if the CPU cannot compute in the requested precision.
        """
        native = "BF16" in self._core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
        if self.precision == "bf16" and not native:
            raise EngineError(
                "this CPU has no native BF16, where it would only be slower; "
                "choose --precision fp32"
            )
        if self.precision == "fp32" or not native:
            return "f32"
        return "bf16"

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> OpenVino:
        return cls(bundle, options)

    @classmethod
    def missing(cls) -> str | None:
        try:
            version("openvino")
        except PackageNotFoundError:
            return install_command("openvino")
        return None

    @classmethod
    def installed(cls) -> str:
        return version("openvino")

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
                f"{self.description} cannot run this graph on {list(image.shape)} "
                f"({last_line(error)}); build the bundle again"
            ) from error
        return outputs

    def _compile(self, n: int) -> tuple[Any, tuple[Map, Map]]:
        """Compile for the batch size n; return the request with its scores and maps.

        Fixed shapes run a few percent faster than a dynamic batch (2 cores, ResNet18, BF16: 3 %).
        """
        model = self._model.clone()
        shape = model.input().partial_shape
        shape[0] = n
        model.reshape(shape)
        request = self._core.compile_model(model, DEVICE, self._settings).create_infer_request()
        scores = np.empty(n, np.float32)
        maps = np.empty((n, *self._map_size), np.float32)
        # A bundle for the score alone has no map.
        for port in model.outputs:
            buffer = scores if "score" in port.names else maps
            request.set_tensor(port, self._ov.Tensor(buffer, shared_memory=True))
        return request, (scores, maps)

    def close(self) -> None:
        self._requests.clear()
