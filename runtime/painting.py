"""How a verdict is drawn: the anomaly map over its image, and the line of text below it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image, Map, to_source
from flawline.runtime.manifest import Manifest, Spread

# How much of the colour, and of the brightness, of a pixel above the pixel threshold is replaced.
# The brightness is mostly kept, so that a defect stays visible below its colour; the small part
# that is replaced makes the colour visible on black.
COLOUR_SHARE = 0.65
BRIGHTNESS_SHARE = 0.2
# The scale of the colours reaches at least to this multiple of the pixel threshold, so that a value
# just above it is not painted as if it were extreme.
SHORTEST_SCALE = 4.0
# Of cv2.COLORMAP_AUTUMN, which goes from red at 0 to yellow at 255.
YELLOW = 255
OUTLINE_BGR = (0, 255, 255)
# The outline has dark edges, so that it is visible on bright parts, too.
OUTLINE_EDGE_BGR = (20, 20, 20)
# An image of this many pixels per side has an outline of one pixel.
OUTLINE_PIXELS = 400


def paint(
    image: npt.NDArray[Any], anomaly_map: Map, manifest: Manifest, threshold: float | None = None
) -> Image:
    """Paint an anomaly map over its source image: uint8 [h, w, 3] BGR.

    `image` is uint8 [h, w, 3] BGR or [h, w] mono, or a frame as the bundle's graph takes it, and
    `anomaly_map` float32 [H, W] on the model's input grid. Colour starts above the usual largest
    value of a good image, and the outline encloses what is above `threshold`, the pixel threshold
    of the calibration; None is `pixel_threshold`.
    """
    if threshold is None:
        threshold = pixel_threshold(manifest.map_peak)
    # A threshold for a high rate may lie below the usual largest value.
    low = min(manifest.map_peak.mean, threshold - manifest.map_peak.std)
    span = max(threshold - low, 1e-6)
    height, width = image.shape[:2]
    graph_input = manifest.graph_input
    anomaly_map = graph_input.map_of_frame(anomaly_map, image, cv2.INTER_LINEAR)
    located = to_source(anomaly_map, graph_input.frame_geometry, height, width)
    area = manifest.inspected_area
    if area is not None and manifest.fixture is None:
        located[~area.mask_at(height, width)] = np.nan
    picture = graph_input.picture(image)
    return overlay(picture, np.asarray((located - low) / span, np.float32))


def pixel_threshold(map_peak: Spread) -> float:
    """Return the value of the map above which a pixel is anomalous in a bundle without one.

    `map_peak` describes the largest value of the map of each held-out good image. No pixel of
    these images is above the threshold. With few good images their maximum may be low by chance;
    three deviations bound it from below.
    """
    return max(map_peak.max, map_peak.mean + 3 * map_peak.std)


def overlay(image: Image, levels: Map) -> Image:
    """Tint an image where its anomaly map is high, and outline the anomalous regions.

    `image` is uint8 [h, w, 3] BGR or [h, w] mono. `levels` is float32 [h, w]: 0 and below is left
    as it is, 1 is the pixel threshold, which the outline follows, and NaN is not painted. The
    colour goes from yellow to red at the largest level of the image, on a logarithmic scale that
    shows the core of a region whose levels are all far above 1. The brightness of the image is
    mostly kept. Returns uint8 [h, w, 3] BGR.
    """
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    levels = np.maximum(np.nan_to_num(levels, nan=0.0), 0)
    # Most of an image is usually not painted, so only the rest is computed.
    rows, columns = np.nonzero(levels > 0)
    painted = np.array(image)
    if not rows.size:
        return painted
    region = (
        slice(rows.min(), rows.max() + 1),
        slice(columns.min(), columns.max() + 1),
    )
    painted[region] = _tinted(image[region], levels[region])
    draw_outline(painted, levels)
    return painted


def _tinted(image: Image, levels: Map) -> Image:
    """Replace the colour, and a part of the brightness, of pixels with a level above 0."""
    colour = np.asarray(cv2.cvtColor(_colours(levels), cv2.COLOR_BGR2YCrCb), np.float32)
    tinted = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb), np.float32)
    share = np.minimum(levels, 1)[..., None] * (BRIGHTNESS_SHARE, COLOUR_SHARE, COLOUR_SHARE)
    tinted += (colour - tinted) * share.astype(np.float32)
    rounded = np.clip(np.rint(tinted), 0, 255).astype(np.uint8)
    result = np.asarray(cv2.cvtColor(rounded, cv2.COLOR_YCrCb2BGR), np.uint8)
    # The conversion to YCrCb and back changes colours by one grey level.
    return np.asarray(np.where(levels[..., None] > 0, result, image), np.uint8)


def _colours(levels: Map) -> Image:
    """Return the colour of each level at full strength: uint8 [h, w, 3] BGR."""
    longest = max(float(levels.max()), SHORTEST_SCALE)
    compressed = np.log1p(levels) / np.log1p(longest)
    indices = np.rint(YELLOW * (1 - compressed)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(indices, cv2.COLORMAP_AUTUMN), np.uint8)


def draw_outline(painted: Image, levels: Map) -> None:
    """Draw a line around the regions above 1 into the image."""
    anomalous = (levels > 1).astype(np.uint8)
    contours, _ = cv2.findContours(anomalous, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(painted.shape[:2]) / OUTLINE_PIXELS))
    cv2.drawContours(painted, contours, -1, OUTLINE_EDGE_BGR, thickness + 2, cv2.LINE_AA)
    cv2.drawContours(painted, contours, -1, OUTLINE_BGR, thickness, cv2.LINE_AA)
