"""An array that is mapped from a file where it is large, as the features of many images are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MEMORY_MAP_ABOVE = 2 << 30  # bytes


def allocate(
    shape: tuple[int, ...], folder: str | Path, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """Return an array without values, in memory or in a file of `folder`.

    The folder must exist as long as the array is used. Raises OSError where the disk has no space;
    the folder then stays as it was.
    """
    size = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object))
    if size <= MEMORY_MAP_ABOVE:
        return np.empty(shape, dtype)
    number = len(os.listdir(folder))
    path = Path(folder) / f"array{number}.bin"
    try:
        # Reserved first: on a full disk, writing to a memory map would end the process by SIGBUS.
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(path, dtype, "r+", shape=shape)
    except OSError:
        # A file that holds a part of the space would leave the disk full.
        path.unlink(missing_ok=True)
        raise
