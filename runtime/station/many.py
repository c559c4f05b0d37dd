"""The loop of an inspection with several cameras, which share one engine."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flawline.cameras import Camera, CameraError, Frame
from flawline.runtime.console import log, warn
from flawline.runtime.detector import Detector, Verdict
from flawline.runtime.outputs import Output
from flawline.runtime.station.batches import Batches, Wakes
from flawline.runtime.station.lanes import Lane
from flawline.runtime.station.reporter import Reporter
from flawline.runtime.station.same_part import SameParts, require_known_parts
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict, ViewGroups


@dataclass(frozen=True)
class ManySettings:
    """How several cameras are judged. Times are in seconds.

    `batch` limits the frames of one call of the engine, of which each camera has at most one; None
    is one of each where the engine is faster with batches, and otherwise a single frame. A batch is
    not delayed for longer than `batch_wait`. With `same_part`, all cameras see the same parts, and
    a part that has not all its views after `part_wait` is rejected.
    """

    batch: int | None = None
    batch_wait: float = 0.0
    same_part: bool = False
    part_wait: float = 2.0


class Parts(Protocol):
    """Makes verdicts on parts from those on frames."""

    def add(self, lane: Lane, frame: Frame, verdict: Verdict, now: float) -> list[PartVerdict]:
        """Take the verdict on a frame; return the parts that are complete, or cannot become so."""
        ...

    def settle(self, now: float) -> list[PartVerdict]:
        """Return the parts that cannot become complete any more."""
        ...

    def due(self) -> float | None:
        """Return when `settle` must be called, even without a frame; None for no limit."""
        ...

    def holds(self, lane: Lane) -> bool:
        """Tell whether no frame may be taken from a camera now."""
        ...

    def flush(self) -> list[PartVerdict]:
        """Return the parts that wait when the stream ends."""
        ...


class OwnParts:
    """Each camera sees parts of its own."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._groups = {lane.name: ViewGroups() for lane in lanes}
        self._lanes = lanes

    def add(self, lane: Lane, frame: Frame, verdict: Verdict, now: float) -> list[PartVerdict]:
        return self._counted(lane, self._groups[lane.name].add(frame, verdict))

    def _counted(self, lane: Lane, parts: list[PartVerdict]) -> list[PartVerdict]:
        """Count the parts for their camera, and give them its name."""
        named = []
        for part in parts:
            lane.tally.add(part.verdict, part.frame.age(lane.camera.clock.monotonic()))
            named.append(dataclasses.replace(part, camera=lane.name))
        return named

    def settle(self, now: float) -> list[PartVerdict]:
        parts = []
        for lane in self._lanes:
            # The other views of a part do not come any more.
            if lane.ended:
                parts.extend(self._counted(lane, self._groups[lane.name].flush()))
        return parts

    def due(self) -> float | None:
        return None

    def holds(self, lane: Lane) -> bool:
        return False

    def flush(self) -> list[PartVerdict]:
        parts = []
        for lane in self._lanes:
            parts.extend(self._counted(lane, self._groups[lane.name].flush()))
        return parts


class Station:
    """Several cameras with one detector.

    The cameras are numbered from 1, except those that have a name. Raises CameraError if two have
    the same name, and for cameras that cannot see the same parts, if the settings ask for it.
    """

    def __init__(self, cameras: Sequence[Camera], settings: ManySettings) -> None:
        self.settings = settings
        self._wakes = Wakes()
        self._stop = threading.Event()
        self.lanes: list[Lane] = []
        for number, camera in enumerate(cameras, 1):
            name = camera.name or str(number)
            if any(lane.name == name for lane in self.lanes):
                raise CameraError(
                    f"two cameras have the name {name}; give each its own with ?name=NAME"
                )
            self.lanes.append(Lane(name, camera, self._wakes.wake))
        if settings.same_part:
            require_known_parts(self.lanes)

    def notes(self) -> list[str]:
        """Return log lines for the start: which camera has which name, and what is to be known."""
        notes = [f"camera {lane.name} is {lane.camera.source}" for lane in self.lanes]
        if self.settings.same_part:
            counts = {lane.name: lane.camera.frame_count() for lane in self.lanes}
            known = {name: count for name, count in counts.items() if count is not None}
            if len(set(known.values())) > 1:
                listed = ", ".join(f"{count} of camera {name}" for name, count in known.items())
                notes.append(
                    f"warning: the numbers of frames differ ({listed}); they are matched in their "
                    f"order, so that a file that is missing shifts those after it"
                )
        return notes

    def stop(self) -> None:
        """End the stream with its summary. Does not wait; a signal handler may call it."""
        self._stop.set()
        for lane in self.lanes:
            lane.stop()
        self._wakes.wake()

    def run(
        self,
        detector: Detector,
        outputs: Sequence[Output],
        max_frames: int | None,
        tally: Tally,
    ) -> None:
        """Judge frames until all cameras end, `max_frames` parts are judged, or `stop` is called.

        When the loop ends, also because of an error, every output gets the summary. A camera that
        is lost does not end the stream. Raises CameraError at the end if one was, EngineError if
        the engine fails, and OutputError if a required output cannot deliver.
        """
        live = any(lane.camera.live for lane in self.lanes)
        reporter = Reporter(detector, outputs, tally, live)
        loop = _Loop(self, detector, reporter, tally)
        for lane in self.lanes:
            reporter.attach(lane.camera)
        try:
            loop.run(max_frames, self._stop)
        except BaseException:
            self._end()
            failure = reporter.finish(loop.summary())
            if failure is not None:
                warn(str(failure))
            raise
        self._end()
        failure = reporter.finish(loop.summary())
        lost = [lane for lane in self.lanes if lane.lost]
        if lost:
            if failure is not None:
                warn(str(failure))
            raise CameraError("; ".join(lane.describe_error() for lane in lost))
        if failure is not None:
            raise failure

    def prepare(self, detector: Detector) -> None:
        """Run the engine once with each size of a batch, which some engines compile for."""
        largest = self._largest(detector)
        detector.warm_up(largest)
        noun = "frame" if largest == 1 else "frames"
        log(f"{len(self.lanes)} cameras, up to {largest} {noun} in one call of the engine")
        if largest == 1 and self.settings.batch_wait > 0:
            warn("warning: --batch-wait has no effect with one frame in a call; add --batch N")

    def batches(self, detector: Detector) -> Batches:
        """Return what forms the batches."""
        return Batches(
            self.lanes,
            self._largest(detector),
            self.settings.batch_wait,
            self._wakes,
            time.monotonic,
        )

    def _largest(self, detector: Detector) -> int:
        wanted = self.settings.batch
        if wanted is None:
            # Where a batch is not faster, its first frame would wait for the others in vain.
            wanted = len(self.lanes) if detector.engine.gains_from_batches else 1
        return detector.batch_size(min(wanted, len(self.lanes)))

    def _end(self) -> None:
        for lane in self.lanes:
            lane.stop()
        for lane in self.lanes:
            lane.join()


class _Loop:
    """One run of a station."""

    def __init__(
        self, station: Station, detector: Detector, reporter: Reporter, tally: Tally
    ) -> None:
        self._station = station
        self._detector = detector
        self._reporter = reporter
        self._tally = tally
        self._lanes = {lane.name: lane for lane in station.lanes}
        self._same: SameParts | None = None
        self._parts: Parts = OwnParts(station.lanes)
        if station.settings.same_part:
            self._same = SameParts(station.lanes, station.settings.part_wait)
            self._parts = self._same
        # Frames that were judged, and in how many calls.
        self._frames = 0
        self._calls = 0

    def run(self, max_frames: int | None, stop: threading.Event) -> None:
        """Judge frames, as `Station.run` says."""
        batches = self._station.batches(self._detector)
        lanes = self._station.lanes
        for lane in lanes:
            lane.start()
        while not self._is_full(max_frames):
            most = None
            if max_frames is not None:
                most = max_frames - self._tally.frames
            batch = batches.next(most, self._parts.due(), self._parts.holds, stop.is_set)
            if stop.is_set() or (not batch and all(lane.ended for lane in lanes)):
                break
            if batch:
                self._judge(batch, max_frames)
            self._report(self._parts.settle(time.monotonic()), max_frames)
        if not self._is_full(max_frames):
            self._report(self._parts.settle(time.monotonic()), max_frames)
            self._report(self._parts.flush(), max_frames)

    def _is_full(self, max_frames: int | None) -> bool:
        return max_frames is not None and self._tally.frames >= max_frames

    def _judge(self, batch: Sequence[tuple[Lane, Frame]], max_frames: int | None) -> None:
        """Judge a batch and report the parts that it completes."""
        verdicts = self._detector.judge_batch([frame for _, frame in batch])
        judged = sum(verdict.judged for verdict in verdicts)
        self._frames += judged
        self._calls += min(judged, 1)
        for (lane, frame), verdict in zip(batch, verdicts, strict=True):
            self._reporter.note_size(frame)
            self._report(self._parts.add(lane, frame, verdict, time.monotonic()), max_frames)

    def _report(self, parts: Sequence[PartVerdict], max_frames: int | None) -> None:
        for part in parts:
            if self._is_full(max_frames):
                return
            lane = self._lanes[str(part.camera)]
            self._reporter.report(part, lane.camera, lane.notices)

    def summary(self) -> dict[str, Any]:
        """Return the summary: that of all cameras together, and then of each."""
        lanes = self._station.lanes
        summary = self._tally.summary(*(lane.camera for lane in lanes))
        summary["frames_per_call"] = None
        if self._calls:
            summary["frames_per_call"] = round(self._frames / self._calls, 2)
        if self._same is not None:
            summary["late_views"] = self._same.late
        cameras = {}
        for lane in lanes:
            cameras[lane.name] = {
                "source": lane.camera.source,
                **lane.tally.summary(lane.camera),
                "lost": lane.lost,
            }
        summary["cameras"] = cameras
        return summary
