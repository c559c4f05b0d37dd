"""ONNX Runtime on the CPU: the engine that is always installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.extras import pip_command
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import first_line
from flawline.runtime.cores import default_threads
from flawline.runtime.engines import Engine, EngineError, EngineOptions
from flawline.runtime.engines.arrays import host_image
from flawline.runtime.engines.onnxruntime_types import profiled_types
from flawline.runtime.files import has_unicode_name
from flawline.runtime.image import Image, Map

PROVIDER = "CPUExecutionProvider"
# log_severity_level: its own lines would hide Flawline's message, which quotes the reason.
FATAL_ONLY = 4


def open_session(
    model: bytes | Path,
    threads: int | None = None,
    options: Any = None,
    name: str = "this graph",
) -> Any:
    """Create an onnxruntime.InferenceSession on the CPU: the one place that does.

    `threads` limits the threads of an operator; None uses the cores that this process may use, of
    which ONNX Runtime itself considers neither the affinity nor a quota. `options` are
    onnxruntime.SessionOptions to start from, for example with profiling enabled. `name` is what a
    message calls a model in memory. Raises EngineError if the model cannot be loaded.
    """
    import onnxruntime as ort

    options = options or ort.SessionOptions()
    # Without it, 8-bit matrix products overflow on x86 CPUs that have no VNNI. INT8 graphs are
    # compared with FP32 in this library.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = FATAL_ONLY
    if threads is None:
        threads = default_threads()
    if threads is not None:
        options.intra_op_num_threads = threads
    source: bytes | str
    if isinstance(model, Path):
        name = str(model)
        source = name if has_unicode_name(model) else model.read_bytes()
    else:
        source = model
    try:
        # Without a named provider, ONNX Runtime warns about absent ones and chooses by itself.
        # Its fallback would load the model again after a failure, and print to stdout.
        return ort.InferenceSession(source, options, [PROVIDER], enable_fallback=0)
    except Exception as error:
        # The exceptions of ONNX Runtime share no public base class.
        raise EngineError(
            f"onnxruntime {ort.__version__} cannot load {name} ({first_line(error)}); "
            f"{pip_command('install', '--upgrade', 'onnxruntime')}, or build the bundle again"
        ) from error


class OnnxRuntime(Engine):
    """Keeps its output buffers from call to call, so that a steady stream allocates no outputs."""

    # It computes the INT8 graph correctly, which the export relies on, but slower than FP32; see
    # export/graphs/to_int8.py.
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    # Returns the graph once more; None for one that is not from a bundle.
    _read: Callable[[], bytes] | None = None

    def __init__(
        self,
        model: bytes | Path,
        map_size: tuple[int, int],
        threads: int | None = None,
        precision: str = "fp32",
        name: str = "this graph",
    ) -> None:
        """Load a graph, from a file or from memory.

        `map_size` is the height and width of the map, (0, 0) if the graph has none. `precision` is
        what the graph computes in, and only names it; `name` is that of a graph in memory.
        """
        import onnxruntime as ort

        self._session = open_session(model, threads, name=name)
        try:
            self._names = [output.name for output in self._session.get_outputs()]
            shape = self._session.get_inputs()[0].shape
        except UnicodeDecodeError as error:
            # ONNX Runtime loads such a graph.
            raise EngineError(
                f"{name} has a name that is not UTF-8 text; build the bundle again"
            ) from error
        # An open size has a name, or is None.
        self._shape = [size if isinstance(size, int) else None for size in shape]
        if self._shape[0] is not None:
            self.largest_batch = self._shape[0]
        self._map_size = map_size
        # For each batch size: scores and maps.
        self._outputs: dict[int, tuple[Map, Map]] = {}
        self._binding = self._session.io_binding()
        self.precision = precision
        self.description = f"onnxruntime {ort.__version__} CPU {precision}"

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> OnnxRuntime:
        precision = options.precision
        name = str(bundle.model(precision))
        model = bundle.read_model(precision)
        engine = cls(model, bundle.map_size, options.threads, precision, name)
        engine._read = partial(bundle.read_model, precision)
        return engine

    @classmethod
    def missing(cls) -> str | None:
        try:
            version("onnxruntime")
        except PackageNotFoundError:
            return pip_command("install", "onnxruntime")
        return None

    @classmethod
    def installed(cls) -> str:
        return version("onnxruntime")

    def __call__(self, image: Image) -> tuple[Map, Map]:
        if self._session is None:
            raise RuntimeError("the engine is closed")
        image = np.ascontiguousarray(host_image(image, self._shape))
        outputs = self._buffers(len(image))
        binding = self._binding
        binding.bind_input("image", "cpu", 0, np.uint8, image.shape, image.ctypes.data)
        # The graph gives the score, and then the map if it has one.
        for name, buffer in zip(self._names, outputs, strict=False):
            binding.bind_output(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(
                f"{self.description} cannot run this graph ({first_line(error)}); "
                f"build the bundle again"
            ) from error
        return outputs

    def layer_types(self) -> Mapping[str, int]:
        if self._read is None:
            return {}
        name = self._session.get_inputs()[0].name
        shape = [size or 1 for size in self._shape]
        opened = partial(open_session, self._read(), 1)
        return profiled_types(opened, {name: np.zeros(shape, np.uint8)})

    def _buffers(self, n: int) -> tuple[Map, Map]:
        if n not in self._outputs:
            scores = np.empty(n, np.float32)
            maps = np.empty((n, *self._map_size), np.float32)
            self._outputs[n] = (scores, maps)
        return self._outputs[n]

    def close(self) -> None:
        # The weights are freed now, even if something still refers to the engine.
        self._binding = None
        self._session = None
        self._read = None
        self._outputs.clear()
