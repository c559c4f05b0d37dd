"""The loop of an inspection with several cameras, which share one engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flawline.cameras import Camera, CameraError
from flawline.runtime.console import log, warn
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Output
from flawline.runtime.station.batches import Batch, Batches, SignalSafeEvent
from flawline.runtime.station.camera_reader import CameraReader
from flawline.runtime.station.judge import Exchange, exchange_of
from flawline.runtime.station.life_signs import LifeSigns
from flawline.runtime.station.own_parts import OwnParts, Parts
from flawline.runtime.station.reporter import Reporter
from flawline.runtime.station.same_part import SameParts, require_known_parts
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict


@dataclass(frozen=True)
class StationSettings:
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


class Station:
    """Several cameras with one detector.

    The cameras are numbered from 1, except those that have a name. Raises CameraError if two have
    the same name, and for cameras that cannot see the same parts, if the settings ask for it.
    """

    def __init__(self, cameras: Sequence[Camera], settings: StationSettings) -> None:
        self.settings = settings
        self._changed = SignalSafeEvent()
        self._stopped = False
        self.readers: list[CameraReader] = []
        for number, camera in enumerate(cameras, 1):
            name = camera.name or str(number)
            if any(reader.name == name for reader in self.readers):
                raise CameraError(
                    f"two cameras have the name {name}; give each its own with ?name=NAME"
                )
            self.readers.append(CameraReader(name, camera, self._changed.set))
        if settings.same_part:
            require_known_parts(self.readers)

    def notes(self) -> list[str]:
        """Return log lines for the start: which camera has which name, and what is to be known."""
        notes = [f"camera {reader.name} is {reader.camera.source}" for reader in self.readers]
        if self.settings.same_part:
            counts = {reader.name: reader.camera.frame_count() for reader in self.readers}
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
        self._stopped = True
        for reader in self.readers:
            reader.stop()
        self._changed.set()

    def run(
        self,
        judging: Detector | Exchange,
        outputs: Sequence[Output],
        max_frames: int | None,
        tally: Tally,
        life: LifeSigns | None = None,
    ) -> None:
        """Judge frames until all cameras end, `max_frames` parts are judged, or `stop` is called.

        What is offered to an `Exchange` takes the place of what judges when no part is incomplete.
        The loop gives the signs of `life`.

        When the loop ends, also because of an error, every output gets the summary. A camera that
        is lost does not end the stream. Raises CameraError at the end if one was, EngineError if
        the engine fails, and OutputError if a required output cannot deliver.
        """
        cameras = [reader.camera for reader in self.readers]
        exchange = exchange_of(judging)
        reporter = Reporter(exchange.now, outputs, tally, cameras, lambda: self._stopped)
        loop = _Loop(self, exchange, reporter, tally, max_frames, life or LifeSigns())
        reporter.attach()
        with reporter.summarised(loop.summary):
            try:
                loop.run()
            finally:
                self._end()
            lost = [reader for reader in self.readers if reader.lost]
            if lost:
                raise CameraError("; ".join(reader.describe_error() for reader in lost))

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def prepare(self, detector: Detector) -> None:
        """Run the engine once with each size of a batch, which some engines compile for."""
        largest = self.largest(detector)
        detector.warm_up(largest)
        noun = "frame" if largest == 1 else "frames"
        log(f"{len(self.readers)} cameras, up to {largest} {noun} in one call of the engine")
        if largest == 1 and self.settings.batch_wait > 0:
            warn("warning: --batch-wait has no effect with one frame in a call; add --batch N")

    def batches(self, detector: Detector) -> Batches:
        """Return what forms the batches."""
        return Batches(
            self.readers,
            self.largest(detector),
            self.settings.batch_wait,
            self._changed,
            time.monotonic,
        )

    def largest(self, detector: Detector) -> int:
        """Return the most frames that are judged in one call of the engine."""
        wanted = self.settings.batch
        if wanted is None:
            # Where a batch is not faster, its first frame would wait for the others in vain.
            wanted = len(self.readers) if detector.engine.gains_from_batches else 1
        return detector.batch_size(min(wanted, len(self.readers)))

    def _end(self) -> None:
        for reader in self.readers:
            reader.stop()
        for reader in self.readers:
            reader.join()


class _Loop:
    """One run of a station."""

    def __init__(
        self,
        station: Station,
        exchange: Exchange,
        reporter: Reporter,
        tally: Tally,
        max_frames: int | None,
        life: LifeSigns,
    ) -> None:
        self._station = station
        self._life = life
        self._max_frames = max_frames
        self._exchange = exchange
        self._reporter = reporter
        self._tally = tally
        self._note = tally.stages.note
        self._readers = {reader.name: reader for reader in station.readers}
        self._same: SameParts | None = None
        self._parts: Parts = OwnParts(station.readers)
        if station.settings.same_part:
            self._same = SameParts(station.readers, station.settings.part_wait)
            self._parts = self._same
        # Frames that were judged, and in how many calls.
        self._frames = 0
        self._calls = 0

    def run(self) -> None:
        """Judge frames, as `Station.run` says."""
        batches = self._station.batches(self._exchange.now.detector)
        readers = self._station.readers
        for reader in readers:
            reader.start(self._exchange.now.prepare)
        pending = {reader.name: partial(self._pending, reader) for reader in readers}
        self._life.begin(pending, self._reporter.pending, self._tally)
        while not self._is_full():
            self._life.beat()
            most = None
            if self._max_frames is not None:
                most = self._max_frames - self._tally.frames
            start = time.perf_counter()
            batch = batches.next(
                most,
                self._life.due(self._parts.deadline()),
                self._is_paused,
                lambda: self._station.stopped,
            )
            self._note("idle", time.perf_counter() - start)
            if batch:
                if self._exchange.is_due and not self._has_incomplete_parts():
                    batches.largest = self._change_judge()
                self._judge(batch)
            elif self._station.stopped or all(reader.ended for reader in readers):
                break
            self._settle()
        self._settle()
        self._report(self._parts.flush())

    def _pending(self, reader: CameraReader) -> object | None:
        """Return what waits in a camera for too long, if the loop may take it."""
        return None if self._is_paused(reader) else reader.camera.pending()

    def _has_incomplete_parts(self) -> bool:
        return any(self._parts.awaits(reader) for reader in self._station.readers)

    def _is_paused(self, reader: CameraReader) -> bool:
        """Tell whether no frame may be taken from a camera now."""
        if self._parts.is_paused(reader):
            return True
        # Parts are completed, and none is begun, until the other judge can take over.
        if not self._exchange.is_due or self._parts.awaits(reader):
            return False
        return self._has_incomplete_parts()

    def _change_judge(self) -> int:
        """Let another one judge from now on; return the largest batch that it takes."""
        judge = self._exchange.take()
        for reader in self._station.readers:
            reader.change_prepare(judge.prepare)
        self._reporter.change_judge(judge)
        return self._station.largest(judge.detector)

    def _settle(self) -> None:
        # Cameras that end because of a stop did not leave out a view.
        if not self._station.stopped:
            self._report(self._parts.settle(time.monotonic()))

    def _is_full(self) -> bool:
        return self._max_frames is not None and self._tally.frames >= self._max_frames

    def _judge(self, batch: Batch) -> None:
        """Judge a batch and report the parts that it completes."""
        judge = self._exchange.now
        prepared = [made.made_by(judge.prepare) for _, made in batch]
        verdicts = judge.detector.judge_prepared(prepared)
        judged = [verdict for verdict in verdicts if verdict.judged]
        self._frames += len(judged)
        if judged:
            self._calls += 1
            self._note("engine", 1e-3 * judged[0].milliseconds["infer"])
        for (reader, made), verdict in zip(batch, verdicts, strict=True):
            self._note("prepare", 1e-3 * made.milliseconds)
            self._reporter.note_size(made.item)
            verdict = judge.verdict(verdict, reader.name, reader.notices.drift)
            self._report(self._parts.add(reader, made.item, verdict, time.monotonic()))

    def _report(self, parts: Sequence[PartVerdict]) -> None:
        """Report parts, up to the limit of the run."""
        for part in parts:
            if self._is_full():
                return
            reader = self._readers[str(part.camera)]
            self._reporter.report(part, reader.camera, reader.notices)

    def summary(self) -> dict[str, Any]:
        """Return the summary: that of all cameras together, and then of each."""
        readers = self._station.readers
        summary = self._tally.summary(*(reader.camera for reader in readers))
        summary["frames_per_call"] = None
        if self._calls:
            summary["frames_per_call"] = round(self._frames / self._calls, 2)
        if self._same is not None:
            summary["late_views"] = self._same.late
        cameras = {}
        for reader in readers:
            cameras[reader.name] = {
                "source": reader.camera.source,
                **reader.tally.summary(reader.camera),
                "lost": reader.lost,
            }
        summary["cameras"] = cameras
        return summary
