"""The CUDA driver calls that an engine needs, through the first provider that works.

A provider is cuda-bindings (NVIDIA's package), PyCUDA, or the driver itself through ctypes, which
needs no package, so that a Jetson with its own TensorRT works as delivered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.cuda import libcuda
from flawline.runtime.engines.cuda.base import NO_DEVICE, Bytes, Cuda, CudaError, check, remedy
from flawline.runtime.engines.cuda.driver import device_name, open_cuda_bindings, open_libcuda
from flawline.runtime.engines.cuda.pycuda_provider import open_pycuda

__all__ = ["PROVIDERS", "Bytes", "Cuda", "CudaError", "driver_missing", "gpu_name", "open_cuda"]

# In order of preference. Each returns None if its package cannot be used.
PROVIDERS: tuple[Callable[[], Cuda | None], ...] = (open_cuda_bindings, open_pycuda, open_libcuda)


def driver_missing() -> str | None:
    """Say why there is no GPU to use and what to do; None if there is one.

    This must be asked before TensorRT 8 is used, which crashes the process without a driver.
    """
    try:
        call = libcuda.load_libcuda()
    except OSError:
        return (
            f"there is no NVIDIA driver on this machine ({libcuda.LIBRARY}); install it, "
            f"or choose another engine"
        )
    try:
        check(call, "cuInit", 0)
        (count,) = check(call, "cuDeviceGetCount")
    except CudaError as error:
        return str(error)
    if count == 0:
        return f"the NVIDIA driver reports no GPU; {remedy(NO_DEVICE)}"
    return None


def gpu_name() -> str:
    """Return the name of the first GPU, without opening it. Raises CudaError or OSError."""
    call = libcuda.load_libcuda()
    check(call, "cuInit", 0)
    (device,) = check(call, "cuDeviceGet", 0)
    return device_name(call, device)


def open_cuda() -> Cuda:
    """Open the first GPU (CUDA_VISIBLE_DEVICES selects it). Raises EngineError.

    The provider is logged once per process.
    """
    reason = driver_missing()
    if reason is not None:
        raise EngineError(reason)
    for open_provider in PROVIDERS:
        cuda = open_provider()
        if cuda is not None:
            _log_provider(cuda.provider)
            return cuda
    raise AssertionError("ctypes works wherever there is a driver")


@functools.cache
def _log_provider(provider: str) -> None:
    log(f"CUDA driver calls: {provider}")
