"""The golden data of a bundle: images with the results that every engine must reproduce.

golden.npz is read from its headers on: the declared sizes are checked before memory is allocated
for them.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image, Map
from flawline.runtime.strict_json import SchemaError, one_line

# An export writes at most 6 images; studies write up to 32.
MOST_IMAGES = 64
MOST_BYTES = 1 << 30
# What an array begins with, in the only version of the format that holds small headers.
NPY_VERSION = (1, 0)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Golden:
    """Inputs of the graph with the results that every engine must reproduce.

    `images` is uint8 [k, H, W, 3], or frames of the camera if the graph takes these, `scores`
    float32 [k] and `maps` float32 [k, H, W], or [k, 0, 0] if the graph has no map.
    """

    images: Image
    scores: Map
    maps: Map


def pack_golden(golden: Golden) -> bytes:
    """Return the content of golden.npz."""
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        images=golden.images,
        scores=golden.scores.astype(np.float32),
        maps=golden.maps.astype(np.float32),
    )
    return packed.getvalue()


def read_golden(data: bytes, input_shape: Shape, map_size: tuple[int, int]) -> Golden:
    """Read the content of golden.npz for a graph with inputs of a shape, and maps of a size.

    Raises SchemaError for a file that cannot be read, holds other arrays, or values that are not
    finite.
    """
    shapes: dict[str, tuple[type, Shape]] = {
        "images": (np.uint8, input_shape),
        "scores": (np.float32, ()),
        "maps": (np.float32, map_size),
    }
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = sorted(archive.namelist())
            if names != sorted(f"{name}.npy" for name in shapes):
                _refuse(f"holds {names}, not images, scores and maps")
            for name, (dtype, shape) in shapes.items():
                arrays[name] = _read_array(archive, name, dtype, shape)
    except SchemaError:
        raise
    except Exception as error:
        # Damage raises errors of zipfile, zlib and numpy that share no base class.
        _refuse(f"cannot be read ({one_line(error)})")
    golden = Golden(**arrays)
    if not len(golden.images) == len(golden.scores) == len(golden.maps):
        _refuse("has not as many scores and maps as images")
    if not np.isfinite(golden.scores).all() or not np.isfinite(golden.maps).all():
        _refuse("has a score or a map that is not finite")
    return golden


def _read_array(archive: zipfile.ZipFile, name: str, dtype: type, shape: Shape) -> npt.NDArray[Any]:
    """Read an array of a dtype and shape [k, *shape]. Raises SchemaError and others."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version != NPY_VERSION:
            _refuse(f"{name} is in version {version} of its format")
        declared, fortran_order, found = np.lib.format.read_array_header_1_0(member)
        if found != np.dtype(dtype) or declared[1:] != shape or len(declared) != len(shape) + 1:
            _refuse(
                f"does not fit the manifest's input size: {name} is {found} {list(declared)}, "
                f"not {np.dtype(dtype)} {['k', *shape]}"
            )
        size = int(np.prod(declared, dtype=object)) * found.itemsize
        if not 1 <= declared[0] <= MOST_IMAGES or size > MOST_BYTES:
            _refuse(f"{name} declares {declared[0]} images and {size} bytes")
        data = member.read(size)
        # Reading to the end also compares the checksum of the archive.
        if len(data) != size or member.read(1):
            _refuse(f"{name} has not the {size} bytes that it declares")
    values: npt.NDArray[Any] = np.frombuffer(data, found)
    if fortran_order:
        return np.array(values.reshape(declared[::-1]).T, order="C")
    # Copied, because libraries that share memory with an array refuse a read-only one.
    return np.array(values.reshape(declared))


def _refuse(reason: str) -> NoReturn:
    raise SchemaError(one_line(reason))
