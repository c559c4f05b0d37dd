"""Which part each exposure of a triggered camera belongs to.

One pulse is one part. A camera numbers its exposures, so that a gap in these block numbers says how
many parts have no image.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from flawline.cameras import CameraError, Frame
from flawline.cameras.clock import Clock

# GigE Vision 1 counts blocks from 1 to 65535, and then from 1 again.
LARGEST_SHORT = 0xFFFF
# A larger gap is a camera that began to count again, and not so many parts.
MOST_LOST = 10_000
LOST = "the camera's image of this part was lost on the way"
UNEXPECTED = "an image came that no pulse was sent for"


@dataclass
class Pulse:
    """One pulse, and so one part: its name, and why it has no image, if that is known.

    `name` is None where it is unknown how many parts there were. `sent_at` is when a software pulse
    was sent, in seconds of the camera's monotonic clock. `view` is the number of the exposure, from
    0, of the `views` that the part has.
    """

    name: str | None
    fault: str | None = None
    sent_at: float = 0.0
    view: int = 0
    views: int = 1


@dataclass(frozen=True)
class Block:
    """What a camera delivered for one exposure: an image, or the reason why there is none.

    `number` is the camera's block number, or None if it is unknown. `bit_depth` is that of `Frame`.
    `age` is the time since the exposure in seconds, if the camera tells it.
    """

    image: npt.NDArray[Any] | None
    number: int | None = None
    fault: str | None = None
    bit_depth: int | None = None
    age: float = 0.0

    def frame(self, source: str, index: int, clock: Clock, pulse: Pulse | None = None) -> Frame:
        """Return the frame of this block, which came now, and of its pulse, if it had one."""
        pulse = pulse or Pulse(None)
        return Frame(
            source,
            index,
            self.image,
            fault=pulse.fault or self.fault,
            bit_depth=self.bit_depth,
            captured_at=clock.time() - self.age,
            captured_mono=clock.monotonic() - self.age,
            part=pulse.name,
            view=pulse.view,
            views=pulse.views,
        )


class BlockNumbers:
    """Counts the exposures that are missing between two block numbers of a camera.

    `first` is the number that the camera gives to its first block; None if that is not known.
    """

    def __init__(self, first: int | None = None) -> None:
        self._last: int | None = None
        if first is not None:
            self._last = first - 1

    def lost_before(self, number: int | None) -> int:
        """Take the next block number; return how many blocks were lost before it.

        None stands for a block whose number is unknown, which is taken for the next one. Raises
        CameraError if the numbers do not continue.
        """
        if number is None:
            if self._last is not None:
                self._last += 1
            return 0
        last = self._last
        self._last = number
        if last is None:
            return 0
        lost = number - last - 1
        if lost < 0 and last <= LARGEST_SHORT:
            # A camera that counts 0 as well is one ahead here.
            lost = max(lost + LARGEST_SHORT, 0)
        if not 0 <= lost <= MOST_LOST:
            raise CameraError(
                f"the camera's block number went from {last} to {number}, so that the number of "
                f"parts in between is unknown"
            )
        return lost


class Pulses:
    """Gives each exposure its part, in the order of the pulses.

    The parts are numbered from 1, unless they were named from outside. With `by_software`, `send`
    counts every pulse; otherwise pulses come from the line, and `announce` gives the names of the
    next parts. `views` pulses, one after the other, are the exposures of one part. Calls of several
    threads must be serialised by the caller.
    """

    def __init__(self, by_software: bool, views: int = 1) -> None:
        self._by_software = by_software
        self._views = views
        # The part that is exposed, and how many of its pulses there were.
        self._count = 0
        self._name = ""
        self._view = views
        self._blocks = BlockNumbers()
        self._names: deque[str] = deque()
        self.were_announced = False
        self._sent: deque[Pulse] = deque()

    @property
    def in_flight(self) -> int:
        """How many software pulses wait for their image."""
        return len(self._sent)

    def begin(self, first_block: int | None) -> None:
        """Expect block numbers from their start: the camera was opened."""
        self._blocks = BlockNumbers(first_block)
        if not self._by_software:
            # Pulses of the line may have been missed, so the next one is taken for a new part.
            self._view = self._views

    def announce(self, name: str) -> None:
        """Name the next part of the line that has no name yet."""
        self._names.append(name)
        self.were_announced = True

    def send(self, name: str | None, now: float) -> Pulse:
        """Count a software pulse, whose image is still to come."""
        pulse = self._new(name)
        pulse.sent_at = now
        self._sent.append(pulse)
        return pulse

    def oldest_sent(self) -> float | None:
        """Return when the oldest pulse that waits for its image was sent; None without one."""
        if not self._sent:
            return None
        return self._sent[0].sent_at

    def arrive(self, number: int | None) -> list[Pulse]:
        """Return the pulse of a block that arrived, after those whose blocks were lost before it.

        `number` is the block number, or None if it is unknown. Raises CameraError if the block
        numbers do not continue.
        """
        pulses = []
        for _ in range(self._blocks.lost_before(number)):
            pulses.extend(self.settled())
            lost = self._take()
            lost.fault = LOST
            pulses.append(lost)
        pulses.extend(self.settled())
        pulses.append(self._take())
        return pulses

    def settled(self) -> list[Pulse]:
        """Take the oldest pulses that are known to get no image."""
        pulses = []
        while self._sent and self._sent[0].fault is not None:
            pulses.append(self._sent.popleft())
        return pulses

    def fail_all(self, reason: str) -> list[Pulse]:
        """Take every pulse that waits for its image, and every name; none of them gets one."""
        pulses = []
        while self._sent:
            pulse = self._sent.popleft()
            pulse.fault = pulse.fault or reason
            pulses.append(pulse)
        while self._names:
            self._view = self._views
            pulse = self._new(None)
            pulse.fault = reason
            pulses.append(pulse)
        return pulses

    def _take(self) -> Pulse:
        """Take the pulse that the next block belongs to."""
        if self._sent:
            return self._sent.popleft()
        if self._by_software:
            return Pulse(None, UNEXPECTED)
        return self._new(None)

    def _new(self, name: str | None) -> Pulse:
        """Return the next pulse, of a new part or of the one that is exposed.

        A new part has a name from outside, or else its number.
        """
        if self._view == self._views:
            self._view = 0
            self._count += 1
            if name is not None:
                self._name = name
            elif self._names:
                self._name = self._names.popleft()
            else:
                self._name = str(self._count)
        view = self._view
        self._view += 1
        return Pulse(self._name, view=view, views=self._views)
