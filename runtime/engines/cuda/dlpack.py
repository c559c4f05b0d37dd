"""DLPack, through which libraries share arrays in device memory, on the C interface of Python.

The structures are those of DLPack 0.8, which every later version still reads:
https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

CUDA = 2
CUDA_MANAGED = 13
# Kinds of numbers, as the standard numbers them.
UNSIGNED = 1
FLOAT = 2

# The names of a capsule before and after its array was taken. A capsule keeps the address of its
# name, so that these must not be freed.
_NEW = b"dltensor"
_TAKEN = b"used_dltensor"

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C interface, which is called with the interpreter's lock."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_new_capsule = _function(
    "PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)
_pointer_of = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
# By its address: a capsule that is being freed must not get a new reference.
_is_named = _function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_pointer_at = _function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


class Taken(NamedTuple):
    """An array that another library shares. `strides` are in items; None if it is contiguous.

    The memory stays valid as long as `owner` is referred to.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    code: int
    bits: int
    owner: object


class _Owner:
    """Refers to the memory of another library; the last reference releases it."""


def take(capsule: Any) -> Taken:
    """Take the array of a new capsule. Raises ValueError for a capsule that is none of DLPack."""
    pointer = _pointer_of(capsule, _NEW)
    managed = _Managed.from_address(pointer)
    _rename(capsule, _TAKEN)
    owner = _Owner()
    # It may be null for memory that is never freed.
    if managed.deleter:
        weakref.finalize(owner, managed.deleter, pointer)
    tensor = managed.tensor
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[: tensor.ndim])
    return Taken(
        (tensor.data or 0) + tensor.offset,
        tuple(tensor.shape[: tensor.ndim]),
        strides,
        tensor.type.code,
        tensor.type.bits,
        owner,
    )


# Address of a shared array -> what must stay until the library that took it releases it.
_shared: dict[int, tuple[_Managed, Any, object]] = {}


def share(
    address: int,
    shape: tuple[int, ...],
    number: tuple[int, int],
    device: tuple[int, int],
    owner: object,
) -> Any:
    """Return a capsule with a contiguous array, which keeps `owner` until its array is released.

    `number` is the kind of its numbers and their bits, `device` the kind of device and its number.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    tensor = managed.tensor
    tensor.data = address
    tensor.device = _Device(*device)
    tensor.ndim = len(shape)
    tensor.type = _Type(*number, 1)
    tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _release
    place = ctypes.addressof(managed)
    _shared[place] = (managed, sizes, owner)
    return _new_capsule(place, _NEW, ctypes.cast(_drop, ctypes.c_void_p))


def _forget(place: int) -> None:
    """Forget an array; called by the library that took it."""
    _shared.pop(place, None)


def _forget_untaken(capsule: int) -> None:
    """Forget the array of a capsule that no library took; called when the capsule is freed."""
    if _is_named(capsule, _NEW):
        _forget(_pointer_at(capsule, _NEW))


_release = _Deleter(_forget)
_drop = _Deleter(_forget_untaken)
