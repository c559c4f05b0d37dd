"""Frames that several cameras took of the same part, judged as one part."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from flawline.cameras import CameraError, Frame
from flawline.cameras.triggered import TriggeredCamera
from flawline.runtime.station.camera_reader import CameraReader
from flawline.runtime.station.views import PartVerdict, PartViews
from flawline.runtime.verdict import Verdict

# Parts of files that a camera may be ahead of the others, and of triggered cameras.
LEAD = 8
MOST_WAITING = 100
# Parts that were settled without all views, whose late views are recognised.
MOST_SETTLED = 1000


def require_known_parts(readers: Sequence[CameraReader]) -> None:
    """Raise CameraError for cameras whose frames cannot be matched with those of others."""
    if len(readers) < 2:
        raise CameraError(
            "--same-part joins the frames of several cameras; repeat --camera, or leave it out"
        )
    for reader in readers:
        if not reader.camera.knows_parts:
            raise CameraError(
                f"camera {reader.name}: --same-part cannot tell which part a frame of "
                f"{reader.camera.source} shows; use cameras with a trigger, or files without "
                f"watch=1"
            )


@dataclass
class _Part:
    """A part of which not all views have been judged."""

    name: str
    since: float
    views: PartViews
    # For each camera that gave a view: the number of the frame among all that were added.
    order: dict[str, int] = field(default_factory=dict)


class SameParts:
    """Joins the views that cameras took of the same part; each may take several exposures.

    Frames belong together that have the same `part`, or for files the same position. If one camera
    has no frame of a part, that part is unjudged, and the following ones are not shifted. It is
    settled when the camera has given a later part, when it has ended, and `wait_s` seconds after
    the first view came.
    """

    def __init__(self, readers: Sequence[CameraReader], wait_s: float) -> None:
        self._readers = readers
        self._wait_s = wait_s
        # For each camera, the number of its first view and how many it has.
        self._first: dict[str, int] = {}
        self._count: dict[str, int] = {}
        total = 0
        for reader in readers:
            self._first[reader.name] = total
            self._count[reader.name] = reader.camera.views
            total += self._count[reader.name]
        self._total = total
        self._parts: list[_Part] = []
        self._added = 0
        # The views that were missing, by the name of the part.
        self._settled: OrderedDict[str, set[int]] = OrderedDict()
        self.late = 0

    def add(
        self, reader: CameraReader, frame: Frame, verdict: Verdict, now: float
    ) -> list[PartVerdict]:
        """Take the verdict on a frame; return the parts that are complete, or cannot become so.

        Raises CameraError if it is no longer known which parts the frames of a camera show.
        """
        reader.tally.add(verdict, frame.age(reader.camera.clock.monotonic()))
        if frame.part is None and reader.camera.live:
            return [self._unknown(reader, frame, verdict)]
        if frame.part is None:
            frame = dataclasses.replace(frame, part=str(frame.index + 1))
        number = self._first[reader.name] + frame.view
        part = self._find(frame, number, now)
        if part is None:
            self.late += 1
            text = f"a view of part {frame.part} came after the part was rejected without it"
            reader.notices.warn("late view", f"camera {reader.name}: {text}", "views")
            return []
        self._added += 1
        part.views.add(number, frame, verdict, reader.name)
        part.order[reader.name] = self._added
        if not part.views.complete:
            return self._over_limit()
        return self._complete(part)

    def _unknown(self, reader: CameraReader, frame: Frame, verdict: Verdict) -> PartVerdict:
        """Return the verdict on a frame that belongs to no known part."""
        camera = reader.camera
        if isinstance(camera, TriggeredCamera) and camera.has_unknown_numbers:
            raise CameraError(
                f"camera {reader.name} was opened again, and the number of its next part is "
                f"unknown, so that its frames cannot be matched with those of the other cameras; "
                f"start again while no part passes, or name the parts with --parts"
            )
        return PartVerdict(frame, verdict, (), reader.name)

    def _find(self, frame: Frame, number: int, now: float) -> _Part | None:
        """Return the part that a view belongs to; None if the part is settled already."""
        name = str(frame.part)
        for part in self._parts:
            # The same name may come again, for a part that is inspected again.
            if part.name == name and number not in part.views:
                return part
        if number in self._settled.get(name, ()):
            self._settled[name].discard(number)
            return None
        part = _Part(name, now, PartViews(self._total))
        self._parts.append(part)
        return part

    def _complete(self, part: _Part) -> list[PartVerdict]:
        """Settle a part with all views, after those before it, which get no more of them."""
        settled = []
        for other in list(self._parts):
            if any(order < part.order[name] for name, order in other.order.items()):
                settled.append(self._settle(other, "gave no view of this part"))
        self._parts.remove(part)
        return [*settled, part.views.join()]

    def _over_limit(self) -> list[PartVerdict]:
        if len(self._parts) <= MOST_WAITING:
            return []
        reason = f"gave no view while {MOST_WAITING} other parts were waiting"
        return [self._settle(self._parts[0], reason)]

    def settle(self, now: float) -> list[PartVerdict]:
        """Return the parts whose missing views do not come any more."""
        settled = []
        for part in list(self._parts):
            missing = self._missing(part)
            if now >= self._deadline(part):
                settled.append(self._settle(part, f"gave no view within {self._wait_s:g} s"))
            elif any(reader.lost for reader in missing):
                settled.append(self._settle(part, "is lost"))
            elif any(reader.ended for reader in missing):
                settled.append(self._settle(part, "has no more frames"))
        return settled

    def deadline(self) -> float | None:
        """Return when `settle` must be called again, on the clock of `now`; None for no limit."""
        first = min((self._deadline(part) for part in self._parts), default=math.inf)
        return first if math.isfinite(first) else None

    def _deadline(self, part: _Part) -> float:
        # A file is there, however long it takes to read it.
        if any(reader.camera.live for reader in self._missing(part)):
            return part.since + self._wait_s
        return math.inf

    def _missing(self, part: _Part) -> list[CameraReader]:
        """Return the cameras of which a view is missing."""
        missing = []
        for reader in self._readers:
            first = self._first[reader.name]
            numbers = range(first, first + self._count[reader.name])
            if any(number not in part.views for number in numbers):
                missing.append(reader)
        return missing

    def _settle(self, part: _Part, reason: str) -> PartVerdict:
        """Return the verdict on a part without all its views."""
        self._parts.remove(part)
        absent = {number for number in range(self._total) if number not in part.views}
        self._settled.setdefault(part.name, set()).update(absent)
        if len(self._settled) > MOST_SETTLED:
            self._settled.popitem(last=False)
        names = ", ".join(reader.name for reader in self._missing(part))
        return part.views.join(f"camera {names} {reason}")

    def is_paused(self, reader: CameraReader) -> bool:
        """Tell whether a file must wait, because the other cameras are behind."""
        if reader.camera.live:
            return False
        ahead = sum(reader.name in part.order for part in self._parts)
        return ahead >= LEAD

    def awaits(self, reader: CameraReader) -> bool:
        """Tell whether a part waits for further views of a camera."""
        return any(reader in self._missing(part) for part in self._parts)

    def flush(self) -> list[PartVerdict]:
        """Return the parts that wait when the stream ends."""
        parts = []
        for part in list(self._parts):
            parts.append(self._settle(part, "gave no view before the stream ended"))
        return parts
