"""The preprocessing that training and runtime share, and its inverse.

Scores drift when training and runtime resize differently: plain `cv2.INTER_LINEAR` is 38 grey
levels away from area averaging on noise. So both call `prepare()`. The order of the colour channels
and the normalisation are part of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]

GEOMETRIES = ("stretch", "shorter-crop", "letterbox")
SMALLEST_SIDE = 32  # pixels
# Letterbox bars have the mean colour of ImageNet (BGR). It is zero after normalisation, so that the
# bars are as unremarkable as possible.
PADDING_BGR = (104, 116, 124)


@dataclass(frozen=True)
class Geometry:
    """How a source image of any size becomes the model's input of `height` x `width` pixels.

    stretch: both axes are scaled independently. shorter-crop: the shorter side is scaled to
    `shorter` pixels, then the centre is cut out (SimpleNet: 329 to 288). letterbox: the whole image
    is scaled to fit, and bars fill the rest. Raises ValueError for sizes that do not fit together.
    """

    kind: str
    height: int
    width: int
    shorter: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in GEOMETRIES:
            raise ValueError(f"geometry {self.kind!r} is unknown; known: {', '.join(GEOMETRIES)}")
        if min(self.height, self.width) < SMALLEST_SIDE:
            raise ValueError(
                f"input size {self.height}x{self.width} is below {SMALLEST_SIDE} pixels"
            )
        if (self.kind == "shorter-crop") != (self.shorter is not None):
            raise ValueError("`shorter` goes with geometry shorter-crop, and only with it")
        if self.shorter is not None and self.shorter < max(self.height, self.width):
            raise ValueError(
                f"shorter side {self.shorter} is smaller than the crop {self.height}x{self.width}"
            )

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (scaled height, scaled width, top, left) for a source image of this size.

        The input of the model is input[y, x] = scaled[y + top, x + left]; a negative top or left is
        the size of a bar.
        """
        if self.kind == "stretch":
            return self.height, self.width, 0, 0
        if self.kind == "letterbox":
            return self._place_letterbox(height, width)
        return self._place_crop(height, width)

    def _place_letterbox(self, height: int, width: int) -> tuple[int, int, int, int]:
        scale = min(self.height / height, self.width / width)
        scaled_height = min(self.height, max(1, round(height * scale)))
        scaled_width = min(self.width, max(1, round(width * scale)))
        top = -((self.height - scaled_height) // 2)
        left = -((self.width - scaled_width) // 2)
        return scaled_height, scaled_width, top, left

    def _place_crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        assert self.shorter is not None
        # As in torchvision: Resize truncates the longer side, CenterCrop rounds the offset.
        scaled_height = self.shorter
        scaled_width = self.shorter
        if height > width:
            scaled_height = int(self.shorter * height / width)
        if width > height:
            scaled_width = int(self.shorter * width / height)
        top = round((scaled_height - self.height) / 2)
        left = round((scaled_width - self.width) / 2)
        return scaled_height, scaled_width, top, left

    def uninspected(self, height: int, width: int) -> str | None:
        """Describe how much of a source image of this size the crop leaves out; None if nothing."""
        scaled_height, scaled_width, top, left = self.place(height, width)
        fits = (scaled_height, scaled_width) == (self.height, self.width)
        if self.kind != "shorter-crop" or fits:
            return None
        lost = 1 - self.height * self.width / (scaled_height * scaled_width)
        rows = round(top * height / scaled_height)
        columns = round(left * width / scaled_width)
        return (
            f"the centre crop leaves {lost:.0%} of a {width}x{height} image uninspected: "
            f"{rows} px at top and bottom, {columns} px left and right"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the manifest; `shorter` only if it is set."""
        fields: dict[str, Any] = {"kind": self.kind, "height": self.height, "width": self.width}
        if self.shorter is not None:
            fields["shorter"] = self.shorter
        return fields


def prepare(image: npt.NDArray[Any], geometry: Geometry) -> Image:
    """Turn a source image into the model's input: uint8 [height, width, 3] BGR, antialiased.

    `image` is uint8 [h, w, 3] BGR or [h, w] mono. Returns a new array. Raises ValueError for
    another dtype or shape: 16 bits and alpha are converted where the bit depth is known, by
    `to_8_bit` and `cameras.decode`, never here.
    """
    check_image(image)
    scaled_height, scaled_width, top, left = geometry.place(*image.shape[:2])
    scaled = resize(image, scaled_height, scaled_width)
    if scaled.ndim == 2:
        scaled = np.asarray(cv2.cvtColor(scaled, cv2.COLOR_GRAY2BGR), np.uint8)
    if (scaled_height, scaled_width) == (geometry.height, geometry.width):
        if scaled is image:
            return np.array(scaled)
        return np.ascontiguousarray(scaled)
    if geometry.kind == "letterbox":
        canvas = np.empty((geometry.height, geometry.width, 3), np.uint8)
        canvas[:] = PADDING_BGR
        canvas[-top : scaled_height - top, -left : scaled_width - left] = scaled
        return canvas
    crop = scaled[top : top + geometry.height, left : left + geometry.width]
    return np.ascontiguousarray(crop)


def check_image(image: npt.NDArray[Any]) -> None:
    """Check that an image is uint8 [h, w, 3] or [h, w] and not empty. Raises ValueError."""
    # For example None, which cv2.imread returns for a file that it cannot read.
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"expected a numpy array, uint8 [h, w, 3] or [h, w], got {type(image).__name__}"
        )
    is_mono = image.ndim == 2
    is_bgr = image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (is_mono or is_bgr):
        raise ValueError(
            f"expected uint8 [h, w, 3] or [h, w], got {image.dtype} {list(image.shape)}"
        )
    if 0 in image.shape:
        raise ValueError(f"the image is empty: {list(image.shape)}")


class ResizeStep(NamedTuple):
    """One step of resizing, to this size: areas are averaged, unless an axis `grows`."""

    height: int
    width: int
    grows: bool = False


def resize(image: Image, height: int, width: int) -> Image:
    """Resize an image, uint8 [h, w] or [h, w, 3], with antialiasing.

    An axis that shrinks is averaged over areas, an axis that grows is interpolated linearly. The
    result may be `image` itself.
    """
    return np.asarray(_resized(image, height, width), np.uint8)


def _resized(values: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Resize an array, uint8 or float32, as `resize` says."""
    current_height, current_width = values.shape[:2]
    for step in resize_steps(current_height, current_width, height, width):
        interpolation = cv2.INTER_LINEAR if step.grows else cv2.INTER_AREA
        values = cv2.resize(values, (step.width, step.height), interpolation=interpolation)
    return values


def resize_steps(
    height: int, width: int, target_height: int, target_width: int
) -> list[ResizeStep]:
    """Return the steps that resize an image of a height and width to the target.

    OpenCV rounds to whole grey levels after each step.
    """
    steps = []
    # OpenCV vectorises exact halving, but not a fractional area resize: halving first takes 1080p
    # to 256 pixels in a quarter of the time.
    halves = (_half(height, target_height), _half(width, target_width))
    while halves != (height, width):
        height, width = halves
        steps.append(ResizeStep(height, width))
        halves = (_half(height, target_height), _half(width, target_width))
    # Shrink before growing: as soon as one axis grows, OpenCV's area mode silently becomes bilinear
    # and aliases.
    smaller = (min(height, target_height), min(width, target_width))
    if smaller != (height, width):
        steps.append(ResizeStep(*smaller))
    if smaller != (target_height, target_width):
        steps.append(ResizeStep(target_height, target_width, grows=True))
    return steps


def _half(length: int, at_least: int) -> int:
    """Halve a length if it is even and stays at least as long as required."""
    if length % 2 == 0 and length // 2 >= at_least:
        return length // 2
    return length


def prepare_mask(mask: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Turn a ground-truth mask into the frame of the model's input: bool [height, width].

    `mask` is [h, w], and every value but zero is a defect. Uses the nearest neighbour; bars are not
    defective.
    """
    scaled_height, scaled_width, top, left = geometry.place(*mask.shape[:2])
    defect = (mask > 0).astype(np.uint8)
    size = (scaled_width, scaled_height)
    scaled = cv2.resize(defect, size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    prepared = np.zeros((geometry.height, geometry.width), bool)
    if geometry.kind == "letterbox":
        prepared[-top : scaled_height - top, -left : scaled_width - left] = scaled
    else:
        prepared[:] = scaled[top : top + geometry.height, left : left + geometry.width]
    return prepared


def prepare_area(inspected: npt.NDArray[np.bool_], geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Return which pixels of the model's input are inspected: bool [height, width].

    `inspected` is bool [h, w], True where a pixel of the source image is inspected. A pixel of the
    input is, if `prepare` computes it from such pixels alone; bars are not.
    """
    scaled_height, scaled_width, top, left = geometry.place(*inspected.shape)
    # In floating point, so that no small weight is rounded away. The shares of what is left out are
    # exactly 0 where nothing is; those of what is inspected are only about 1 where everything is.
    left_out = _resized((~inspected).astype(np.float32), scaled_height, scaled_width)
    inside: npt.NDArray[np.bool_] = left_out == 0
    if geometry.kind == "letterbox":
        prepared = np.zeros((geometry.height, geometry.width), bool)
        prepared[-top : scaled_height - top, -left : scaled_width - left] = inside
        return prepared
    return inside[top : top + geometry.height, left : left + geometry.width]


def to_source(values: Map, geometry: Geometry, height: int, width: int) -> Map:
    """Invert `prepare` for an anomaly map: float32 [height, width] in the source image.

    `values` is float32 of the size of the geometry. A pixel that the crop left out is NaN.
    """
    scaled_height, scaled_width, top, left = geometry.place(height, width)
    if geometry.kind == "letterbox":
        inner = values[-top : scaled_height - top, -left : scaled_width - left]
        return _stretch(inner, height, width)
    if (scaled_height, scaled_width) == values.shape:
        return _stretch(values, height, width)
    first_row = round(top * height / scaled_height)
    last_row = round((top + geometry.height) * height / scaled_height)
    first_column = round(left * width / scaled_width)
    last_column = round((left + geometry.width) * width / scaled_width)
    rows = max(last_row - first_row, 1)
    columns = max(last_column - first_column, 1)
    located = np.full((height, width), np.nan, np.float32)
    crop = (slice(first_row, first_row + rows), slice(first_column, first_column + columns))
    located[crop] = _stretch(values, rows, columns)
    return located


def _stretch(values: Map, height: int, width: int) -> Map:
    stretched = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(stretched, np.float32)
