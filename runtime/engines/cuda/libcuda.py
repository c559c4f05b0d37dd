"""The CUDA driver through ctypes, which needs no package besides the driver itself."""

from __future__ import annotations

import ctypes
from typing import Any

from flawline.runtime.engines.cuda.base import DriverCall

LIBRARY = "libcuda.so.1"
PROVIDER = "libcuda via ctypes"

# Function -> its symbol in libcuda and the kinds of its parameters. A small letter is an argument:
# i int, u unsigned int, z size, d device address, p pointer. A capital letter is a result of that
# kind; S is text written into a buffer, whose size is the next argument; T is a pointer to text.
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
    "cuPointerGetAttribute": ("cuPointerGetAttribute", "Iid"),
    "cuMemHostAlloc": ("cuMemHostAlloc", "Pzu"),
    "cuMemHostGetDevicePointer": ("cuMemHostGetDevicePointer_v2", "Dpu"),
    "cuMemFreeHost": ("cuMemFreeHost", "p"),
    "cuMemcpyHtoDAsync": ("cuMemcpyHtoDAsync_v2", "dpzp"),
    "cuMemcpyDtoHAsync": ("cuMemcpyDtoHAsync_v2", "pdzp"),
    "cuStreamCreate": ("cuStreamCreate", "Pu"),
    "cuStreamSynchronize": ("cuStreamSynchronize", "p"),
    "cuStreamDestroy": ("cuStreamDestroy_v2", "p"),
    "cuStreamBeginCapture": ("cuStreamBeginCapture_v2", "pi"),
    "cuStreamEndCapture": ("cuStreamEndCapture", "pP"),
    "cuGraphInstantiate": ("cuGraphInstantiateWithFlags", "Ppd"),
    "cuGraphDestroy": ("cuGraphDestroy", "p"),
    "cuGraphLaunch": ("cuGraphLaunch", "pp"),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", "p"),
}
_TYPES: dict[str, Any] = {
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "z": ctypes.c_size_t,
    "d": ctypes.c_uint64,
    "p": ctypes.c_void_p,
    "t": ctypes.c_char_p,
}


def load_libcuda() -> DriverCall:
    """Load the driver. Its results are returned as cuda-bindings returns them.

    Raises OSError if there is no driver.
    """
    library = ctypes.CDLL(LIBRARY)

    def call(name: str, *arguments: Any) -> tuple[Any, ...]:
        symbol, kinds = _SYMBOLS[name]
        remaining = iter(arguments)
        parameters = []
        results = []
        for kind in kinds:
            if kind.islower():
                parameters.append(_TYPES[kind](next(remaining)))
            elif kind == "S":
                buffer = ctypes.create_string_buffer(arguments[0])
                results.append(buffer)
                parameters.append(buffer)
            else:
                result = _TYPES[kind.lower()]()
                results.append(result)
                parameters.append(ctypes.byref(result))
        status = getattr(library, symbol)(*parameters)
        # ctypes gives None for a null pointer.
        values = [result.value or 0 for result in results]
        return (status, *values)

    return call
