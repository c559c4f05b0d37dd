"""A running GStreamer pipeline: its newest picture, its errors and its end. Needs PyGObject."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, Grabbed, PermanentError

SECOND = 10**9  # nanoseconds
POLL_S = 0.2  # seconds that `read` waits at most
# The pictures that are taken: as they are if possible, and otherwise converted to BGR.
# Each with its number of channels and the type of its values.
FORMATS: dict[str, tuple[int, np.dtype[Any]]] = {
    "BGR": (3, np.dtype(np.uint8)),
    "GRAY8": (1, np.dtype(np.uint8)),
    "GRAY16_LE": (1, np.dtype("<u2")),
}
# GStreamer does not wait for the time of a picture.
SINK = (
    f"videoconvert ! video/x-raw,format=(string){{{','.join(FORMATS)}}} ! "
    f"appsink name=flawline sync=false"
)
# One picture, the newest one; GStreamer drops the others.
NEWEST = "drop=true max-buffers=1"
# The pipeline waits while so many pictures wait to be taken.
EVERY = "drop=false max-buffers=4"


def load_gstreamer() -> Any:
    """Import and initialise GStreamer. Raises ImportError, or ValueError if a part is absent."""
    with warnings.catch_warnings():
        # PyGObject warns about its own way of importing.
        warnings.simplefilter("ignore")
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        # GstApp gives the sink its methods.
        from gi.repository import Gst, GstApp  # noqa: F401

    if not Gst.is_initialized():
        Gst.init(None)
    return Gst


class GstPipeline:
    """Runs the elements of a description, which ends before the sink. `source` names it in errors.

    `hide` removes secrets from a text of GStreamer. `keeps_all` takes every picture instead of the
    newest one. Raises CameraError, and PermanentError for a description that is not valid. Not safe
    for use by several threads.
    """

    def __init__(
        self,
        description: str,
        source: str,
        hide: Callable[[str], str],
        clock: Clock,
        keeps_all: bool = False,
    ) -> None:
        self._gst = load_gstreamer()
        self._source = source
        self._hide = hide
        self._clock = clock
        self._keeps_all = keeps_all
        sink = f"{SINK} {EVERY if keeps_all else NEWEST}"
        try:
            self._pipeline = self._gst.parse_launch(f"{description} ! {sink}")
        except Exception as error:
            # PyGObject's class of this error has no name that can be imported without it.
            text = self._hide(str(getattr(error, "message", error)))
            raise PermanentError(
                f"camera {source}: GStreamer cannot build this pipeline ({text}); try it with "
                f"gst-launch-1.0"
            ) from None
        self._sink = self._pipeline.get_by_name("flawline")
        # Pictures that were taken from the sink, and that it dropped.
        self._taken = 0
        self._dropped = 0
        self._bus = self._pipeline.get_bus()
        state = self._pipeline.set_state(self._gst.State.PAUSED)
        # Only the pictures of a live source have the time of their capture.
        self._is_live = state == self._gst.StateChangeReturn.NO_PREROLL
        if self._pipeline.set_state(self._gst.State.PLAYING) == self._gst.StateChangeReturn.FAILURE:
            error_text = self._error() or "it does not start"
            self.close()
            raise CameraError(f"camera {source}: {error_text}")

    def read(self) -> Grabbed | None:
        """Return the next picture, or None if there is none within POLL_S seconds.

        The payload is a sample of GStreamer. Raises CorruptFrame, EndOfStream at the end, and
        CameraError for an error of an element.
        """
        sample = self._sink.try_pull_sample(int(POLL_S * SECOND))
        if sample is not None:
            self._taken += 1
            return self._grabbed(sample)
        text = self._error()
        if text is not None:
            raise CameraError(f"camera {self._source}: {text}")
        if self._sink.is_eos():
            raise EndOfStream
        return None

    def _grabbed(self, sample: Any) -> Grabbed:
        buffer = sample.get_buffer()
        if buffer.has_flags(self._gst.BufferFlags.CORRUPTED):
            raise CorruptFrame("GStreamer marks it as damaged")
        captured_mono = self._clock.monotonic() - self._age(sample, buffer)
        return Grabbed(sample, captured_mono, self._missed())

    def _missed(self) -> int:
        """Return how many pictures the sink dropped since the last call."""
        if self._keeps_all:
            return 0
        _, received = self._sink.get_property("stats").get_uint64("rendered")
        before = self._dropped
        # One more may wait in the sink already. The sum is therefore at most one too small.
        self._dropped = max(before, received - self._taken - 1)
        return self._dropped - before

    def _age(self, sample: Any, buffer: Any) -> float:
        """Return the seconds since the capture; 0 where GStreamer does not say."""
        clock = self._pipeline.get_clock()
        if not self._is_live or clock is None or buffer.pts == self._gst.CLOCK_TIME_NONE:
            return 0.0
        captured = sample.get_segment().to_running_time(self._gst.Format.TIME, buffer.pts)
        if captured == self._gst.CLOCK_TIME_NONE:
            return 0.0
        running = clock.get_time() - self._pipeline.get_base_time()
        return max(0.0, float(running - captured) / SECOND)

    def _error(self) -> str | None:
        """Return the first error that an element reported, or None."""
        message = self._bus.pop_filtered(self._gst.MessageType.ERROR)
        if message is None:
            return None
        error, _details = message.parse_error()
        return f"GStreamer reports: {self._hide(error.message)} ({message.src.get_name()})"

    def close(self) -> None:
        """Stop the pipeline and release its devices."""
        self._pipeline.set_state(self._gst.State.NULL)


def image_of(sample: Any) -> npt.NDArray[Any]:
    """Copy the picture of a sample once: uint8 or uint16 [h, w], or uint8 [h, w, 3] BGR.

    It may not be writable.

    Raises CorruptFrame if its size is not that of its format.
    """
    structure = sample.get_caps().get_structure(0)
    height = structure.get_value("height")
    width = structure.get_value("width")
    channels, dtype = FORMATS[structure.get_value("format")]
    row = width * channels * dtype.itemsize
    # Rows begin at multiples of four bytes.
    stride = (row + 3) // 4 * 4
    buffer = sample.get_buffer()
    if buffer.get_size() != stride * height:
        raise CorruptFrame(f"it has {buffer.get_size()} bytes instead of {stride * height}")
    data = np.frombuffer(buffer.extract_dup(0, stride * height), np.uint8)
    rows = np.ascontiguousarray(data.reshape(height, stride)[:, :row])
    image: npt.NDArray[Any] = rows.view(dtype)
    if channels > 1:
        image = image.reshape(height, width, channels)
    return image
