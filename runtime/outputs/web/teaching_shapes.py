"""What the page gets about teaching as JSON. Times are in seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass

from flawline.runtime.outputs.web.shapes import PartState


@dataclass(frozen=True)
class PictureState:
    """A picture from which the bundle is to be taught; `id` gives a small picture of it.

    `kind` is false_reject or good, and `person` says so. `part_id` is that of the kept part which
    it is of.
    """

    id: int
    kind: str
    person: str
    part_id: int | None
    part: PartState


@dataclass(frozen=True)
class ModeState:
    """A way to teach: append adds the false rejects, new learns everything again.

    `missing` says what is needed before it can begin. `false_alarm_rate` is the share of good parts
    that the new threshold may reject.
    """

    name: str
    missing: str | None
    false_alarm_rate: float | None


@dataclass(frozen=True)
class JobState:
    """The last teaching run: `phase` is teaching, installing, installed or failed with a `reason`.

    `lines` are the last ones of the command. `bundle` is the identifier of the new bundle, and
    `in_use` is true when the stream judges with it.
    """

    phase: str
    mode: str
    person: str
    started: float
    ended: float | None
    lines: tuple[str, ...]
    reason: str | None
    bundle: str | None
    in_use: bool


@dataclass(frozen=True)
class TeachingState:
    """What the bundle in use can be taught from.

    `fault` says why it cannot be taught here. `collecting` is how many further frames are collected
    and `collection_fault` why that ended. `markable` are the kept parts of this bundle whose images
    are there. `in_place` is the bundle at the watched path, and `previous` the one that undoing
    brings back; `undo_fault` says why that is not possible.
    """

    bundle: str
    method: str
    fault: str | None
    modes: tuple[ModeState, ...]
    pictures: tuple[PictureState, ...]
    markable: tuple[int, ...]
    collecting: int
    collection_fault: str | None
    most_pictures: int
    job: JobState | None
    in_place: str | None
    previous: str | None
    undo_fault: str | None
