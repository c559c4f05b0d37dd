"""Compile a bundle's ONNX file to a plan, with TensorRT 8.5 to 11 and TensorRT-RTX.

TensorRT 10 and 11 and TensorRT-RTX have strongly typed networks: the ONNX file of a precision says
in which type every layer computes. TensorRT 8 takes the FP32 file, may compute in FP16 where that
is faster, and is restricted to FP32 in the manifest's FP32 islands by the names of the layers.

Versions are distinguished by their members, not by their numbers; see api.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import first_line, log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.tensorrt.api import (
    Builder,
    IBuilderConfig,
    ILayer,
    INetworkDefinition,
    Module,
    OnnxParser,
)
from flawline.runtime.engines.tensorrt.library import logger
from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions
from flawline.runtime.engines.tensorrt.progress import attach_progress, stopped_by_ctrl_c
from flawline.runtime.files import write_atomically
from flawline.runtime.precisions import islands_of


@dataclass(frozen=True)
class BuildJob:
    """What is compiled: the graph of the bundle for the precision `graph`.

    `source` identifies everything that decides the types of the layers.
    """

    engine: str
    bundle: Bundle
    graph: str
    strongly_typed: bool
    precision: str
    islands: tuple[str, ...]
    options: BuildOptions
    capabilities: tuple[int, ...]
    source: str

    @property
    def onnx(self) -> Path:
        """The file of the graph."""
        return self.bundle.model(self.graph)


def create_job(
    trt: Module,
    engine: str,
    bundle: Bundle,
    precision: str,
    options: BuildOptions,
    capabilities: tuple[int, ...],
) -> BuildJob:
    """Select the ONNX file and the FP32 islands for this version. Raises BundleError."""
    strongly_typed = "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__
    # TensorRT 10 runs a DLA only with precision flags, which exclude a strongly typed network.
    if options.dla is not None and "FP16" in trt.BuilderFlag.__members__:
        strongly_typed = False
    graph = precision
    if precision == "fp16" and not strongly_typed:
        graph = "fp32"
    islands: tuple[str, ...] = ()
    if precision != "fp32" and not strongly_typed:
        islands = bundle.manifest.fp32_islands
    source = " ".join((bundle.model_sha256(graph), *islands))
    return BuildJob(
        engine, bundle, graph, strongly_typed, precision, islands, options, capabilities, source
    )


def compile_plan(trt: Module, job: BuildJob, timings: Path | None) -> bytes:
    """Compile and return the plan. Raises EngineError and BundleError.

    `timings` is a file with the kernel timings of earlier builds on this GPU, which is updated.
    """
    errors = logger(trt)
    errors.clear()
    # The parser owns weights of the network and must exist until the plan is built.
    model = job.bundle.read_model(job.graph)
    builder, network, _parser = parse(trt, model, job.onnx, job.strongly_typed)
    config = _configure(trt, builder, network, job)
    if timings is not None:
        _load_timings(config, timings)
    progress = attach_progress(trt, config, job.engine)
    # An exception must not pass through the builder, so that Ctrl-C is noted and raised afterwards.
    with stopped_by_ctrl_c(progress):
        plan = builder.build_serialized_network(network, config)
    if progress is not None and progress.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(
            f"{job.engine} {trt.__version__} cannot build {job.onnx} ({errors.first()}); "
            f"free GPU memory, build with a smaller --max-batch, or choose another engine"
        )
    if timings is not None:
        _save_timings(config, timings)
    return bytes(plan)


def parse(
    trt: Module, model: bytes, onnx: Path, typed: bool
) -> tuple[Builder, INetworkDefinition, OnnxParser]:
    """Parse an ONNX model to a network, which is strongly typed if `typed` is True.

    `onnx` is the file that it was read from. Returns the builder, the network and the parser, which
    owns weights of the network. Raises EngineError.
    """
    errors = logger(trt)
    flags = 0
    # Version 8 requires this flag, version 10 ignores it, version 11 does not have it.
    if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and typed:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    builder = trt.Builder(errors)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, errors)
    if not parser.parse(model, str(onnx)):
        reason = first_line(parser.get_error(0).desc())
        raise EngineError(
            f"TensorRT {trt.__version__} does not accept {onnx} ({reason}); "
            f"build the bundle again, or choose another engine"
        )
    return builder, network, parser


def _configure(
    trt: Module, builder: Builder, network: INetworkDefinition, job: BuildJob
) -> IBuilderConfig:
    config = builder.create_builder_config()
    # TF32 is on by default. It would compute FP32 islands with the ten-bit mantissa of FP16.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The plan then says what each layer computes in; it is not slower.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    weakly_typed = not job.strongly_typed and job.precision != "fp32"
    if hasattr(trt.BuilderFlag, "FP16") and weakly_typed:
        _allow_lower_precision(trt, config, network, job)
    if job.options.dla is not None:
        _select_dla(trt, builder, config, job)
    _add_batch_profile(builder, network, config, job.options)
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = len(job.capabilities)
        for i, number in enumerate(job.capabilities):
            config.set_compute_capability(trt.ComputeCapability(number), i)
    return config


def _allow_lower_precision(
    trt: Module, config: IBuilderConfig, network: INetworkDefinition, job: BuildJob
) -> None:
    """Let the builder choose FP16 or INT8 outside the FP32 islands.

    Raises EngineError if an island names no layer.
    """
    config.set_flag(trt.BuilderFlag.FP16)
    if job.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    # An island that matches no layer is an error: its values would overflow in FP16 unnoticed.
    unused = set(job.islands)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        islands = islands_of(layer.name, job.islands)
        unused -= islands
        if islands and _require_fp32_outputs(trt, layer):
            layer.precision = trt.DataType.FLOAT
    if unused:
        raise EngineError(
            f"FP32 islands {', '.join(sorted(unused))} name no layer of {job.onnx}; "
            f"build the bundle again, or choose --precision fp32"
        )


def _require_fp32_outputs(trt: Module, layer: ILayer) -> bool:
    """Restrict the floating-point outputs of a layer to FP32.

    Returns False if it has none, as a layer that computes shapes.
    """
    restricted = False
    for i in range(layer.num_outputs):
        if layer.get_output(i).dtype == trt.DataType.FLOAT:
            layer.set_output_type(i, trt.DataType.FLOAT)
            restricted = True
    return restricted


def _select_dla(trt: Module, builder: Builder, config: IBuilderConfig, job: BuildJob) -> None:
    """Use the requested DLA core, and the GPU for layers that it cannot run. Raises EngineError."""
    cores = builder.num_DLA_cores
    if job.options.dla not in range(cores):
        raise EngineError(f"{job.engine} finds {cores} DLA cores on this machine; leave --dla out")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = job.options.dla
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _add_batch_profile(
    builder: Builder, network: INetworkDefinition, config: IBuilderConfig, options: BuildOptions
) -> None:
    """Set the range of batch sizes, unless the graph has a fixed one."""
    batch, *image = tuple(network.get_input(0).shape)
    if batch != -1:
        return
    profile = builder.create_optimization_profile()
    smallest = (1, *image)
    fastest = (options.opt_batch, *image)
    largest = (options.max_batch, *image)
    profile.set_shape("image", smallest, fastest, largest)
    config.add_optimization_profile(profile)


def _load_timings(config: IBuilderConfig, path: Path) -> None:
    """Use the timings of earlier builds, which make this one faster."""
    stored = path.read_bytes() if path.is_file() else b""
    # Timings of another GPU or version are refused.
    for data in (stored, b""):
        timing_cache = config.create_timing_cache(data)
        if config.set_timing_cache(timing_cache, False):
            return


def _save_timings(config: IBuilderConfig, path: Path) -> None:
    data = bytes(config.get_timing_cache().serialize())
    try:
        write_atomically(path, data)
    except OSError as error:
        log(
            f"timings cannot be saved to {path} ({reason_of(error)}), so that the next build "
            f"measures them again; {remedy_of(error)}"
        )
