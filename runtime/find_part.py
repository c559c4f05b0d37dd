"""Finds a part by a picture of it: how far it is turned and shifted in a frame.

First, the picture is compared with a small copy of the frame that is turned by each angle in steps,
by OpenCV's `matchTemplate`. The best place is then refined by its `findTransformECC`, on a copy of
a higher resolution. Both compare the magnitudes of gradients, as a lamp changes brightness, and
which side of an edge is the bright one, more than it moves edges. On the demo's bearing they halve
the error of the angle. Copies of a frame have grey levels and are halved, so that a large frame
takes little longer than a small one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image

Matrix = npt.NDArray[np.float64]
Gradients = npt.NDArray[np.float32]

# The area of the picture is halved until it has at most so many pixels, if its shorter side then
# keeps SHORTEST_SIDE. For the first search, it is halved COARSER times again.
MOST_PIXELS = 128 * 128
SHORTEST_SIDE = 48
COARSER = 1
# Gradients this near to the edge of the picture are not those of the whole frame, and are left out.
EDGE = 2
# From one angle of the first search to the next, no pixel moves by more than this.
STEP_PIXELS = 5.0
SMOOTHING = 1.0  # pixels, of the picture before its gradients
# A part that is nearly the same in several turns matches in each of them: at most so many are
# refined, and after one within the limits only those whose match is about that of the best one.
MOST_REFINED = 3
NEAR_BEST = 0.05
# A pose may be beyond the limits by so much, as it is only known so exactly.
TURN_SLACK = 1.0  # degrees
SHIFT_SLACK = 2.0  # pixels
# The refinement ends after so many steps, or when its match grows by less. It sees so many pixels
# around the picture.
STEPS = 10
SMALLEST_GAIN = 1e-3
MARGIN = 8


@dataclass(frozen=True)
class Pose:
    """How a part lies in a frame, relative to the picture that it was found by.

    `turn` is in degrees, clockwise. `shift_x` and `shift_y` say how far the centre of the region
    moved, in pixels, to the right and down. `quality` is the correlation with the picture, at most
    1; it is 0 where there is no match.
    """

    turn: float
    shift_x: float
    shift_y: float
    quality: float

    @property
    def shift(self) -> float:
        """The distance by which the part is shifted, in pixels."""
        return math.hypot(self.shift_x, self.shift_y)

    def matrix(self, centre: tuple[float, float]) -> Matrix:
        """Return the matrix [2, 3] that maps (x, y, 1) of the still part to (x, y) of the frame.

        `centre` is that of the region, (x, y), in the coordinates that are mapped.
        """
        moved = (centre[0] + self.shift_x, centre[1] + self.shift_y)
        return turned(self.turn, centre, moved)


def turned(turn: float, centre: tuple[float, float], moved: tuple[float, float]) -> Matrix:
    """Return the matrix [2, 3] that turns clockwise by degrees and maps `centre` to `moved`."""
    angle = math.radians(turn)
    cosine = math.cos(angle)
    sine = math.sin(angle)
    x, y = centre
    return np.array(
        [
            [cosine, -sine, moved[0] - cosine * x + sine * y],
            [sine, cosine, moved[1] - sine * x - cosine * y],
        ]
    )


def halvings(width: int, height: int) -> int:
    """Return how often a picture of a region of this size, in pixels, is halved."""
    count = 0
    while width * height > MOST_PIXELS * 4**count and min(width, height) >= SHORTEST_SIDE << (
        count + 1
    ):
        count += 1
    return count


def small_copy(image: Image, count: int) -> Image:
    """Return an image in grey levels, uint8 [h, w], its sides halved `count` times.

    A pixel of the result is the mean of a square of the image. Pixels at the right and at the
    bottom that fill no square are left out.
    """
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    for _ in range(count):
        height, width = (side // 2 * 2 for side in image.shape)
        size = (width // 2, height // 2)
        image = np.asarray(
            cv2.resize(image[:height, :width], size, interpolation=cv2.INTER_AREA), np.uint8
        )
    return image


def gradients(grey: Image) -> Gradients:
    """Return the magnitudes of the gradients of an image, uint8 [h, w]: float32 [h, w]."""
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), SMOOTHING)
    return np.asarray(
        cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)),
        np.float32,
    )


class _Place(NamedTuple):
    """A turn in degrees, a place of the picture's centre, in its pixels, and the match there."""

    turn: float
    x: float
    y: float
    match: float


@dataclass(frozen=True)
class PartFinder:
    """Finds a part in frames of one size, within limits.

    `picture` is the region of the reference picture as `small_copy` with `count` halvings returns
    it, uint8 [h, w]. `left` and `top` are its place in such a copy of the whole frame. `turn` is
    the largest angle in degrees, from 0 to 180, and `shift` the largest distance in pixels of the
    frame.
    """

    picture: Image
    count: int
    left: int
    top: int
    turn: float
    shift: float

    @property
    def scale(self) -> int:
        """How many pixels of the frame a pixel of the picture is long."""
        return 1 << self.count

    @cached_property
    def _fine(self) -> Gradients:
        return np.ascontiguousarray(gradients(self.picture)[EDGE:-EDGE, EDGE:-EDGE])

    @cached_property
    def _coarse(self) -> Gradients:
        small = gradients(small_copy(self.picture, COARSER))
        return np.ascontiguousarray(small[EDGE:-EDGE, EDGE:-EDGE])

    @cached_property
    def _centre(self) -> tuple[float, float]:
        """The centre of the picture in a copy of the frame, in the middle of pixels."""
        height, width = self.picture.shape
        return self.left + (width - 1) / 2, self.top + (height - 1) / 2

    @cached_property
    def _turns(self) -> list[float]:
        """The angles of the first search, in degrees."""
        height, width = self._coarse.shape
        step = math.degrees(STEP_PIXELS / (math.hypot(height, width) / 2))
        each = math.ceil(self.turn / step)
        return [float(turn) for turn in np.linspace(-self.turn, self.turn, 2 * each + 1)]

    def find(self, image: npt.NDArray[Any]) -> Pose:
        """Return where the part lies in a frame, uint8 [h, w, 3] BGR or [h, w].

        The pose is the best one that was found within the limits, whatever its quality. It is
        beyond them only if no other was found.
        """
        grey = small_copy(image, self.count)
        frame = gradients(grey)
        peaks = _peaks(self._search(gradients(small_copy(grey, COARSER))))
        found: list[Pose] = []
        within: list[Pose] = []
        for place in peaks[:MOST_REFINED]:
            # A part with a sixfold symmetry that is turned by 29 degrees is as well turned by -31.
            if within and place.match < peaks[0].match - NEAR_BEST:
                break
            pose = self._refine(frame, place)
            found.append(pose)
            if not self.beyond(pose):
                within.append(pose)
        return max(within or found, key=lambda pose: pose.quality)

    def beyond(self, pose: Pose) -> bool:
        """Tell whether a pose is beyond the limits, by more than what it is known to."""
        return abs(pose.turn) > self.turn + TURN_SLACK or pose.shift > self.shift + SHIFT_SLACK

    def _search(self, frame: Gradients) -> list[_Place]:
        """Return the best place for each turn; `frame` is of the lower resolution."""
        factor = 1 << COARSER
        reach = math.ceil(self.shift / (self.scale * factor)) + 1
        height, width = self._coarse.shape
        size = (width + 2 * reach, height + 2 * reach)
        middle = ((size[0] - 1) / 2, (size[1] - 1) / 2)
        # The first pixel of the lower resolution covers the first `factor` pixels of the other.
        centre_x = (self._centre[0] + 0.5) / factor - 0.5
        centre_y = (self._centre[1] + 0.5) / factor - 0.5
        places = []
        for turn in self._turns:
            matrix = turned(turn, middle, (centre_x, centre_y))
            # Outside of the frame nothing is known, so that there are no edges.
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            window = cv2.warpAffine(frame, matrix, size, flags=flags)
            matches = cv2.matchTemplate(window, self._coarse, cv2.TM_CCOEFF_NORMED)
            _, match, _, (column, row) = cv2.minMaxLoc(matches)
            x, y = matrix @ (middle[0] + column - reach, middle[1] + row - reach, 1)
            places.append(_Place(turn, (x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5, match))
        return places

    def _refine(self, frame: Gradients, place: _Place) -> Pose:
        """Return the pose near a place."""
        height, width = self._fine.shape
        size = (width + 2 * MARGIN, height + 2 * MARGIN)
        middle = ((size[0] - 1) / 2, (size[1] - 1) / 2)
        # OpenCV refines angles below 90 degrees only, so that it gets the frame turned already.
        to_frame = turned(place.turn, middle, (place.x, place.y))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        window = cv2.warpAffine(frame, to_frame, size, flags=flags)
        # What is outside of the frame counts neither for nor against the match.
        known = np.ones(frame.shape, np.uint8)
        inside = cv2.warpAffine(known, to_frame, size, flags=cv2.WARP_INVERSE_MAP)
        matrix = turned(0.0, (0.0, 0.0), (MARGIN, MARGIN))
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, STEPS, SMALLEST_GAIN)
        quality = 0.0
        try:
            quality, refined = cv2.findTransformECC(
                self._fine,
                window,
                matrix.astype(np.float32),
                cv2.MOTION_EUCLIDEAN,
                criteria,
                inside,
                1,
            )
            matrix = np.asarray(refined, np.float64)
        except cv2.error:
            # It does not converge: the frame does not show the part here.
            pass
        angle = place.turn + math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))
        x, y = to_frame @ (*(matrix @ ((width - 1) / 2, (height - 1) / 2, 1)), 1)
        return Pose(
            turn=_rounded((angle + 180) % 360 - 180, 3),
            shift_x=_rounded(float(x - self._centre[0]) * self.scale, 2),
            shift_y=_rounded(float(y - self._centre[1]) * self.scale, 2),
            quality=_rounded(float(quality), 4),
        )


def _rounded(value: float, digits: int) -> float:
    """Return a value to fewer digits than OpenCV's are the same in.

    The last bits of its sums depend on where the arrays lie in memory: without rounding, a frame
    that is judged again would get another score, as far as its last digits go.
    """
    # Adding zero makes a zero of -0.0.
    return round(value, digits) + 0.0


def _peaks(places: Sequence[_Place]) -> list[_Place]:
    """Return the places whose match is a peak over the turn, the best one first."""
    peaks = []
    for number, place in enumerate(places):
        beside = places[max(number - 1, 0) : number + 2]
        if place.match == max(near.match for near in beside):
            peaks.append(place)
    peaks.sort(key=lambda place: -place.match)
    return peaks
