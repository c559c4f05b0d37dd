"""Prepare a bundle's plan for a machine: take a stored plan that can run there, or build one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError, cache_folder
from flawline.runtime.engines.cuda import Cuda
from flawline.runtime.engines.tensorrt.api import Module
from flawline.runtime.engines.tensorrt.build import BuildJob, compile_plan, create_job
from flawline.runtime.engines.tensorrt.library import Library
from flawline.runtime.engines.tensorrt.plan_cache import (
    BuildOptions,
    Identity,
    Plan,
    PlanRefused,
    PlanUnusable,
    create_folder,
    find_plan,
    folder_name,
    recorded_options,
    store_plan,
)

# NVIDIA advises against portable plans for compute capability 7.5 together with newer ones.
_TURING = 75


@dataclass(frozen=True)
class PlanRequest:
    """Which plan is wanted.

    It is for the GPU of `cuda`, or if that is None for the capabilities in `options`. If `options`
    is None, any plan that can run here is accepted.
    """

    bundle: Bundle
    library: Library
    precision: str
    cuda: Cuda | None
    cache: Path | None
    options: BuildOptions | None = None


@dataclass(frozen=True)
class Target:
    """The machines that a new plan is built for; a stored plan is for at least the `required` ones.

    `device` is None for portable plans. Compute capabilities are numbers such as 87 for 8.7.
    """

    device: str | None
    capabilities: tuple[int, ...]
    required: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Where the plan of a request is or will be stored, and what it is built from.

    `required` are the compute capabilities that a stored plan must have.
    """

    cache: Path
    folder: Path
    job: BuildJob
    identity: Identity
    required: tuple[int, ...]

    def find(self, request: PlanRequest) -> Plan:
        """Return a stored plan. Raises PlanUnusable with the reason why one must be built."""
        wanted = replace(self.identity, capabilities=self.required)
        return find_plan(self.cache, wanted, self.folder, request.options)


def prepare_plan(request: PlanRequest, refused: PlanRefused | None = None) -> Plan:
    """Return a stored plan or build one, and log why. Raises EngineError, BundleError.

    `refused` is the error of loading the stored plan, which is then replaced.
    """
    trt = request.library.load()
    place = _place(trt, request)
    if refused is not None:
        reason = f"the plan in {refused.path.parent} does not load ({refused.reason})"
    else:
        try:
            return place.find(request)
        except PlanUnusable as unusable:
            reason = str(unusable)
    engine = request.library.engine
    version = place.identity.version
    message = f"{engine} {version}: building the {request.precision} plan because {reason}"
    timings = None
    # Portable plans are compiled to the end when they are loaded: no kernel is timed for them here.
    if not request.library.portable:
        message = f"{message}; this takes minutes"
        timings = place.folder / f"timings-{version}.bin"
    create_folder(place.folder)
    log(message)
    return _build_plan(trt, place.job, place.identity, place.folder, timings)


def missing_plan(request: PlanRequest) -> str | None:
    """Say why `prepare_plan` would build a plan; None if it would take a stored one.

    Raises EngineError, BundleError.
    """
    try:
        _place(request.library.load(), request).find(request)
    except PlanUnusable as unusable:
        return str(unusable)
    return None


def _place(trt: Module, request: PlanRequest) -> _Place:
    engine = request.library.engine
    target = _choose_target(trt, request)
    cache = cache_folder(request.bundle, request.cache)
    folder = cache / folder_name(engine, request.precision, target.device, target.capabilities)
    # A new version of TensorRT or of the model does not change what the plan was asked for.
    options = request.options or recorded_options(folder) or BuildOptions()
    job = create_job(trt, engine, request.bundle, request.precision, options, target.capabilities)
    version = str(trt.__version__)
    identity = Identity(
        engine, version, request.precision, job.source, target.device, target.capabilities
    )
    return _Place(cache, folder, job, identity, target.required)


def _build_plan(
    trt: Module, job: BuildJob, identity: Identity, folder: Path, timings: Path | None
) -> Plan:
    started = time.perf_counter()
    data = compile_plan(trt, job, timings)
    plan = store_plan(folder, identity, job.options, data)
    seconds = time.perf_counter() - started
    log(f"{job.engine}: {plan.path} was built in {seconds:.1f} s")
    return plan


def _choose_target(trt: Module, request: PlanRequest) -> Target:
    """Decide which machines the plan is for. Raises EngineError for one that is not supported."""
    engine = request.library.engine
    requested = request.options.capabilities if request.options else ()
    device = None
    here: tuple[int, ...] = ()
    if request.cuda is not None:
        major, minor = request.cuda.capability
        here = (10 * major + minor,)
        device = request.cuda.device
    # Only a library whose plans are portable has this enumeration.
    if not hasattr(trt, "ComputeCapability"):
        if requested:
            raise EngineError(f"engine {engine} builds for this machine's GPU only; leave --sm out")
        return Target(device, here, here)
    supported = _supported_capabilities(trt)
    unsupported = sorted({*requested, *here} - set(supported))
    if unsupported:
        raise EngineError(
            f"engine {engine} {trt.__version__} does not support compute capability "
            f"{', '.join(map(str, unsupported))}, only {', '.join(map(str, supported))}; "
            f"choose another engine"
        )
    capabilities = tuple(sorted(set(requested))) or _default_capabilities(supported, here)
    return Target(None, capabilities, here or capabilities)


def _supported_capabilities(trt: Module) -> list[int]:
    supported = []
    for member in trt.ComputeCapability.__members__.values():
        # Smaller values are not capabilities: NONE and CURRENT.
        if int(member) >= _TURING:
            supported.append(int(member))
    return sorted(supported)


def _default_capabilities(supported: list[int], here: tuple[int, ...]) -> tuple[int, ...]:
    """Return the capabilities of a portable plan that were not requested: all but Turing.

    A plan on a Turing GPU is for that alone.
    """
    if here == (_TURING,):
        return here
    return tuple(number for number in supported if number != _TURING)
