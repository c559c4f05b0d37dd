"""Decoding by OpenCV, for the formats that it reads right once the file is known to be complete."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import COPY_AGAIN, DecodeError


def decode_by_opencv(data: bytes, kind: str, flag: int) -> npt.NDArray[Any]:
    """Decode a whole file with `cv2.imdecode`. Raises DecodeError where it gives no image."""
    image = None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        # For example, a header that claims more pixels than OpenCV decodes.
        pass
    if image is None:
        raise DecodeError(f"the {kind} cannot be decoded: it is damaged or unusual; {COPY_AGAIN}")
    return image
