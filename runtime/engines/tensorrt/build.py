"""From a bundle's ONNX to a TensorRT plan: TensorRT 8.5 to 11 and TensorRT-RTX, told apart by their members.

Where networks are strongly typed (10, 11, RTX), the ONNX of the precision says what every layer computes in. TensorRT 8
takes the FP32 graph, may use FP16 where it is faster, and is held to FP32 in the manifest's islands by layer name.

A member that not every version has stands below an `if hasattr(Class, "member")`; a test holds this against the listed
members of seven versions.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.cuda.driver import Cuda, open_cuda
from flawline.runtime.engines.tensorrt.library import (
    FLAVOURS,
    attach_progress,
    first_line,
    load,
    logger,
    stopped_by_ctrl_c,
)
from flawline.runtime.engines.tensorrt.plan import (
    BuildOptions,
    Identity,
    Plan,
    PlanRefused,
    cache_folder,
    find_plan,
    folder_name,
    keep_plan,
    make_writable,
    recorded_options,
)
from flawline.runtime.files import write_atomically

TURING = 75  # NVIDIA advises against plans that are for it and for others


def build(
    bundle: Bundle,
    name: str,
    precision: str = "fp16",
    options: BuildOptions | None = None,
    cache: Path | None = None,
) -> Path:
    """A plan as asked for, taken from the cache or built; its path. Raises EngineError, BundleError.

    That of `tensorrt` is for this machine's GPU. `tensorrt-rtx` needs neither GPU nor driver.
    """
    options = options or BuildOptions()
    if FLAVOURS[name].portable:
        return ensure_plan(bundle, name, precision, None, cache, options).path
    cuda = open_cuda()
    try:
        return ensure_plan(bundle, name, precision, cuda, cache, options).path
    finally:
        cuda.close()


def ensure_plan(
    bundle: Bundle,
    name: str,
    precision: str,
    cuda: Cuda | None,
    cache: Path | None,
    options: BuildOptions | None = None,
    refused: PlanRefused | None = None,
) -> Plan:
    """A plan for `cuda`'s GPU, or where that is None for those of `options`; built where none fits, saying why.

    `options` None takes any that runs here. `refused` is what the one that fits was answered with.
    """
    trt, kept = load(name), cache_folder(bundle, cache)
    device, targets, here = _targets(trt, name, cuda, options)
    own = kept / folder_name(name, precision, device, targets)
    chosen = options or recorded_options(own) or BuildOptions()
    job = _job(trt, name, bundle, precision, targets, chosen)
    identity = Identity(name, str(trt.__version__), precision, job.source, device, targets)
    found, why = find_plan(kept, replace(identity, capabilities=here), own, options)
    if refused is not None:
        why = f"that in {refused.path.parent} does not load ({refused.why})"
    elif found is not None:
        return found
    make_writable(own)
    slow = not FLAVOURS[name].portable
    log(
        f"{name} {trt.__version__}: building the {precision} plan, as {why}{'; this takes minutes' if slow else ''}"
    )
    started = time.perf_counter()
    timings = own / f"timings-{trt.__version__}.bin" if slow else None
    plan = keep_plan(own, identity, chosen, _compile(trt, job, timings))
    log(f"{name}: {plan.path} built in {time.perf_counter() - started:.1f} s")
    return plan


def _targets(
    trt: Any, name: str, cuda: Cuda | None, options: BuildOptions | None
) -> tuple[str | None, tuple[int, ...], tuple[int, ...]]:
    """What a plan is built for, device and compute capabilities, and of the latter those that one must be for."""
    here = () if cuda is None else (10 * cuda.capability[0] + cuda.capability[1],)
    asked = options.capabilities if options else ()
    if not hasattr(trt, "ComputeCapability"):
        if asked:
            raise EngineError(f"engine {name} builds for this machine's GPU only; leave --sm out")
        return (cuda.device if cuda else None), here, here
    known = sorted(
        int(value) for value in trt.ComputeCapability.__members__.values() if int(value) >= TURING
    )
    if foreign := sorted({*asked, *here} - set(known)):
        raise EngineError(
            f"engine {name} {trt.__version__} does not know compute capability {', '.join(map(str, foreign))}, "
            f"only {', '.join(map(str, known))}; choose another --engine"
        )
    targets = asked or (here if here == (TURING,) else tuple(c for c in known if c != TURING))
    return None, tuple(sorted(set(targets))), here or tuple(sorted(set(targets)))


class _Job(NamedTuple):
    """What is compiled. `source` stands for all that decides what the layers compute in."""

    name: str
    onnx: Path
    typed: bool
    precision: str
    islands: tuple[str, ...]
    options: BuildOptions
    capabilities: tuple[int, ...]
    source: str


def _job(
    trt: Any,
    name: str,
    bundle: Bundle,
    precision: str,
    capabilities: tuple[int, ...],
    options: BuildOptions,
) -> _Job:
    # TensorRT 10 runs a DLA with its precision flags only.
    strong = "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__
    typed = strong and (options.dla is None or "FP16" not in trt.BuilderFlag.__members__)
    graph = "fp32" if precision == "fp16" and not typed else precision
    islands = () if typed or precision == "fp32" else bundle.manifest.fp32_islands
    source = " ".join((bundle.model_sha256(graph), *islands))
    return _Job(name, bundle.model(graph), typed, precision, islands, options, capabilities, source)


def _compile(trt: Any, job: _Job, timings: Path | None) -> bytes:
    log = logger(trt)
    log.errors.clear()
    network, config, builder, _parser = _configured(trt, job)
    if timings is not None:
        _attach_timings(config, timings)
    progress = attach_progress(trt, config, job.name)
    with stopped_by_ctrl_c(progress):
        plan = builder.build_serialized_network(network, config)
    if progress is not None and progress.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(
            f"{job.name} {trt.__version__} cannot build {job.onnx} ({log.first()}); "
            f"free GPU memory, build with a smaller --max-batch, or choose another --engine"
        )
    if timings is not None:
        timing_cache = config.get_timing_cache()
        try:
            write_atomically(timings, bytes(timing_cache.serialize()))
        except OSError as error:
            log(
                f"timings are not kept in {timings} ({error.strerror}): the next build measures anew"
            )
    return bytes(plan)


def _attach_timings(config: Any, path: Path) -> None:
    """What was measured on this GPU before; one that TensorRT refuses is begun anew."""
    for kept in (path.read_bytes() if path.is_file() else b"", b""):
        timing_cache = config.create_timing_cache(kept)
        if config.set_timing_cache(timing_cache, False):
            return


def _configured(trt: Any, job: _Job) -> tuple[Any, Any, Any, Any]:
    """Network, configuration, builder and parser: all must live until the plan is built."""
    options = job.options
    builder, network, parser = parse(trt, job.onnx, job.typed)
    config = builder.create_builder_config()
    config.clear_flag(
        trt.BuilderFlag.TF32
    )  # on by default, it would take FP32 islands to FP16's ten bits
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.level is not None:
        if not hasattr(trt.IBuilderConfig, "builder_optimization_level"):
            raise EngineError(
                f"TensorRT {trt.__version__} has no optimisation levels; leave --builder-level out"
            )
        config.builder_optimization_level = options.level
    if hasattr(trt.BuilderFlag, "FP16") and not job.typed and job.precision != "fp32":
        _loosen_types(trt, config, network, job)
    if options.dla is not None:
        if not options.dla < builder.num_DLA_cores:
            raise EngineError(
                f"{job.name} finds {builder.num_DLA_cores} DLA cores here; leave --dla out"
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    tensor = network.get_input(0)
    if tensor.shape[0] == -1:
        profile = builder.create_optimization_profile()
        batches = (1, options.opt_batch, options.max_batch)
        profile.set_shape("image", *((n, *tuple(tensor.shape)[1:]) for n in batches))
        config.add_optimization_profile(profile)
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = len(job.capabilities)
        for i, capability in enumerate(job.capabilities):
            config.set_compute_capability(trt.ComputeCapability(capability), i)
    return network, config, builder, parser


def parse(trt: Any, onnx: Path, typed: bool) -> tuple[Any, Any, Any]:
    """Builder, network and parser, which owns weights of the network. Raises EngineError."""
    log = logger(trt)
    flags = 0
    if hasattr(
        trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"
    ):  # wanted by 8, ignored by 10, unknown to 11
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and typed:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    builder = trt.Builder(log)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        parser_error = parser.get_error(0)
        raise EngineError(
            f"TensorRT {trt.__version__} does not take {onnx} ({first_line(parser_error.desc())}); "
            f"build the bundle again, or choose another --engine"
        )
    return builder, network, parser


def _loosen_types(trt: Any, config: Any, network: Any, job: _Job) -> None:
    """Let the builder choose FP16, and hold the islands to FP32. Raises EngineError where an island is nowhere."""
    config.set_flag(trt.BuilderFlag.FP16)
    if job.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    lost = set(job.islands)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        islands = {island for island in job.islands if _is_in(island, layer.name)}
        lost -= islands
        if islands and _hold_fp32(trt, layer):
            layer.precision = trt.DataType.FLOAT
    if lost:
        raise EngineError(
            f"FP32 islands {', '.join(sorted(lost))} name no layer of {job.onnx}; build the bundle again, "
            f"or choose --precision fp32"
        )


def _is_in(island: str, name: str) -> bool:
    """The island /tail holds /tail and /tail/Conv, not /tailor/Conv."""
    return f"{name}/".startswith(island.rstrip("/") + "/")


def _hold_fp32(trt: Any, layer: Any) -> bool:
    """Hold the floating outputs of a layer to FP32; False where it has none, as one that computes shapes."""
    held = False
    for i in range(layer.num_outputs):
        tensor = layer.get_output(i)
        if tensor.dtype == trt.DataType.FLOAT:
            layer.set_output_type(i, trt.DataType.FLOAT)
            held = True
    return held
