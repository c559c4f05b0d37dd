"""OpenVINO on the CPU: FP32, BF16 if the CPU has it, and INT8 from the bundle's Q/DQ graph."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

from flawline.extras import install_command, pip_command
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import last_line
from flawline.runtime.cores import default_threads
from flawline.runtime.engines import Engine, EngineError, EngineOptions
from flawline.runtime.engines.arrays import host_image
from flawline.runtime.image import Image, Map
from flawline.runtime.source_frame import PREPARED

DEVICE = "CPU"
PRECISION = "INFERENCE_PRECISION_HINT"
# OpenVINO's names of the types that a layer computes in, and the precisions that they are of.
TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
# Layers that compute nothing, and those that compute in INT8; others may read the image's bytes.
MOVING_LAYERS = ("Input", "Output", "Reorder", "Const", "Reshape", "Transpose", "Convert")
INT8_LAYERS = ("Convolution", "FullyConnected", "MatMul")
# A second request waits for each stream, so that none is idle while the next image is prepared.
REQUESTS_PER_STREAM = 2

NO_BF16 = "this CPU has no native BF16, where it would only be slower; choose --precision fp32"


@dataclass
class _Request:
    """An infer request of one batch size, with its scores and maps.

    `image` is its input, which must not be freed while it runs. `preparation` turns a frame of a
    camera into the input of `infer`; None if that takes the image.
    """

    infer: Any
    outputs: tuple[Map, Map]
    image: Image
    preparation: Any = None


class OpenVino(Engine):
    """Compiles the graph once for each batch size that is used.

    Inputs and outputs are shared with OpenVINO, not copied. By default, OpenVINO computes FP32
    graphs in BF16 on a CPU that has it; this class always sets the precision. `int8` computes in
    INT8 what the graph quantizes, and the rest in BF16 if the CPU has it, else in FP32;
    `description` says which. On an x86 CPU without VNNI, 8-bit sums overflow at 16 bits, and the
    self-test decides whether the scores are near enough.

    Streams are those of OpenVINO (NUM_STREAMS): the threads are divided among them.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")
    offers_streams: ClassVar[bool] = True

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
        if options.streams is not None:
            self._settings["PERFORMANCE_HINT"] = "THROUGHPUT"
            self._settings["NUM_STREAMS"] = options.streams
            self.in_flight = REQUESTS_PER_STREAM * options.streams
            noun = "stream" if options.streams == 1 else "streams"
            self.description += f", {options.streams} {noun}"
        # For each batch size: its requests, the one that was used longest ago first.
        self._requests: dict[int, deque[_Request]] = {}
        # What was compiled last.
        self._compiled: Any = None
        # Those that were submitted, in their order.
        self._running: deque[_Request] = deque()
        path = bundle.model(self.precision)
        data = bundle.read_model(self.precision)
        try:
            self._model = self._core.read_model(data)
        except Exception as error:
            # The exceptions of OpenVINO share no public base class.
            raise EngineError(
                f"{library} cannot load {path} ({last_line(error)}); "
                f"{pip_command('install', '--upgrade', 'openvino')}, or build the bundle again"
            ) from error
        shape = self._model.input().partial_shape
        self._shape = [size.get_length() if size.is_static else None for size in shape]
        if self._shape[0] is not None:
            self.largest_batch = self._shape[0]

    def _float_precision(self) -> str:
        """Return OpenVINO's name of the precision of floating-point operators.

        Raises EngineError if the CPU cannot compute in the requested precision.
        """
        native = _has_bf16(self._core)
        if self.precision == "bf16" and not native:
            raise EngineError(NO_BF16)
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

    @classmethod
    def unsuited(cls, precision: str) -> str | None:
        if precision != "bf16":
            return None
        import openvino

        return None if _has_bf16(openvino.Core()) else NO_BF16

    def __call__(self, image: Image) -> tuple[Map, Map]:
        if self._running:
            raise RuntimeError("the results of submitted batches were not taken")
        request = self._request(image)
        with self._explained(request.image):
            request.infer.infer()
        return request.outputs

    def submit(self, image: Image) -> None:
        if len(self._running) >= self.in_flight:
            raise RuntimeError(f"the results of {self.in_flight} batches were not taken")
        request = self._request(image)
        with self._explained(request.image):
            request.infer.start_async()
        self._running.append(request)

    def result(self) -> tuple[Map, Map]:
        if not self._running:
            raise RuntimeError("no batch was submitted")
        request = self._running.popleft()
        with self._explained(request.image):
            request.infer.wait()
        return request.outputs

    def layer_types(self) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        layers = []
        if self._compiled is not None:
            layers = self._compiled.get_runtime_model().get_ops()
        for layer in layers:
            facts = layer.get_rt_info()
            kind = str(facts["layerType"].astype(str))
            precision = TYPES.get(str(facts["runtimePrecision"].astype(str)).lower())
            if precision is None or kind in MOVING_LAYERS:
                continue
            if precision != "int8" or kind in INT8_LAYERS:
                counts[precision] += 1
        return counts

    def _request(self, image: Image) -> _Request:
        """Return a request that is not running, with this image as its input."""
        if self._model is None:
            raise RuntimeError("the engine is closed")
        # Without a copy, but for one that OpenVINO cannot share: strided or read-only.
        image = np.require(host_image(image, self._shape), requirements=("C", "W"))
        with self._explained(image):
            if len(image) not in self._requests:
                self._requests[len(image)] = self._compile(image)
            requests = self._requests[len(image)]
            # Fewer than `in_flight` are running, and results are taken in order.
            requests.rotate(-1)
            request = requests[-1]
            tensor = self._ov.Tensor(image, shared_memory=True)
            request.image = image
            if request.preparation is None:
                request.infer.set_input_tensor(tensor)
            else:
                request.preparation.set_input_tensor(tensor)
                request.preparation.infer()
        return request

    @contextmanager
    def _explained(self, image: Image) -> Iterator[None]:
        """Raise the exceptions of OpenVINO, which share no public base class, as EngineError."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.description} cannot run this graph on {list(image.shape)} "
                f"({last_line(error)}); build the bundle again"
            ) from error

    def _compile(self, image: Image) -> deque[_Request]:
        """Compile for the batch size of an image, and make `in_flight` requests.

        Fixed shapes run a few percent faster than a dynamic batch (2 cores, ResNet18, BF16: 3 %).
        """
        n = len(image)
        model = self._model.clone()
        shape = model.input().partial_shape
        shape[0] = n
        model.reshape(shape)
        preparation = None
        if self._settings[PRECISION] != "f32":
            model, preparation = self._without_preparation(model)
        compiled = self._core.compile_model(model, DEVICE, self._settings)
        self._compiled = compiled
        self._require_streams(compiled.get_property("NUM_STREAMS"))
        requests: deque[_Request] = deque()
        for _ in range(self.in_flight):
            scores = np.empty(n, np.float32)
            maps = np.empty((n, *self._map_size), np.float32)
            infer = compiled.create_infer_request()
            # A bundle for the score alone has no map.
            for port in model.outputs:
                buffer = scores if "score" in port.names else maps
                infer.set_tensor(port, self._ov.Tensor(buffer, shared_memory=True))
            request = _Request(infer, (scores, maps), image)
            if preparation is not None:
                request.preparation = preparation.create_infer_request()
                infer.set_input_tensor(request.preparation.get_output_tensor())
            requests.append(request)
        return requests

    def _require_streams(self, got: int) -> None:
        """Raise EngineError if OpenVINO has fewer streams than it was asked for, or more."""
        wanted = self._settings.get("NUM_STREAMS", got)
        if got != wanted:
            raise EngineError(
                f"--streams {wanted}: OpenVINO computes {got} at the same time with the threads "
                f"and cores that it may use; give --streams {got}"
            )

    def _without_preparation(self, model: Any) -> tuple[Any, Any]:
        """Cut a model after the preparation of a camera's frames.

        Returns the model that is left, and the preparation compiled in FP32: in BF16 its results
        would be off by whole grey levels. That is None for a model that takes prepared images.
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
                exact = {**self._settings, PRECISION: "f32"}
                compiled = self._core.compile_model(first, DEVICE, exact)
                return self._ov.Model(model.get_results(), [prepared]), compiled
        return model, None

    def close(self) -> None:
        # Those that run write to arrays that are freed with them.
        while self._running:
            # The failure of a batch whose result no one takes is no news.
            with suppress(Exception):
                self._running.popleft().infer.wait()
        # The weights are freed now, even if something still refers to the engine.
        self._requests.clear()
        self._compiled = None
        self._model = None


def _has_bf16(core: Any) -> bool:
    """Whether the CPU computes in BF16, or only emulates it."""
    return "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
