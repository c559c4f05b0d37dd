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
from flawline.runtime.source_frame import PREPARED

DEVICE = "CPU"
PRECISION = "INFERENCE_PRECISION_HINT"


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
            PRECISION: floats,
        }
        threads = options.threads or default_threads()
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        # For each batch size: the requests in their order, and the scores and maps of the last.
        self._requests: dict[int, tuple[list[Any], tuple[Map, Map]]] = {}
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
            requests, outputs = self._requests[len(image)]
            requests[0].set_input_tensor(self._ov.Tensor(image, shared_memory=True))
            for request in requests:
                request.infer()
        except Exception as error:
            raise EngineError(
                f"{self.description} cannot run this graph on {list(image.shape)} "
                f"({last_line(error)}); build the bundle again"
            ) from error
        return outputs

    def _compile(self, n: int) -> tuple[list[Any], tuple[Map, Map]]:
        """Compile for the batch size n; return the requests, and the scores and maps of the last.

        Fixed shapes run a few percent faster than a dynamic batch (2 cores, ResNet18, BF16: 3 %).
        """
        model = self._model.clone()
        shape = model.input().partial_shape
        shape[0] = n
        model.reshape(shape)
        models = [(model, self._settings)]
        if self._settings[PRECISION] != "f32":
            models = self._with_preparation_in_fp32(model)
        requests: list[Any] = []
        for part, settings in models:
            request = self._core.compile_model(part, DEVICE, settings).create_infer_request()
            if requests:
                request.set_input_tensor(requests[-1].get_output_tensor())
            requests.append(request)
        scores = np.empty(n, np.float32)
        maps = np.empty((n, *self._map_size), np.float32)
        # A bundle for the score alone has no map.
        for port in models[-1][0].outputs:
            buffer = scores if "score" in port.names else maps
            requests[-1].set_tensor(port, self._ov.Tensor(buffer, shared_memory=True))
        return requests, (scores, maps)

    def _with_preparation_in_fp32(self, model: Any) -> list[tuple[Any, dict[str, Any]]]:
        """Cut a model after the preparation of a camera's frames; return both with their settings.

        In BF16 its results would be off by whole grey levels. A model that takes prepared images is
        returned as it is.
        """
        for node in model.get_ordered_ops():
            for output in node.outputs():
                if PREPARED not in output.get_names():
                    continue
                readers = output.get_target_inputs()
                prepared = self._ov.opset13.parameter(output.shape, output.element_type)
                for reader in readers:
                    reader.replace_source_output(prepared.output(0))
                first = self._ov.Model([output], model.get_parameters())
                second = self._ov.Model(model.get_results(), [prepared])
                exact = {**self._settings, PRECISION: "f32"}
                return [(first, exact), (second, self._settings)]
        return [(model, self._settings)]

    def close(self) -> None:
        self._requests.clear()
