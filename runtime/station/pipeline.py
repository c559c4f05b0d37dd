"""The loop of an inspection: every frame is judged, counted and delivered to every output."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from flawline.cameras import Camera, Frame
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Output
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.reporter import Reporter
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import ViewGroups


def run_stream(
    camera: Camera,
    detector: Detector,
    outputs: Sequence[Output],
    max_frames: int | None,
    stop: threading.Event,
    tally: Tally,
) -> None:
    """Judge frames until the camera ends, `max_frames` are judged, or `stop` is set.

    The exposures of one part are judged together; see `ViewGroups`. For several cameras, see
    `several_cameras.Station`, whose threads a single camera does not need.

    When the loop ends, also because of an error, every output gets the summary. Raises CameraError
    if the camera is lost, EngineError if the engine fails, and OutputError if a required output
    cannot deliver.
    """
    notices = FrameNotices()
    camera.on_event = notices.event
    reporter = Reporter(detector, outputs, tally, [camera])
    reporter.attach()
    groups = ViewGroups()
    with reporter.summarised(lambda: tally.summary(camera)):
        for frame in _frames(camera, stop, max_frames):
            verdict = detector.judge(frame)
            reporter.note_size(frame)
            for part in groups.add(frame, verdict):
                reporter.report(part, camera, notices)
        for part in groups.flush():
            reporter.report(part, camera, notices)


def _frames(camera: Camera, stop: threading.Event, max_frames: int | None) -> Iterator[Frame]:
    count = 0
    if stop.is_set():
        return
    for frame in camera:
        # Judged even if the stop came while it was fetched: it is a part that nothing else counts.
        yield frame
        # A part with several exposures is not cut in two.
        if frame.view == frame.views - 1:
            count += 1
        if count == max_frames or stop.is_set():
            return
