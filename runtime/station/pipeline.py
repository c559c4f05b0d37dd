"""The loop of an inspection: every frame is judged, counted and delivered to every output."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from flawline.cameras import Camera, Frame
from flawline.runtime.console import log, warn
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output, OutputError
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict, ViewGroups


def run_stream(
    camera: Camera,
    detector: Detector,
    outputs: Sequence[Output],
    max_frames: int | None,
    stop: threading.Event,
    tally: Tally,
) -> None:
    """Judge frames until the camera ends, `max_frames` are judged, or `stop` is set.

    The exposures of one part are judged together; see `ViewGroups`.

    When the loop ends, also because of an error, every output gets the summary. Raises CameraError
    if the camera is lost, EngineError if the engine fails, and OutputError if a required output
    cannot deliver.
    """
    sizes: set[tuple[int, ...]] = set()
    notices = FrameNotices()
    camera.on_event = notices.event
    for output in outputs:
        output.attach(camera)
    groups = ViewGroups()
    try:
        for frame in _frames(camera, stop, max_frames):
            verdict = detector.judge(frame)
            _note_size(frame, detector, sizes)
            for part in groups.add(frame, verdict):
                _report(part, camera, outputs, tally, notices)
        for part in groups.flush():
            _report(part, camera, outputs, tally, notices)
    except BaseException:
        # A station that ends with an error still reports what it judged until then.
        failure = _finish(outputs, tally.summary(camera))
        if failure is not None:
            warn(str(failure))
        raise
    failure = _finish(outputs, tally.summary(camera))
    if failure is not None:
        raise failure


def _frames(camera: Camera, stop: threading.Event, max_frames: int | None) -> Iterator[Frame]:
    count = 0
    for frame in camera:
        # A frame that arrives after the signal is not judged, so that the end is prompt.
        if stop.is_set():
            return
        yield frame
        # A part with several exposures is not cut in two.
        if frame.view == frame.views - 1:
            count += 1
        if count == max_frames or stop.is_set():
            return


def _note_size(frame: Frame, detector: Detector, sizes: set[tuple[int, ...]]) -> None:
    """Log once for each image size that a crop leaves a part of the image uninspected."""
    if frame.image is None:
        return
    size = frame.image.shape[:2]
    if size in sizes:
        return
    sizes.add(size)
    height, width = size
    lost = detector.bundle.manifest.geometry.uninspected(height, width)
    if lost is not None:
        log(f"note: {lost}")


def _report(
    part: PartVerdict,
    camera: Camera,
    outputs: Sequence[Output],
    tally: Tally,
    notices: FrameNotices,
) -> None:
    """Count the verdict on a part and deliver it to every output."""
    frame = part.frame
    age = frame.age(camera.clock.monotonic())
    fps = tally.add(part.verdict, age)
    notices.unjudged(frame, part.verdict)
    judgement = Judgement(frame, part.verdict, fps, camera.live, age, camera.dropped, part.views)
    _deliver(judgement, outputs, notices)


def _deliver(judgement: Judgement, outputs: Sequence[Output], notices: FrameNotices) -> None:
    for number, output in enumerate(outputs):
        try:
            output.write(judgement)
        except OutputError as error:
            if output.required:
                raise
            # A disk that is full would give a message for every frame.
            notices.warn(f"output {number}", f"{error}; inspection continues")


def _finish(outputs: Sequence[Output], summary: dict[str, Any]) -> Exception | None:
    """Deliver the summary to every output; return the first failure of a required one.

    The counts of the outputs are added to the summary.
    """
    for output in outputs:
        for name, count in output.totals().items():
            summary[name] = summary.get(name, 0) + count
    first: Exception | None = None
    for output in outputs:
        try:
            output.finish(summary)
        except Exception as error:
            # Only an output that raises what it may raise is excused.
            optional = not output.required and isinstance(error, OutputError)
            if optional:
                warn(str(error))
            elif first is None:
                first = error
    return first
