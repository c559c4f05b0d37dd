"""Decoded video frames as images: uint8 [h, w, 3] BGR."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt

# As OpenCV converts frames, so that scores stay comparable. Interlaced frames are converted field
# by field where the frame says so.
SCALE = "flags=bicubic:interl=-1"
# Required, and of no effect on the pixels.
TIME_BASE = Fraction(1, 1000)

Image = npt.NDArray[np.uint8]


class FrameConverter:
    """Converts the frames of one video, which may change their size and format.

    A filter of FFmpeg takes its images from a pool. Allocating several megabytes for each frame
    takes as long as the conversion, because the operating system maps these pages again each time.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._layout: tuple[object, ...] | None = None
        # PyAV frees the filters with their graph.
        self._graph: Any = None
        self._input: Any = None
        self._output: Any = None

    def convert(self, frame: Any) -> Image:
        """Convert a frame and turn it upright. Raises av.FFmpegError for an unknown format."""
        layout = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.colorspace,
            frame.color_range,
            frame.interlaced_frame,
        )
        if layout != self._layout:
            self._open(frame)
            self._layout = layout
        self._input.push(frame)
        # PyAV's type covers all formats.
        image = cast(Image, self._output.pull().to_ndarray())
        quarter_turns = round(frame.rotation / 90)
        if quarter_turns:
            image = np.rot90(image, quarter_turns)
        return np.ascontiguousarray(image)

    def _open(self, frame: Any) -> None:
        # Nothing of a graph that cannot be configured is used again.
        self._layout = None
        graph = av.filter.Graph()
        graph.threads = self._threads
        self._graph = graph
        self._input = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format.name,
            time_base=TIME_BASE,
        )
        scale = graph.add("scale", SCALE)
        pixel_format = graph.add("format", "bgr24")
        self._output = graph.add("buffersink")
        graph.link_nodes(self._input, scale, pixel_format, self._output)
        graph.configure()
