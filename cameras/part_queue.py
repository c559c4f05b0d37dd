"""The frames of a triggered camera that wait for their verdicts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from flawline.cameras import CameraError, Frame
from flawline.cameras.clock import Clock
from flawline.cameras.parts import Block, Pulse

MOST_WAITING = 10_000  # frames, nearly all of them without an image


class PartQueue:
    """A queue of parts in the order of their pulses, of which at most `images` hold an image.

    A part whose image does not fit is queued without it. Calls of several threads must be
    serialised by the caller.
    """

    def __init__(self, source: str, images: int, clock: Clock) -> None:
        self._source = source
        self._capacity = images
        self._clock = clock
        self._frames: deque[Frame] = deque()
        self._images = 0
        self._index = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, pulse: Pulse, block: Block) -> bool:
        """Append a part; return False if only its image was left out, because the queue is full.

        Raises CameraError if so many parts wait that no one takes them.
        """
        fits = True
        if pulse.fault is None and block.fault is None and self._images >= self._capacity:
            fits = False
            pulse.fault = (
                f"{self._capacity} images were waiting already; inspect faster, or let more wait "
                f"with queue=N"
            )
        if len(self._frames) >= MOST_WAITING:
            raise CameraError(
                f"camera {self._source}: {MOST_WAITING} parts wait for their verdicts; check why "
                f"the inspection hangs"
            )
        frame = block.frame(self._source, self._index, self._clock, pulse)
        self._index += 1
        if frame.image is not None:
            self._images += 1
        self._frames.append(frame)
        return fits

    def put_missing(self, pulses: Iterable[Pulse]) -> None:
        """Append parts without an image. Raises CameraError as `put` does."""
        for pulse in pulses:
            self.put(pulse, Block(None, fault="the camera gave no image"))

    def take(self) -> Frame | None:
        """Take the oldest part, or None."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        if frame.image is not None:
            self._images -= 1
        return frame

    def clear(self) -> int:
        """Discard what waits; return how many parts that were."""
        discarded = len(self._frames)
        self._frames.clear()
        self._images = 0
        return discarded
