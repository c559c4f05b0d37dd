"""Archives of golden data that are not what a bundle holds."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np


def arrays_of(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data)) as archive:
        return dict(archive)


def packed(arrays: dict[str, Any], pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=pickled, **arrays)
    return file.getvalue()


def header(dtype: str, shape: str) -> bytes:
    """The start of an .npy file that declares this shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def with_member(data: bytes, name: str, content: bytes) -> bytes:
    """Replace one member of an archive."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.namelist():
            target.writestr(member, content if member == name else source.read(member))
    return file.getvalue()


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        arrays = arrays_of(data)
        change(arrays)
        return packed(arrays, pickled=True)

    return apply


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    return _changed(lambda arrays: arrays.update({name: change(arrays[name])}))


def _declared(name: str, dtype: str, shape: str, size: int = 0) -> Callable[[bytes], bytes]:
    """An array whose header declares a shape, followed by so many zeros."""
    content = header(dtype, shape) + bytes(size)
    return lambda data: with_member(data, f"{name}.npy", content)


def _long_header(size: int, version: bytes = b"\x01\x00") -> Callable[[bytes], bytes]:
    """Images whose header states to have so many bytes."""
    length = struct.pack("<H" if version[0] == 1 else "<I", size)
    content = b"\x93NUMPY" + version + length + b" " * 100
    return lambda data: with_member(data, "images.npy", content)


def _in_directory(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrite bytes in the first entry of the directory of the archive."""

    def apply(data: bytes) -> bytes:
        start = data.index(b"PK\x01\x02") + offset
        return data[:start] + value + data[start + len(value) :]

    return apply


def _twice(data: bytes) -> bytes:
    """An archive with a member of the same name twice."""
    file = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("scores.npy", archive.read("scores.npy"))
    return file.getvalue()


def _not_finite(array: Any) -> Any:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


ODD_ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "no scores": _changed(lambda arrays: arrays.pop("scores")),
    "no images": _changed(lambda arrays: arrays.pop("images")),
    "another array": _changed(lambda arrays: arrays.update(more=np.zeros(3))),
    "no image at all": _changed(
        lambda arrays: arrays.update({name: array[:0] for name, array in arrays.items()})
    ),
    "one image less": _set("images", lambda array: array[:1]),
    "one score less": _set("scores", lambda array: array[:1]),
    "one map more": _set("maps", lambda array: np.concatenate([array, array[:1]])),
    "float images": _set("images", lambda array: array.astype(np.float32)),
    "16-bit images": _set("images", lambda array: array.astype(np.uint16)),
    "double scores": _set("scores", lambda array: array.astype(np.float64)),
    "big-endian scores": _set("scores", lambda array: array.astype(">f4")),
    "complex scores": _set("scores", lambda array: array.astype(np.complex64)),
    "text scores": _set("scores", lambda array: array.astype(str)),
    "scores of two axes": _set("scores", lambda array: array[:, None]),
    "images of three axes": _set("images", lambda array: array[..., 0]),
    "images of planes": _set("images", lambda array: np.moveaxis(array, 3, 1)),
    "smaller images": _set("images", lambda array: array[:, :32]),
    "NaN score": _set("scores", _not_finite),
    "infinite scores": _set("scores", lambda array: array + np.inf),
    "wrong scores": _set("scores", lambda array: array + np.float32(1)),
    "other images": _set("images", lambda array: array // 2),
    "pickled objects": _set("scores", lambda array: np.array([{"a": 1}, None], object)),
    "one array": lambda data: bytes(header("|u1", "(3,)") + b"abc"),
    "a pickle": lambda data: pickle.dumps(arrays_of(data)),
    "empty archive": lambda data: packed({}),
    "huge images": _declared("images", "|u1", "(1000000, 64, 64, 3)"),
    "huge scores": _declared("scores", "<f4", "(100000000000,)"),
    "zeros without end": _declared("images", "|u1", "(60000, 64, 64, 3)", 1 << 25),
    "overflowing shape": _declared("maps", "<f4", "(9223372036854775807, 64, 64)"),
    "negative shape": _declared("images", "|u1", "(-2, 64, 64, 3)"),
    "short data": _declared("images", "|u1", "(2, 64, 64, 3)", 100),
    "data left over": _declared("images", "|u1", "(2, 64, 64, 3)", 2 * 64 * 64 * 3 + 1),
    "header of 64 kB": _long_header(0xFFFF),
    "header of 4 GB": _long_header(0xFFFFFFFF, b"\x02\x00"),
    "future header": _long_header(100, b"\x09\x00"),
    "encrypted member": _in_directory(8, b"\x01\x00"),
    "unknown compression": _in_directory(10, b"\x63\x00"),
    "other checksum": _in_directory(16, b"\x00\x01\x02\x03"),
    "member elsewhere": _in_directory(42, b"\xff\xff\xff\x00"),
    "member twice": _twice,
    "code in the header": _declared("images", "|u1", "__import__('os').getpid()"),
}
