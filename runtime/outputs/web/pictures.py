"""Pictures of judged frames for a browser: the anomaly map over the image, as JPEG."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.pixels import to_8_bit
from flawline.runtime.frame_image import image_of
from flawline.runtime.image import Image
from flawline.runtime.outputs.web.lane import Shown
from flawline.runtime.painting import paint

LONGEST_SIDE = 960  # pixels
JPEG_QUALITY = 82
# After a picture that took a second of computing, none is made for so many seconds: encoding takes
# at most an eighth of one thread, however many browsers there are.
REST = 7.0


class Pictures:
    """Encodes pictures, one at a time, and not more often than REST allows.

    The newest picture of a lane never waits: several browsers share it, and one that asks while
    none may be made gets the last one. Any thread may call. `clock` returns seconds that never go
    backwards, and `used` the seconds of computing of the calling thread.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock = clock
        self._used = used
        self._lock = threading.Lock()
        self._rest_until = 0.0
        # The last picture of each lane, with and without map, and the number of its frame.
        self._last: dict[tuple[str, bool], tuple[int, bytes]] = {}

    @property
    def pause(self) -> float:
        """The seconds for which no further picture is to be made, 0 if one may be made now."""
        return max(0.0, self._rest_until - self._clock())

    def newest(self, shown: Shown, with_map: bool) -> tuple[int, bytes]:
        """Return the picture of a frame of a lane, or an earlier one, with its frame's number."""
        key = (shown.lane, with_map)
        with self._lock:
            last = self._last.get(key)
            if last is not None and (self.pause > 0 or last[0] == shown.number):
                return last
            made = (shown.number, self._encode(shown, with_map))
            self._last[key] = made
            return made

    def encode(self, shown: Shown) -> bytes:
        """Return the picture of this frame, with its map. The caller has waited for `pause`."""
        with self._lock:
            return self._encode(shown, True)

    def _encode(self, shown: Shown, with_map: bool) -> bytes:
        """Encode a picture, and begin to rest. The caller holds the lock."""
        # Not by the clock, which also runs while other processes use the CPU.
        start = self._used()
        picture = jpeg_of(shown, with_map)
        self._rest_until = self._clock() + REST * (self._used() - start)
        return picture


def jpeg_of(shown: Shown, with_map: bool, longest: int = LONGEST_SIDE) -> bytes:
    """Return a frame as JPEG, at most `longest` pixels long, with its anomaly map if it has one.

    The frame must have an image.
    """
    image = _image(shown)
    manifest = shown.bundle.manifest
    is_plain = manifest.source is None and manifest.fixture is None
    if is_plain:
        # Painted in the size that is shown: less work, and lines that are as wide on each camera.
        image = _shrunk(image, longest)
    verdict = shown.judgement.verdict
    if with_map and verdict.judged and verdict.anomaly_map is not None and shown.bundle.has_map:
        threshold = shown.bundle.calibration.pixel_threshold
        try:
            image = paint(image, verdict.anomaly_map, manifest, threshold)
        except (ValueError, cv2.error):
            # A frame whose part is not found again is shown as it is.
            image = _picture(shown, image)
    else:
        image = _picture(shown, image)
    _encoded, data = cv2.imencode(
        ".jpg", _shrunk(image, longest), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    return data.tobytes()


def _image(shown: Shown) -> Image:
    """Return the image of a frame at 8 bits, also of one that could not be judged."""
    frame = shown.judgement.frame
    assert frame.image is not None
    try:
        return image_of(frame, shown.bundle.manifest)
    except ValueError:
        # Its bit depth is unknown or another one, which the reason of the verdict says.
        return to_8_bit(frame.image, frame.bit_depth or 16)


def _picture(shown: Shown, image: Image) -> Image:
    """Return an image as it is painted: a mosaic of a camera becomes colours."""
    try:
        return shown.bundle.manifest.graph_input.picture(image)
    except (ValueError, cv2.error):
        return image


def _shrunk(image: npt.NDArray[Any], longest: int) -> Image:
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return np.asarray(image, np.uint8)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
