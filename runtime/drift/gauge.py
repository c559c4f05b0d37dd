"""The quantities of a frame, compared with the mean picture or the textures of good images."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.drift.meter import (
    SIDE,
    TEXTURE_SIZE,
    Cells,
    Floats,
    FrameMeter,
    Measured,
    Vector,
)
from flawline.runtime.drift.quantities import (
    ACROSS,
    DOWN,
    FINENESS,
    HALF_FINENESS,
    LIKENESS,
    TEXTURE,
)
from flawline.runtime.drift.reading import Reading
from flawline.runtime.drift.reference import DriftReference, Texture
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image

# How far a part is looked for, in cells of the small picture on each side.
REACH = 10
# Uneven light changes slowly over the picture, and is taken away by a local mean of so many cells.
SMOOTH = 15
# Correlations of so few cells are not trusted.
FEWEST_CELLS = 100


class PlaceFinder:
    """Finds where the mean picture lies in a small picture, and how well the two agree.

    `cells` is as of `FrameMeter`. The same cells are compared at every place, so that none of those
    within REACH of what is not inspected counts.
    """

    def __init__(self, mean: Floats, cells: Cells) -> None:
        self._cells = cells
        self._mask: Floats | None = None
        middle = slice(REACH, SIDE - REACH)
        if cells is not None:
            size = 2 * REACH + 1
            inner = cv2.erode(cells, np.ones((size, size), np.uint8), borderValue=255)
            self._mask = (inner[middle, middle] > 0).astype(np.float32)
        self._template = np.ascontiguousarray(detail(mean, cells)[middle, middle])

    @property
    def usable(self) -> bool:
        """Whether enough of the picture is inspected at every place."""
        return self._mask is None or float(self._mask.sum()) >= FEWEST_CELLS

    def find(self, picture: Image) -> tuple[float, float, float]:
        """Return the shift to the right and down, in percent of the frame, and the correlation."""
        values = detail(picture, self._cells)
        method = cv2.TM_CCOEFF_NORMED
        if self._mask is None:
            matches = cv2.matchTemplate(values, self._template, method)
        else:
            matches = cv2.matchTemplate(values, self._template, method, mask=self._mask)
        # A picture without any detail.
        matches = np.nan_to_num(np.asarray(matches, np.float32), posinf=0.0, neginf=0.0)
        _, best, _, (x, y) = cv2.minMaxLoc(matches)
        across = x + _peak(matches[y, max(x - 1, 0) : x + 2]) - REACH
        down = y + _peak(matches[max(y - 1, 0) : y + 2, x]) - REACH
        return 100 * across / SIDE, 100 * down / SIDE, best


def detail(picture: npt.NDArray[Any], cells: Cells) -> Floats:
    """Return a small picture without its local mean, float32 [64, 64]."""
    values = picture.astype(np.float32)
    size = (SMOOTH, SMOOTH)
    if cells is None:
        return np.asarray(values - cv2.blur(values, size), np.float32)
    share = (cells > 0).astype(np.float32)
    weight = np.maximum(cv2.blur(share, size), 1e-3)
    return np.asarray((values - cv2.blur(values * share, size) / weight) * share, np.float32)


def _peak(values: npt.NDArray[Any]) -> float:
    """Return where the parabola through three values has its peak, from -0.5 to 0.5."""
    if len(values) < 3:
        return 0.0
    before, at, after = values.tolist()
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else 0.5 * (before - after) / bend


class TextureDistance:
    """The distance of a texture from those of good images, whatever the light and the focus."""

    def __init__(self, texture: Texture) -> None:
        self._whitening = np.array(texture.whitening).reshape(TEXTURE_SIZE, TEXTURE_SIZE)
        mean = np.array(texture.mean)
        means = [mean, *(mean + np.array(change) for change in texture.changes)]
        self._means = np.stack(means) @ self._whitening.T

    def of(self, texture: Vector) -> float:
        """Return the distance, in standard deviations of the good images."""
        differences = self._means - self._whitening @ texture
        return float(np.sqrt((differences * differences).sum(1).min()))


class Gauge:
    """Measures frames as `GraphInput.of_frame` returns them. Any thread may use it."""

    def __init__(self, reference: DriftReference, graph_input: GraphInput) -> None:
        self._meter = FrameMeter(graph_input, reference.texture is not None)
        self._finder: PlaceFinder | None = None
        self._fineness = reference.fineness
        self._texture: TextureDistance | None = None
        if reference.picture is not None:
            mean = np.frombuffer(reference.picture, np.uint8).reshape(SIDE, SIDE)
            self._finder = PlaceFinder(mean.astype(np.float32), self._meter.cells)
        if reference.texture is not None:
            self._texture = TextureDistance(reference.texture)

    def read(self, image: npt.NDArray[Any]) -> Reading:
        """Return the quantities of a frame but its score: uint8 [h, w, 3] BGR or [h, w]."""
        measured = self._meter.measure(image)
        values = plain_values(measured)
        if self._fineness is not None:
            excess = self._fineness.excess(measured.fineness, measured.structure)
            values[FINENESS], values[HALF_FINENESS] = excess.tolist()
        if self._finder is not None:
            values[ACROSS], values[DOWN], values[LIKENESS] = self._finder.find(measured.picture)
        if self._texture is not None:
            values[TEXTURE] = self._texture.of(measured.texture)
        return Reading(values, measured.picture)


def plain_values(measured: Measured) -> dict[str, float]:
    """Return the quantities that are not compared with other images."""
    return {
        "brightness": measured.brightness,
        "contrast": measured.contrast,
        "red": measured.red,
        "blue": measured.blue,
    }
