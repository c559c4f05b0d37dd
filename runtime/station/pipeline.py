"""The pipeline of an inspection: every frame is prepared, judged, counted and delivered.

    thread "prepare"    camera -> frame -> input of the engine       runtime/ahead.py
    calling thread      input -> engine -> verdict -> count          this file
    thread of Reporter  regions -> every output                      runtime/station/reporter.py

The three work on different frames at the same time, and each hands them on in their order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from flawline.cameras import Camera, Frame
from flawline.runtime.ahead import Ahead, Prepared
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Output
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.reporter import Reporter
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import ViewGroups
from flawline.runtime.throughput import judge_in_flight
from flawline.runtime.verdict import Verdict


def run_stream(
    camera: Camera,
    detector: Detector,
    outputs: Sequence[Output],
    max_frames: int | None,
    stop: threading.Event,
    tally: Tally,
    batch: int | None = None,
) -> None:
    """Judge frames until the camera ends, `max_frames` are judged, or `stop` is set.

    The exposures of one part are judged together; see `ViewGroups`. For several cameras, see
    `several_cameras.Station`. `batch` None judges one frame after the other, while the next one is
    fetched and prepared. A number judges so many in one call of the engine, with as many calls in
    flight as it takes, which is for cameras that wait; see `judge_in_flight`.

    When the loop ends, also because of an error, every output gets the summary. Raises CameraError
    if the camera is lost, EngineError if the engine fails, and OutputError if a required output
    cannot deliver.
    """
    notices = FrameNotices()
    camera.on_event = notices.event
    reporter = Reporter(detector, outputs, tally, [camera])
    reporter.attach()
    groups = ViewGroups()
    note = tally.stages.note
    frames = _frames(camera, stop, max_frames)
    ahead = Ahead(frames, detector.prepare, camera.stop, batch or 1, camera.newest_only, note)
    with reporter.summarised(lambda: tally.summary(camera)):
        with ahead as items:
            judged = _one_by_one(detector, items)
            if batch is not None:
                judged = judge_in_flight(detector, items, batch)
            for frame, verdict in judged:
                if verdict.judged:
                    note("engine", 1e-3 * verdict.milliseconds["infer"])
                reporter.note_size(frame)
                for part in groups.add(frame, verdict):
                    reporter.report(part, camera, notices)
        for part in groups.flush():
            reporter.report(part, camera, notices)


def _one_by_one(
    detector: Detector, items: Iterable[Prepared[Frame]]
) -> Iterator[tuple[Frame, Verdict]]:
    for made in items:
        (verdict,) = detector.judge_prepared([made])
        yield made.item, verdict


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
