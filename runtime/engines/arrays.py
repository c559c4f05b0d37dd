"""Images that callers give to an engine: numpy arrays, and arrays of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flawline.runtime.engines.base import EngineError
from flawline.runtime.image import Image

# Kinds of devices of the DLPack standard whose memory the host reads: its own, and pinned memory.
_HOST_KINDS = (1, 3)


def is_on_device(image: Any) -> bool:
    """Tell whether an image is in the memory of a device.

    Libraries say so with `__dlpack_device__`, or with `__cuda_array_interface__`.
    """
    if isinstance(image, np.ndarray):
        return False
    if hasattr(image, "__dlpack_device__"):
        kind, _number = image.__dlpack_device__()
        return int(kind) not in _HOST_KINDS
    return hasattr(image, "__cuda_array_interface__")


def host_image(image: Any, wanted: Sequence[int | None] | None = None) -> Image:
    """Return an image in host memory as a numpy array, without a copy where that is possible.

    Arrays of other libraries are read through DLPack. `wanted` is as of `require_shape`. Raises
    EngineError for an image in the memory of a device, and ValueError for one that is not uint8 or
    has another shape.
    """
    if is_on_device(image):
        raise EngineError(
            "the image is in the memory of a device, and this engine reads host memory; "
            "copy it to the host first, or choose an --engine that runs on the device"
        )
    array = image
    if not isinstance(image, np.ndarray):
        has_dlpack = hasattr(image, "__dlpack__")
        array = np.from_dlpack(image) if has_dlpack else np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f"the image is {array.dtype}, not uint8")
    if wanted is not None:
        require_shape(array.shape, wanted)
    found: Image = array
    return found


def require_shape(shape: Sequence[int], wanted: Sequence[int | None]) -> None:
    """Refuse an image of another shape than the graph takes; None stands for any size.

    The libraries would say so as well, but as of a graph that is damaged. Raises ValueError.
    """
    sizes = zip(shape, wanted, strict=False)
    if len(shape) == len(wanted) and all(of is None or size == of for size, of in sizes):
        return
    text = ", ".join("N" if of is None else str(of) for of in wanted)
    raise ValueError(f"the image is {list(shape)}, and this graph takes [{text}]")
