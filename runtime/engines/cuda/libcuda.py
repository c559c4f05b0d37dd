"""libcuda through ctypes: the calls of runtime.cuda without any package."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

LIBRARY = "libcuda.so.1"

# Call -> its symbol in libcuda and its parameters: i int, u unsigned, z size, d device address, p pointer, f float;
# a capital is a result, S text written into a buffer of the size that follows, T a pointer to text.
_SYMBOLS = {
    "cuInit": ("cuInit", "u"),
    "cuDriverGetVersion": ("cuDriverGetVersion", "I"),
    "cuGetErrorName": ("cuGetErrorName", "iT"),
    "cuGetErrorString": ("cuGetErrorString", "iT"),
    "cuDeviceGetCount": ("cuDeviceGetCount", "I"),
    "cuDeviceGet": ("cuDeviceGet", "Ii"),
    "cuDeviceGetName": ("cuDeviceGetName", "Sii"),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", "Iii"),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", "Pi"),
    "cuCtxSetCurrent": ("cuCtxSetCurrent", "p"),
    "cuMemAlloc": ("cuMemAlloc_v2", "Dz"),
    "cuMemFree": ("cuMemFree_v2", "d"),
    "cuMemHostAlloc": ("cuMemHostAlloc", "Pzu"),
    "cuMemFreeHost": ("cuMemFreeHost", "p"),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", "dpzp"),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", "pdzp"),
    "cuStreamCreate": ("cuStreamCreate", "Pu"),
    "cuStreamSynchronize": ("cuStreamSynchronize", "p"),
    "cuStreamDestroy": ("cuStreamDestroy_v2", "p"),
    "cuEventCreate": ("cuEventCreate", "Pu"),
    "cuEventRecord": ("cuEventRecord", "pp"),
    "cuEventElapsedTime": ("cuEventElapsedTime", "Fpp"),
    "cuEventDestroy": ("cuEventDestroy_v2", "p"),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", "pi"),
    "cuStreamEndCapture": ("cuStreamEndCapture", "pP"),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", "Ppd"),
    "cuGraphDestroy": ("cuGraphDestroy", "p"),
    "cuGraphLaunch": ("cuGraphLaunch", "pp"),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", "p"),
}
_KINDS: dict[str, Any] = {
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "z": ctypes.c_size_t,
    "d": ctypes.c_uint64,
    "p": ctypes.c_void_p,
    "f": ctypes.c_float,
    "t": ctypes.c_char_p,
}


def libcuda_call() -> Callable[..., tuple[Any, ...]]:
    """The driver through ctypes, with results returned as cuda-bindings returns them. Raises OSError without one."""
    library = ctypes.CDLL(LIBRARY)

    def call(name: str, *arguments: Any) -> tuple[Any, ...]:
        symbol, kinds = _SYMBOLS[name]
        given, results, passed = iter(arguments), [], []
        for kind in kinds:
            if kind.islower():
                passed.append(_KINDS[kind](next(given)))
                continue
            result = (
                ctypes.create_string_buffer(arguments[0]) if kind == "S" else _KINDS[kind.lower()]()
            )
            results.append(result)
            passed.append(result if kind == "S" else ctypes.byref(result))
        status = getattr(library, symbol)(*passed)
        return (status, *(r.value or 0 for r in results))

    return call
