"""Decoding by OpenCV, for the formats that it reads right once the file is known to be complete."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import COPY_AGAIN, DecodeError


def decode_by_opencv(data: bytes, kind: str, flag: int) -> npt.NDArray[Any]:
    """Decode a whole file with `cv2.imdecode`. Raises DecodeError where it gives no image."""
    image = None
    # It raises, for example, where a header claims more pixels than OpenCV decodes.
    with suppress(cv2.error):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise DecodeError(f"the {kind} cannot be decoded: it is damaged or unusual; {COPY_AGAIN}")
    return image
