"""The camera's own frame as the input of a graph, instead of an image that `prepare()` resized.

A bundle that was built with `--source` has graphs that begin with the resizing, the crop and the
colour conversion: a GPU then gets one upload and runs one graph. Such a graph takes frames of one
size and one layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.image import SMALLEST_SIDE, Image, check_image

BGR = "bgr"
MONO = "mono"
# The colours of the first two pixels of the first two rows, and OpenCV's bilinear conversion.
BAYER = {
    "bayer-rggb": cv2.COLOR_BayerRGGB2BGR,
    "bayer-grbg": cv2.COLOR_BayerGRBG2BGR,
    "bayer-gbrg": cv2.COLOR_BayerGBRG2BGR,
    "bayer-bggr": cv2.COLOR_BayerBGGR2BGR,
}
LAYOUTS = (BGR, MONO, *BAYER)
# The value of a graph that a frame is prepared to: planes of whole grey levels, FP32 [N, 3, H, W].
PREPARED = "source.prepared"
# A model's input has at most so many pixels on a side, also before it is cropped, and so has a
# frame.
LARGEST_SIDE = 16384
_TEXT = re.compile(r"(?P<width>[0-9]{1,5})x(?P<height>[0-9]{1,5})(:(?P<layout>[a-z-]+))?")


class SourceError(FlawlineError, ValueError):
    """A frame or an image is not what the graph of a bundle takes."""


@dataclass(frozen=True)
class SourceFrame:
    """The size and the layout of a camera's frames at 8 bits.

    `layout` is one of LAYOUTS: "bgr" is uint8 [height, width, 3], "mono" and the Bayer mosaics are
    uint8 [height, width]. Raises ValueError for an unknown layout, a side below SMALLEST_SIDE or
    above LARGEST_SIDE, or a mosaic with an odd side.
    """

    height: int
    width: int
    layout: str = BGR

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout {self.layout!r} is unknown; known: {', '.join(LAYOUTS)}")
        if min(self.height, self.width) < SMALLEST_SIDE:
            raise ValueError(f"a side of {self.width}x{self.height} is below {SMALLEST_SIDE}")
        if max(self.height, self.width) > LARGEST_SIDE:
            raise ValueError(f"a side of {self.width}x{self.height} is above {LARGEST_SIDE}")
        if self.is_bayer and (self.height % 2 or self.width % 2):
            raise ValueError(f"a Bayer mosaic of {self.width}x{self.height} has an odd side")

    @property
    def is_bayer(self) -> bool:
        """True if each pixel has one of three colours."""
        return self.layout in BAYER

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a frame: (height, width, 3) for "bgr", else (height, width)."""
        if self.layout == BGR:
            return self.height, self.width, 3
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}:{self.layout}"

    def converts(self, shape: tuple[int, ...]) -> bool:
        """Tell whether images of a shape are of this size and another layout."""
        return shape[:2] == (self.height, self.width) and shape != self.shape

    @property
    def remedy(self) -> str:
        """What makes the conversion of frames of another layout unnecessary."""
        if self.layout == BGR:
            return f"build the bundle with --source {self.width}x{self.height}:{MONO}"
        return f"let the camera send {self.layout}"

    def frame_of(self, image: npt.NDArray[Any]) -> Image:
        """Return an image as this camera sends it.

        `image` is uint8 [h, w, 3] BGR or [h, w], and of this size. One of this layout is returned
        as it is. Images of data sets may have another one: a mono image becomes BGR, and a BGR
        image a mosaic, which has of each pixel the one colour that the camera sees. Raises
        SourceError for another size and for colours where the camera is monochrome, and ValueError
        for another dtype or shape.
        """
        check_image(image)
        height, width = image.shape[:2]
        if (height, width) != (self.height, self.width):
            raise SourceError(
                f"the image is {width}x{height}, and the bundle was built for frames of {self}; "
                f"set the camera to them, or build the bundle with "
                f"--source {width}x{height}:{self.layout} or without it"
            )
        if image.shape == self.shape:
            return image
        if self.layout == BGR:
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
        if self.is_bayer:
            return self._mosaic(image)
        if (image != image[..., :1]).any():
            raise SourceError(
                f"the image has colours, and the bundle was built for frames of {self}; build it "
                f"with --source {width}x{height} or without it"
            )
        return np.ascontiguousarray(image[..., 0])

    def _mosaic(self, image: Image) -> Image:
        mosaic = np.empty(image.shape[:2], np.uint8)
        for position, colour in enumerate(self.layout[-4:]):
            row, column = divmod(position, 2)
            mosaic[row::2, column::2] = image[row::2, column::2, BGR.index(colour)]
        return mosaic

    def picture(self, frame: Image) -> Image:
        """Return a frame as an image to prepare or to paint: uint8 [h, w, 3] BGR or [h, w] mono.

        A frame of another shape than `shape` is returned as it is.
        """
        if self.is_bayer and frame.shape == self.shape:
            return np.asarray(cv2.cvtColor(frame, BAYER[self.layout]), np.uint8)
        return frame


def parse_source(text: str) -> SourceFrame:
    """Read WIDTHxHEIGHT or WIDTHxHEIGHT:LAYOUT. Raises ValueError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not WIDTHxHEIGHT or WIDTHxHEIGHT:LAYOUT, such as 1920x1080:bayer-rggb"
        )
    return SourceFrame(int(match["height"]), int(match["width"]), match["layout"] or BGR)
