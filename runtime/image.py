"""Pixels in, pixels out: the one preprocessing that training and runtime share, its inverse, and the overlay.

Scores drift when training and runtime resize differently: plain `cv2.INTER_LINEAR` is 38 grey levels away from
area averaging on noise. So both sides call `prepare()`; channel order and normalisation are in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.pixels import to_8_bit

__all__ = [
    "GEOMETRIES",
    "Geometry",
    "Image",
    "Map",
    "overlay",
    "prepare",
    "prepare_mask",
    "resize",
    "to_8_bit",
    "to_source",
]

Image = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]

GEOMETRIES = ("stretch", "shorter-crop", "letterbox")
# Letterbox bars take ImageNet's mean colour (BGR): zero after normalisation, so the bars are the least remarkable.
PADDING_BGR = (104, 116, 124)


@dataclass(frozen=True)
class Geometry:
    """How a source image of any size becomes the model's input of `height` x `width` pixels.

    stretch: both axes are scaled on their own. shorter-crop: the shorter side is scaled to `shorter` pixels, then
    the centre is cut out (SimpleNet: 329 to 288). letterbox: the whole image is kept, bars fill the rest.
    """

    kind: str
    height: int
    width: int
    shorter: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in GEOMETRIES:
            raise ValueError(f"geometry {self.kind!r} is unknown; known: {', '.join(GEOMETRIES)}")
        if min(self.height, self.width) < 32:
            raise ValueError(f"input size {self.height}x{self.width} is below 32 pixels")
        if (self.kind == "shorter-crop") != (self.shorter is not None):
            raise ValueError("`shorter` goes with geometry shorter-crop, and only with it")
        if self.shorter is not None and self.shorter < max(self.height, self.width):
            raise ValueError(
                f"shorter side {self.shorter} is smaller than the crop {self.height}x{self.width}"
            )

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(scaled height, scaled width, top, left): input[y, x] = scaled[y + top, x + left]; negative top is a bar."""
        if self.kind == "stretch":
            return self.height, self.width, 0, 0
        if self.kind == "letterbox":
            scale = min(self.height / height, self.width / width)
            scaled_h = min(self.height, max(1, round(height * scale)))
            scaled_w = min(self.width, max(1, round(width * scale)))
            return (
                scaled_h,
                scaled_w,
                -((self.height - scaled_h) // 2),
                -((self.width - scaled_w) // 2),
            )
        assert self.shorter is not None
        # torchvision's Resize truncates the longer side; its CenterCrop rounds the offset.
        scaled_h = self.shorter if height <= width else int(self.shorter * height / width)
        scaled_w = self.shorter if width <= height else int(self.shorter * width / height)
        return (
            scaled_h,
            scaled_w,
            round((scaled_h - self.height) / 2),
            round((scaled_w - self.width) / 2),
        )

    def uninspected(self, height: int, width: int) -> str | None:
        """What a source image of this size loses to the crop, in one sentence; None where nothing is lost."""
        scaled_h, scaled_w, top, left = self.place(height, width)
        if self.kind != "shorter-crop" or (scaled_h, scaled_w) == (self.height, self.width):
            return None
        lost = 1 - self.height * self.width / (scaled_h * scaled_w)
        rows, columns = round(top * height / scaled_h), round(left * width / scaled_w)
        return (
            f"the centre crop leaves {lost:.0%} of a {width}x{height} image uninspected: "
            f"{rows} px at top and bottom, {columns} px left and right"
        )

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"kind": self.kind, "height": self.height, "width": self.width}
        return fields if self.shorter is None else {**fields, "shorter": self.shorter}


def prepare(image: npt.NDArray[Any], geometry: Geometry) -> Image:
    """uint8 [h, w, 3] BGR or [h, w] mono to uint8 [height, width, 3] BGR, antialiased.

    Returns a new array. Raises ValueError for another dtype or shape: turning 16-bit or alpha into 8-bit BGR is a
    decision that the reader of the file takes (`cameras.decode.read_image`), never this function.
    """
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] != 3)
    ):
        raise ValueError(
            f"expected uint8 [h, w, 3] or [h, w], got {image.dtype} {list(image.shape)}"
        )
    if 0 in image.shape:
        raise ValueError(f"the image is empty: {list(image.shape)}")
    scaled_h, scaled_w, top, left = geometry.place(*image.shape[:2])
    scaled: npt.NDArray[Any] = resize(image, scaled_h, scaled_w)
    if scaled.ndim == 2:
        scaled = cv2.cvtColor(scaled, cv2.COLOR_GRAY2BGR)
    if (scaled_h, scaled_w) == (geometry.height, geometry.width):
        return np.array(scaled) if scaled is image else np.ascontiguousarray(scaled)
    if geometry.kind == "letterbox":
        canvas = np.empty((geometry.height, geometry.width, 3), np.uint8)
        canvas[:] = PADDING_BGR
        canvas[-top : scaled_h - top, -left : scaled_w - left] = scaled
        return canvas
    return np.ascontiguousarray(scaled[top : top + geometry.height, left : left + geometry.width])


def resize(image: Image, height: int, width: int) -> Image:
    """Antialiased resize: area averaging on every axis that shrinks, bilinear on every axis that grows.

    Halving exactly is vectorised in OpenCV, a fractional area resize is not: halving first takes 1080p to 256 in a
    quarter of the time. An axis that shrinks is done before one that grows, because OpenCV's area mode silently
    turns bilinear, and aliases, as soon as one axis grows.
    """
    h, w = image.shape[:2]
    while True:
        half_h = h // 2 if h % 2 == 0 and h // 2 >= height else h
        half_w = w // 2 if w % 2 == 0 and w // 2 >= width else w
        if (half_h, half_w) == (h, w):
            break
        h, w = half_h, half_w
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    down_h, down_w = min(h, height), min(w, width)
    if (down_h, down_w) != (h, w):
        image = cv2.resize(image, (down_w, down_h), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    if (down_h, down_w) != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return image


def prepare_mask(mask: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[np.bool_]:
    """A ground-truth mask [h, w] (any non-zero is defect) in the model's input frame: bool [height, width], nearest."""
    scaled_h, scaled_w, top, left = geometry.place(*mask.shape[:2])
    scaled = cv2.resize(
        (mask > 0).astype(np.uint8), (scaled_w, scaled_h), interpolation=cv2.INTER_NEAREST_EXACT
    )
    out = np.zeros((geometry.height, geometry.width), bool)
    if geometry.kind == "letterbox":
        out[-top : scaled_h - top, -left : scaled_w - left] = scaled > 0
        return out
    out[:] = scaled[top : top + geometry.height, left : left + geometry.width] > 0
    return out


def to_source(
    values: Map, geometry: Geometry, height: int, width: int, outside: float = np.nan
) -> Map:
    """The inverse of `prepare` for an anomaly map: float32 [geometry] to [height, width] of the source image.

    Where a crop looked at nothing the result is `outside`.
    """
    scaled_h, scaled_w, top, left = geometry.place(height, width)
    if geometry.kind == "letterbox":
        inner = values[-top : scaled_h - top, -left : scaled_w - left]
        return _stretch(inner, height, width)
    if (scaled_h, scaled_w) == values.shape:
        return _stretch(values, height, width)
    y0, y1 = (round(y * height / scaled_h) for y in (top, top + geometry.height))
    x0, x1 = (round(x * width / scaled_w) for x in (left, left + geometry.width))
    full = np.full((height, width), outside, np.float32)
    y1, x1 = max(y1, y0 + 1), max(x1, x0 + 1)
    full[y0:y1, x0:x1] = _stretch(values, y1 - y0, x1 - x0)
    return full


def _stretch(values: Map, height: int, width: int) -> Map:
    return np.asarray(
        cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), np.float32
    )


def overlay(image: Image, heat: Map) -> Image:
    """The source image with heat painted over it: uint8 [h, w, 3] BGR and heat [h, w] in 0..1; NaN stays unpainted.

    Opacity follows heat, so that a good part still looks like itself.
    """
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)  # type: ignore[assignment]
    heat = np.clip(np.nan_to_num(heat, nan=0.0), 0, 1)
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = (0.75 * np.sqrt(heat))[..., None]
    return np.asarray(image * (1 - alpha) + colour * alpha, np.uint8)
