"""How frames of several cameras become parts, and cameras that see parts of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from flawline.cameras import Frame
from flawline.runtime.station.camera_reader import CameraReader
from flawline.runtime.station.views import PartVerdict, ViewGroups
from flawline.runtime.verdict import Verdict


class Parts(Protocol):
    """Makes verdicts on parts from those on frames."""

    def add(
        self, reader: CameraReader, frame: Frame, verdict: Verdict, now: float
    ) -> list[PartVerdict]:
        """Take the verdict on a frame; return the parts that are complete, or cannot become so."""
        ...

    def settle(self, now: float) -> list[PartVerdict]:
        """Return the parts that cannot become complete any more."""
        ...

    def deadline(self) -> float | None:
        """Return when `settle` must be called, even without a frame; None for no limit."""
        ...

    def is_paused(self, reader: CameraReader) -> bool:
        """Tell whether no frame may be taken from a camera now."""
        ...

    def awaits(self, reader: CameraReader) -> bool:
        """Tell whether a part waits for further views of a camera."""
        ...

    def flush(self) -> list[PartVerdict]:
        """Return the parts that wait when the stream ends."""
        ...


class OwnParts:
    """Each camera sees parts of its own."""

    def __init__(self, readers: Sequence[CameraReader]) -> None:
        self._groups = {reader.name: ViewGroups() for reader in readers}
        self._readers = readers

    def add(
        self, reader: CameraReader, frame: Frame, verdict: Verdict, now: float
    ) -> list[PartVerdict]:
        return self._counted(reader, self._groups[reader.name].add(frame, verdict))

    def _counted(self, reader: CameraReader, parts: list[PartVerdict]) -> list[PartVerdict]:
        """Count the parts for their camera, and give them its name."""
        named = []
        for part in parts:
            reader.tally.add(part.verdict, part.frame.age(reader.camera.clock.monotonic()))
            named.append(dataclasses.replace(part, camera=reader.name))
        return named

    def settle(self, now: float) -> list[PartVerdict]:
        parts = []
        for reader in self._readers:
            # The other views of a part do not come any more.
            if reader.ended:
                parts.extend(self._counted(reader, self._groups[reader.name].flush()))
        return parts

    def deadline(self) -> float | None:
        return None

    def is_paused(self, reader: CameraReader) -> bool:
        return False

    def awaits(self, reader: CameraReader) -> bool:
        return not self._groups[reader.name].is_idle

    def flush(self) -> list[PartVerdict]:
        parts = []
        for reader in self._readers:
            parts.extend(self._counted(reader, self._groups[reader.name].flush()))
        return parts
