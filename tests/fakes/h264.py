"""Packets of H.264, encoded with the options of a test."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np

SIDE = 64
COUNT = 50
KEY_EVERY = 20


def encode(options: Mapping[str, str]) -> list[Any]:
    """Encode a moving pattern; return the packets in the order in which they are sent."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width = codec.height = SIDE
    codec.pix_fmt = "yuv444p" if options.get("profile") == "high444" else "yuv420p"
    codec.time_base = Fraction(1, 25)
    codec.gop_size = KEY_EVERY
    codec.options = {"preset": "veryfast", "sc_threshold": "0", **options}
    sent: list[Any] = []
    rows, columns = np.indices((SIDE, SIDE))
    for number in range(COUNT):
        grey = ((rows + columns * 2 + 9 * number) % 256).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format="rgb24")
        sent += codec.encode(frame.reformat(format=codec.pix_fmt))
    return sent + codec.encode(None)
