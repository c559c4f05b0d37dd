"""The pipeline of an inspection: every frame is prepared, judged, counted and delivered.

    thread "prepare"    camera -> frame -> input of the engine       runtime/ahead.py
    calling thread      input -> engine -> verdict -> count          this file
    thread of Reporter  regions -> every output                      runtime/station/reporter.py

The three work on different frames at the same time, and each hands them on in their order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flawline.cameras import Camera, Frame
from flawline.runtime.ahead import Ahead, NoteStage, Prepared
from flawline.runtime.detector import Detector
from flawline.runtime.drift.watch import Change
from flawline.runtime.outputs import Output
from flawline.runtime.station.judge import Exchange, Judge, exchange_of
from flawline.runtime.station.life_signs import LifeSigns
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.reporter import Reporter
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict, ViewGroups
from flawline.runtime.throughput import judge_in_flight
from flawline.runtime.verdict import Verdict

# What a single camera without a name is called where cameras have thresholds of their own.
ONLY = "1"


def run_stream(
    camera: Camera,
    judging: Detector | Exchange,
    outputs: Sequence[Output],
    max_frames: int | None,
    stop: threading.Event,
    tally: Tally,
    batch: int | None = None,
    life: LifeSigns | None = None,
) -> None:
    """Judge frames until the camera ends, `max_frames` are judged, or `stop` is set.

    The exposures of one part are judged together; see `ViewGroups`. For several cameras, see
    `several_cameras.Station`. `batch` None judges one frame after the other, while the next one is
    fetched and prepared. A number judges so many in one call of the engine, with as many calls in
    flight as it takes, which is for cameras that wait; see `judge_in_flight`. What is offered to an
    `Exchange` takes the place of what judges between two parts. The loop gives the signs of `life`.

    When the loop ends, also because of an error, every output gets the summary. Raises CameraError
    if the camera is lost, EngineError if the engine fails, and OutputError if a required output
    cannot deliver.
    """
    exchange = exchange_of(judging)
    judge = exchange.now
    notices = FrameNotices()
    camera.on_event = notices.event
    reporter = Reporter(judge, outputs, tally, [camera], stop.is_set)
    reporter.attach()
    frames = _frames(camera, stop, max_frames)
    prepare = judge.prepare
    note = tally.stages.note
    life = life or LifeSigns()
    newest = camera.newest_only
    ahead = Ahead(frames, prepare, camera.stop, batch or 1, newest, note, None, life.beat)
    with reporter.summarised(lambda: tally.summary(camera)):
        try:
            with ahead as items:
                life.begin({camera.name or ONLY: camera.pending}, reporter.pending, tally)
                segments = _Segments(items, exchange, batch, camera, notices.drift)
                for part in _parts(segments, reporter, note, life):
                    reporter.report(part, camera, notices)
        finally:
            # So that its counters are those of the end, with `max_frames`, too.
            camera.stop()


def _parts(
    segments: _Segments, reporter: Reporter, note: NoteStage, life: LifeSigns
) -> Iterator[PartVerdict]:
    """Yield the verdict on each part when its last view is judged."""
    groups = ViewGroups()
    # The verdicts of one call of the engine share the record of its times.
    call: Mapping[str, float] = {}
    for judge in segments:
        # Those of the one before get no further views.
        yield from groups.flush()
        reporter.change_judge(judge)
        for frame, verdict in segments.verdicts(judge):
            if verdict.judged and verdict.milliseconds is not call:
                call = verdict.milliseconds
                note("engine", 1e-3 * verdict.milliseconds["infer"])
            reporter.note_size(frame)
            yield from groups.add(frame, verdict)
            life.beat()
    yield from groups.flush()


class _Segments:
    """Iterates over what judges a stream, one after the other; `verdicts` gives those of each.

    The frames of one end before the first frame of a part for which another one is ready. `batch`
    is as of `run_stream`, and `items` are the frames of the camera. `drift` is called with each
    warning of the drift check that begins or ends.
    """

    def __init__(
        self,
        items: Ahead[Frame],
        exchange: Exchange,
        batch: int | None,
        camera: Camera,
        drift: Callable[[Change], None],
    ) -> None:
        self._items = items
        self._exchange = exchange
        self._batch = batch
        self._camera = camera
        self._drift = drift
        # The frame that ended a segment.
        self._held: Prepared[Frame] | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Judge]:
        while not self._ended:
            judge = self._exchange.take()
            self._items.change_prepare(judge.prepare)
            yield judge

    def verdicts(self, judge: Judge) -> Iterator[tuple[Frame, Verdict]]:
        """Yield the frames of a judge with its verdicts, whose maps are valid until the next."""
        items = self._prepared(judge)
        judged = _one_by_one(judge.detector, items)
        if self._batch is not None:
            judged = judge_in_flight(judge.detector, items, self._batch)
        for frame, verdict in judged:
            yield frame, judge.verdict(verdict, self._camera.name or ONLY, self._drift)

    def _prepared(self, judge: Judge) -> Iterator[Prepared[Frame]]:
        while True:
            made = self._held or next(self._items, None)
            self._held = None
            if made is None:
                self._ended = True
                return
            if self._exchange.is_due and made.item.view == 0:
                self._held = made
                return
            frame = self._camera.still_valid(made.item)
            if frame is None:
                continue
            if frame is not made.item:
                made = Prepared.of(frame, judge.prepare)
            yield made.made_by(judge.prepare)


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
