"""What the page gets as JSON. Times are in seconds since 1970 unless their name ends in `_s`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RegionState:
    """An anomalous region in pixels of the frame: x, y, width, height, and its largest value."""

    box: tuple[int, int, int, int]
    area: int
    peak: float


@dataclass(frozen=True)
class PartState:
    """A judged frame or part. `score` is null if it could not be judged; `reason` says why.

    `captured_at` is in seconds since 1970. `width` and `height` are those of the frame, 0 without
    an image. `camera` is the one of the frame.
    """

    lane: str
    number: int
    verdict: str
    score: float | None
    threshold: float
    review_threshold: float | None
    reason: str | None
    camera: str | None
    part: str | None
    source: str
    captured_at: float
    width: int
    height: int
    regions: tuple[RegionState, ...]
    regions_total: int


@dataclass(frozen=True)
class KeptState:
    """A part that was not good. `id` gives its picture, if there is one.

    `has_image` is true while there is its image as the camera gave it.
    """

    id: int
    has_picture: bool
    has_image: bool
    part: PartState


@dataclass(frozen=True)
class LaneState:
    """The frames of one camera, or the parts that several cameras see together.

    `continuous` is true for a camera that gives frames without a break, `silent_s` are the seconds
    since the last one. `shown` is the frame to show, and `shown_age_s` the seconds since it was
    judged. `windowed` is true if several frames decide together. `latency_ms` and the thresholds
    are those of the newest frame, and `age_ms` is the time from the capture of the shown one to
    its verdict.
    """

    name: str
    continuous: bool
    frames: int
    judged: int
    rejected: int
    reviewed: int
    unjudged: int
    dropped: int
    fps: float
    latency_ms: float | None
    silent_s: float | None
    threshold: float | None
    review_threshold: float | None
    windowed: bool
    shown: PartState | None
    shown_age_s: float | None
    age_ms: float | None


@dataclass(frozen=True)
class CameraState:
    """A camera. `fault` says what is wrong with it, since `since`, in seconds since 1970."""

    name: str
    source: str
    live: bool
    waiting: bool
    fault: str | None
    since: float | None
    counts: dict[str, int]


@dataclass(frozen=True)
class OutputCounts:
    """An output: what it has counted, and what is wrong with it."""

    name: str
    counts: dict[str, int]
    fault: str | None


@dataclass(frozen=True)
class WarningState:
    """A warning of the process, and when it was given, in seconds since 1970."""

    at: float
    text: str


@dataclass(frozen=True)
class State:
    """All that the page shows but for scores and pictures. Times are in seconds since 1970.

    `faults` say why the stream is not healthy. `kept` counts the parts that were kept, and
    `teaching` the changes of what is shown about teaching, so that a new value means that there is
    something new.
    """

    time: float
    started: float
    phase: str
    title: str
    version: str
    bundle: str
    bundle_path: str
    method: str
    engine: str | None
    recipe: str | None
    own_thresholds: tuple[str, ...]
    faults: tuple[str, ...]
    lanes: tuple[LaneState, ...]
    cameras: tuple[CameraState, ...]
    outputs: tuple[OutputCounts, ...]
    warnings: tuple[WarningState, ...]
    kept: int
    teaching: int


@dataclass(frozen=True)
class HealthState:
    """Whether a stream does what it is meant to do, and if not, why."""

    status: str
    faults: tuple[str, ...] = field(default=())
