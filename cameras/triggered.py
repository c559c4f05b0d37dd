"""Triggered cameras: one pulse is one part, and no part is dropped silently.

A live camera hands out its newest frame. That is wrong where a sensor or a program triggers the
camera once for each part: every part needs a verdict. Here the frames wait in a bounded queue. A
part that has no image, because a buffer was incomplete, a block was lost or the queue was full, is
a frame with a fault in its place, which rejects the part. While there is no pulse, there is no
frame, and that is no fault.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from flawline.cameras import CameraError, events
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, Grabbed, Waiting
from flawline.cameras.live import LiveCamera
from flawline.cameras.parts import LOST, Block, BlockNumbers, Pulse, Pulses
from flawline.cameras.trigger_options import TriggerOptions

POLL_S = 0.2  # seconds that `_take` waits at most
READY_S = 0.2  # seconds after which a pulse that the camera cannot take is late
REOPENED = (
    "the camera was opened again; the parts that passed meanwhile have no image, and their number "
    "is unknown"
)
HANGS = "the camera's driver does not answer"
NOT_OPEN = "the camera was not open when the pulse was sent"
BUSY = "the camera was still busy with an earlier part when the pulse was sent"


class TriggeredCamera(LiveCamera):
    """Base class of cameras that run freely or wait for pulses, as the option `trigger` says.

    A subclass implements `_open`, `_take` and `_release`, which run on the capture thread, and
    `_fire` for software pulses. A camera without a trigger is a `LiveCamera`: incomplete buffers
    are counted in `corrupt` and never handed out, missing blocks are counted in `dropped`.
    """

    # Software pulses that may wait for their images at the same time. More than one is right where
    # `_fire` waits until the camera is ready, because a camera ignores a pulse during an exposure.
    most_in_flight = 1

    def __init__(self, source: str, options: TriggerOptions, clock: Clock | None = None) -> None:
        super().__init__(source, options, clock)
        self.trigger = options.trigger
        self._answer_s = options.answer_s
        self.views = options.views
        self._pulses = Pulses(options.trigger == "software", options.views)
        self._blocks = BlockNumbers()
        self._no_more_pulses = False
        # The handle of the running capture while it takes pulses, and the last one that was opened.
        self._handle: Any = None
        self._begun: Any = None
        # Software pulses are sent one after the other.
        self._firing = threading.Lock()

    @property
    def triggered(self) -> bool:
        """True if the camera waits for pulses."""
        return self.trigger != "off"

    @property
    def knows_parts(self) -> bool:
        return self.triggered

    @property
    def has_unknown_numbers(self) -> bool:
        """Whether the numbers of the parts may be wrong after the camera was opened again.

        Pulses of the line that pass meanwhile are not counted. Names from outside stay right.
        """
        return self.triggered and self.trigger != "software" and not self._pulses.were_announced

    def notes(self) -> list[str]:
        if self.trigger == "software":
            return [
                f"camera {self.source}: waits for software pulses, such as the lines of --parts"
            ]
        if self.triggered:
            return [f"camera {self.source}: waits for the pulses of {self.trigger}"]
        return []

    @abstractmethod
    def _take(self, handle: Any) -> Block | None:
        """Wait for the next block at most POLL_S seconds; return None if there was none.

        The image must be a new array. Raises CameraError if the camera is lost, also while there is
        no pulse, and EndOfStream.
        """

    def _fire(self, handle: Any) -> None:
        """Send a software pulse. Raises CameraError, saying why, if the camera does not take it."""
        raise CameraError(f"camera {self.source}: has no software trigger")

    def _first_block(self, handle: Any) -> int | None:
        """Return the number that the camera gives to its first block; None if it is unknown."""
        return None

    # What other threads call.

    def pulse(self, part: str | None = None) -> None:
        """Send a software pulse for the part that is in front of the camera.

        `part` names it; without a name, the parts are numbered from 1. Every call is one exposure,
        and `views` calls are one part, which the first of them names. If the camera does not take
        the pulse, that is a frame with a fault. Any thread may call it, and it waits at most a
        fraction of a second. Raises CameraError without `trigger=software`.
        """
        if self.trigger != "software":
            raise CameraError(f"camera {self.source}: is not open with trigger=software")
        with self._firing:
            with self._changed:
                if self._stopped:
                    return
                pulse = self._pulses.send(part, self.clock.monotonic())
            reason = self._try_to_fire()
            with self._changed:
                if reason is not None:
                    pulse.fault = pulse.fault or reason
                self._report(self._pulses.settled())

    def announce(self, part: str) -> None:
        """Name the next part of the line that has no name yet. Any thread may call it.

        Raises CameraError without a trigger.
        """
        if not self.triggered:
            raise CameraError(f"camera {self.source}: is not open with a trigger, such as line1")
        with self._changed:
            if not self._stopped:
                self._pulses.announce(part)

    def end_of_pulses(self) -> None:
        """End the iteration when every software pulse that was sent has its frame."""
        with self._changed:
            self._no_more_pulses = True

    def wait_until_open(self) -> bool:
        """Wait until the camera takes pulses; return False if it was stopped or failed instead."""

        def decided() -> bool:
            return self._handle is not None or self._ended is not None

        with self._changed:
            while not self.clock.wait_for(self._changed, decided, self.limits.stall):
                continue
            return self._handle is not None and not self._stopped

    def stop(self) -> None:
        """End the iteration now. Frames that wait are discarded and counted in `dropped`."""
        with self._changed:
            super().stop()
            self._handle = None

    def _try_to_fire(self) -> str | None:
        """Send a pulse that is counted already; return why the camera did not take it."""

        def is_free() -> bool:
            return self._pulses.in_flight <= self.most_in_flight or self._handle is None

        with self._changed:
            free = self.clock.wait_for(self._changed, is_free, READY_S)
            handle = self._handle
            if handle is None or self._ended is not None:
                return NOT_OPEN
            if not free:
                return BUSY
        try:
            self._fire(handle)
        except CameraError as error:
            return str(error)
        except Exception as error:
            # Every exception of a driver is a part without an image, and not the end of the pulses.
            return f"{type(error).__name__}: {error}"
        return None

    # What the capture thread calls.

    def _put_next(self, generation: int, handle: Any) -> bool:
        with self._changed:
            if generation != self._generation:
                return False
            if handle is not self._begun:
                self._begin(handle)
            self._handle = handle
        if not self.triggered:
            return super()._put_next(generation, handle)
        block = self._take(handle)
        with self._changed:
            if generation != self._generation:
                return False
            self._is_running = True
            self._deadline = self.clock.monotonic() + self.limits.stall
            self._store(block)
            return True

    def _grab(self, handle: Any) -> Grabbed | None:
        """Return the frame of the next block of a running camera."""
        block = self._take(handle)
        if block is None:
            return None
        missed = 0
        # A running camera may begin to count again without harm.
        with contextlib.suppress(CameraError):
            missed = self._blocks.lost_before(block.number)
        if block.fault is not None:
            raise CorruptFrame(block.fault, missed)
        frame = block.frame(self.source, 0, self.clock)
        return Grabbed(frame, self.clock.monotonic() - block.age, missed)

    def _store(self, block: Block | None) -> None:
        """Put a part into the queue. Called with the condition."""
        if block is None:
            self._check_pulses()
            return
        pulses = self._pulses.arrive(block.number)
        own = pulses.pop()
        lost = sum(pulse.fault == LOST for pulse in pulses)
        self.captured += lost
        self.dropped += lost
        self._report(pulses)
        if block.fault is not None:
            self.corrupt += 1
        else:
            self.captured += 1
        self._put_part(own, block)
        self._report(self._pulses.settled())

    def _begin(self, handle: Any) -> None:
        """Note that the camera was opened, for the first time or again."""
        self._begun = handle
        first = self._first_block(handle)
        self._blocks = BlockNumbers(first)
        self._pulses.begin(first)
        if self.triggered and self._has_worked:
            self._report(self._pulses.fail_all(REOPENED))
            if self.trigger != "software":
                self._report([Pulse(None, REOPENED)])
            # There may be no pulse for hours.
            self._lost_at = None
            self._events.add(events.RECOVERED, "is open again")
        if self.triggered:
            self._has_worked = True
        self._changed.notify_all()

    def _check_pulses(self) -> None:
        """Raise CameraError for a pulse without an answer, or EndOfStream after the last one."""
        oldest = self._pulses.oldest_sent()
        if oldest is None:
            if self._no_more_pulses:
                raise EndOfStream
            return
        if self.clock.monotonic() - oldest > self._answer_s:
            raise CameraError(
                f"camera {self.source}: no image within {self._answer_s:g} s after a software pulse"
            )

    def _report(self, pulses: Iterable[Pulse]) -> None:
        """Queue parts without an image. Called with the condition, by any thread."""
        for pulse in pulses:
            self._put_part(pulse, Block(None, fault="the camera gave no image"))
        self._changed.notify_all()

    def _put_part(self, pulse: Pulse, block: Block) -> None:
        """Put a part into the queue, without its image if that does not fit."""
        frame = block.frame(self.source, 0, self.clock, pulse)
        captured_mono = frame.captured_mono or 0.0
        self.dropped += self._waiting.put(Waiting(0, frame, frame.captured_at, captured_mono))

    # What the consumer calls.

    def _stall(self) -> CameraError:
        if self.triggered and self._is_running:
            return CameraError(f"camera {self.source}: {HANGS} for {self.limits.stall:g} s")
        return super()._stall()

    def _note_end(self) -> None:
        self._handle = None
        if self.triggered and not isinstance(self._ended, EndOfStream):
            # Reported before the camera is opened again or given up.
            reason = str(self._ended or HANGS).removeprefix(f"camera {self.source}: ")
            self._report(self._pulses.fail_all(reason))
