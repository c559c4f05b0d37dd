"""What a stream tells about its verdicts: the outputs, the summary and messages."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flawline.cameras import Camera, Frame
from flawline.cameras.events import CameraEvent
from flawline.runtime.background import BackgroundWorker
from flawline.runtime.console import log, warn
from flawline.runtime.detector import Detector
from flawline.runtime.frame_image import image_of
from flawline.runtime.image import Map
from flawline.runtime.outputs import Judgement, Output, OutputError, StreamState
from flawline.runtime.regions import regions_missing
from flawline.runtime.station.judge import Judge
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.stream_state import state_of
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict

# Of the frames that wait for the outputs: about 20 of 1920 x 1080 pixels, or 140 of 640 x 480.
CAPACITY = 128 * 2**20  # bytes
# What a frame without an image holds, roughly.
LEAST_SIZE = 4096


class Reporter:
    """Counts the verdicts on parts and delivers them to every output, in their order.

    `cameras` are all those of the stream. A thread finds the regions and calls the outputs, so that
    the engine does not wait for them. It waits only while CAPACITY is used up, because no verdict
    is lost here; the frames that a live camera drops meanwhile are counted by that camera.
    `stopped` says whether the stream is to end; no output waits for a slow peer then.
    """

    def __init__(
        self,
        judge: Judge,
        outputs: Sequence[Output],
        tally: Tally,
        cameras: Sequence[Camera],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._judge = judge
        self._outputs = outputs
        self._tally = tally
        self._cameras = cameras
        self._stopped = stopped
        self._can_wait = not any(camera.live for camera in cameras)
        self._with_regions = False
        self._shapes: set[tuple[int, ...]] = set()
        self._worker = BackgroundWorker(CAPACITY)
        self._maps = _MapCopies()
        # What ended the deliveries.
        self._failure: BaseException | None = None

    def attach(self) -> None:
        """Tell every output about the cameras, before their first frames."""
        self._look_for_regions()
        for output in self._outputs:
            output.follow(self.state)
        for camera in self._cameras:
            for output in self._outputs:
                output.attach(camera)
            camera.on_event = self._also_to_outputs(camera)

    def _also_to_outputs(self, camera: Camera) -> Callable[[CameraEvent], None]:
        """Return what takes the events of a camera from now on."""
        taken_by = camera.on_event

        def take(event: CameraEvent) -> None:
            taken_by(event)
            for output in self._outputs:
                output.note_event(camera, event)

        return take

    def state(self) -> StreamState:
        """Return what judges now and how the outputs do. Any thread may call it."""
        return state_of(self._judge, self._outputs)

    def _look_for_regions(self) -> None:
        """Find out whether regions are given, and log it if they are missed."""
        bundle = self._judge.detector.bundle
        used = any(output.uses_regions for output in self._outputs)
        reason = regions_missing(bundle)
        # A bundle that was built for the score alone has no maps by intention.
        if reason is not None and bundle.has_map and used:
            log(f"note: no anomalous regions are given: {reason}")
        self._with_regions = used and reason is None

    def change_judge(self, judge: Judge) -> None:
        """Take note that the parts from now on are judged by another one, or by the same."""
        if judge is self._judge:
            return
        self._judge = judge
        self._shapes.clear()
        self._look_for_regions()
        bundle = judge.detector.bundle

        def change() -> None:
            with self._ends_deliveries():
                for output in self._outputs:
                    output.change_bundle(bundle)

        self._worker.submit(change, LEAST_SIZE, wait=True)

    def note_size(self, frame: Frame) -> None:
        """Log once for each shape of an image what is not as it could be.

        A crop may leave a part of the image uninspected, and a frame be of another layout than the
        graph takes.
        """
        if frame.image is None:
            return
        shape = frame.image.shape
        if shape in self._shapes:
            return
        self._shapes.add(shape)
        height, width = shape[:2]
        manifest = self._judge.detector.bundle.manifest
        lost = manifest.graph_input.frame_geometry.uninspected(height, width)
        if lost is not None:
            log(f"note: {lost}")
        source = manifest.source
        if source is not None and source.converts(shape):
            log(
                f"note: the frames are {frame.pixel_format}, and each is converted to {source}, "
                f"which takes time; {source.remedy}"
            )

    def pending(self) -> int | None:
        """Return how many deliveries were made before the one that waits; None if none waits."""
        return self._worker.pending()

    def report(self, part: PartVerdict, camera: Camera, notices: FrameNotices) -> None:
        """Count the verdict on a part, and have it delivered to every output.

        `camera` is the one of the part's frame, and `notices` prints its messages. Raises what
        ended the delivery of an earlier part, such as OutputError; all cameras are stopped then.
        """
        self._raise_failure()
        start = time.perf_counter()
        frame = part.frame
        age = frame.age(camera.clock.monotonic())
        fps = self._tally.add(part.verdict, age)
        verdict = part.verdict
        if verdict.anomaly_map is not None:
            # The detector overwrites it in its next call.
            kept = self._maps.copy_of(verdict.anomaly_map)
            verdict = dataclasses.replace(verdict, anomaly_map=kept)
        judgement = Judgement(
            frame,
            verdict,
            fps,
            live=camera.live,
            age=age,
            dropped=camera.dropped,
            views=part.views,
            camera=part.camera or camera.name,
            can_wait=self._can_wait,
            recipe=self._judge.recipe,
        )
        # That of this part, whatever judges when the thread comes to it.
        detector = self._detector_of_regions(part)
        counted = time.perf_counter()

        def deliver() -> None:
            self._deliver(judgement, detector, notices, counted - start)

        self._worker.submit(deliver, _size(judgement), wait=True)
        self._tally.stages.note("blocked", time.perf_counter() - counted)

    def _deliver(
        self, judgement: Judgement, detector: Detector | None, notices: FrameNotices, seconds: float
    ) -> None:
        """Deliver a verdict, which took so many seconds until now. Called by the thread.

        `detector` gives the regions; None if there are none.
        """
        if self._failure is not None:
            return
        start = time.perf_counter()
        anomaly_map = judgement.verdict.anomaly_map
        with self._ends_deliveries():
            notices.unjudged(judgement.frame, judgement.verdict, judgement.views)
            if detector is not None:
                image = image_of(judgement.frame, detector.bundle.manifest)
                regions = detector.regions(image, anomaly_map)
                judgement = dataclasses.replace(judgement, regions=regions)
            found = time.perf_counter()
            self._write(judgement, notices)
            self._tally.stages.note("verdict", seconds + found - start)
            self._tally.stages.note("outputs", time.perf_counter() - found)
        if anomaly_map is not None:
            self._maps.give_back(anomaly_map)

    @contextmanager
    def _ends_deliveries(self) -> Iterator[None]:
        """Keep an exception of the block for the loop, which may wait for a frame for hours."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            for camera in self._cameras:
                camera.stop()

    def _write(self, judgement: Judgement, notices: FrameNotices) -> None:
        if self._stopped():
            for output in self._outputs:
                output.stop_waiting()
        for number, output in enumerate(self._outputs):
            try:
                output.write(judgement)
            except OutputError as error:
                if output.required:
                    raise
                # A disk that is full would give a message for every frame.
                notices.warn(f"output {number}", f"{error}; inspection continues")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _detector_of_regions(self, part: PartVerdict) -> Detector | None:
        """Return what gives the regions of the part's frame, if they are known and used."""
        verdict = part.verdict
        if not self._with_regions or part.frame.image is None or not verdict.judged:
            return None
        return None if verdict.anomaly_map is None else self._judge.detector

    @contextmanager
    def summarised(self, summarise: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Deliver the summary to every output when the block ends, also because of an error.

        What was reported is delivered first. Raises the error of the block, or else the first
        failure of a required output.
        """
        try:
            yield
            self._worker.drain()
            self._raise_failure()
        except BaseException as error:
            # A station that ends with an error still reports what it judged until then.
            self._worker.close()
            failures = [self._failure, self._finish(summarise())]
            for failure in failures:
                if failure is not None and failure is not error:
                    warn(str(failure))
            raise
        self._worker.close()
        failure = self._finish(summarise())
        if failure is not None:
            raise failure

    def _finish(self, summary: dict[str, Any]) -> Exception | None:
        """Deliver the summary, with the counts of the outputs; return the first failure."""
        for output in self._outputs:
            for name, count in output.totals().items():
                summary[name] = summary.get(name, 0) + count
        first: Exception | None = None
        for output in self._outputs:
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


class _MapCopies:
    """Copies of maps in arrays that are used again, so that a steady stream allocates none."""

    def __init__(self) -> None:
        self._free: deque[Map] = deque()

    def copy_of(self, anomaly_map: Map) -> Map:
        """Return a copy, which belongs to the caller until it is given back."""
        while self._free:
            # Looked at after it was taken, since another thread may give back one meanwhile. Those
            # of the bundle before may have another shape, and are of no further use.
            kept = self._free.pop()
            if kept.shape == anomaly_map.shape:
                np.copyto(kept, anomaly_map)
                return kept
        return np.array(anomaly_map)

    def give_back(self, copy: Map) -> None:
        """Take back an array that no one reads any more. Any thread may call it."""
        self._free.append(copy)


def _size(judgement: Judgement) -> int:
    """Return how many bytes a judgement holds while it waits, roughly."""
    size = LEAST_SIZE
    if judgement.frame.image is not None:
        size += judgement.frame.image.nbytes
    if judgement.verdict.anomaly_map is not None:
        size += judgement.verdict.anomaly_map.nbytes
    return size
