"""What the stream leaves for the page about the frames of one camera."""

from __future__ import annotations

import dataclasses
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement
from flawline.runtime.verdict import ANOMALOUS, GOOD, REVIEW, UNJUDGED, Verdict

RECENT = 2000  # frames whose scores the page shows
PICTURE_S = 0.1  # seconds between two frames that are stored with a copy of their maps
# Seconds for which a frame that is not good is shown although later ones came, so that a person
# sees it.
HOLD_S = 1.0
FPS_WINDOW = 30  # frames
# Seconds; the upper bounds of the histogram of latencies.
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CODES = {GOOD: 0, REVIEW: 1, ANOMALOUS: 2, UNJUDGED: 3}

# Number of the frame in its lane, score or None without one, place of the verdict in CODES, and
# when it was judged, in seconds since 1970.
Point = tuple[int, float | None, int, float]


@dataclass(frozen=True)
class Shown:
    """A judgement that the page may show. The map of its verdict is a copy.

    `number` counts the frames of its lane from 1, and `at` is when it was judged, by the clock of
    the lane. `bundle` is what judged it.
    """

    lane: str
    number: int
    judgement: Judgement
    bundle: Bundle
    at: float

    @property
    def has_image(self) -> bool:
        """Whether there is a picture of it."""
        return self.judgement.frame.image is not None

    @property
    def size(self) -> int:
        """How many bytes its arrays hold."""
        image = self.judgement.frame.image
        anomaly_map = self.judgement.verdict.anomaly_map
        size = 0 if image is None else image.nbytes
        return size + (0 if anomaly_map is None else anomaly_map.nbytes)

    def without_image(self) -> Shown:
        """Return what is left when image and map are released."""
        judgement = self.judgement
        frame = dataclasses.replace(judgement.frame, image=None)
        verdict = dataclasses.replace(judgement.verdict, anomaly_map=None)
        released = dataclasses.replace(judgement, frame=frame, verdict=verdict)
        return dataclasses.replace(self, judgement=released)


@dataclass(frozen=True)
class LaneView:
    """A lane at one moment.

    `counts` are in the order of CODES. `shown` is the frame to show, None before the first one.
    `newest` is the last verdict, whose map is not valid any more. `latency` has the number of
    frames in each range of LATENCY_BOUNDS, those above the last one at the end, and `latency_sum`
    is in seconds. `unjudged_run` counts the frames since the last one that was judged.
    """

    name: str
    frames: int
    counts: tuple[int, ...]
    fps: float
    silent_s: float | None
    shown: Shown | None
    newest: Verdict | None
    latency: tuple[int, ...]
    latency_sum: float
    unjudged_run: int


class Lane:
    """Counts, scores and newest frames of one camera, or of the parts that several cameras see.

    `add` is called by the stream, and takes a few microseconds; any thread calls the others.
    `clock` returns seconds that never go backwards.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._frames = 0
        self._counts = [0] * len(CODES)
        self._scores = np.zeros(RECENT)
        self._codes = np.zeros(RECENT, np.uint8)
        self._times = np.zeros(RECENT)
        self._judged_at: deque[float] = deque(maxlen=FPS_WINDOW + 1)
        self._latency = [0] * (len(LATENCY_BOUNDS) + 1)
        self._latency_sum = 0.0
        self._unjudged_run = 0
        # Its map is not valid any more.
        self._newest: Verdict | None = None
        self._shown: Shown | None = None
        self._alarm: Shown | None = None

    def add(self, judgement: Judgement, bundle: Bundle) -> Shown | None:
        """Take note of a judgement; return it, if it is not good, to be kept for longer.

        The map is copied at most every PICTURE_S seconds, and of good and other frames separately.
        """
        verdict = judgement.verdict
        now = self._clock()
        code = CODES[verdict.name]
        latency = 1e-3 * sum(verdict.milliseconds.values())
        with self._lock:
            place = self._frames % RECENT
            self._scores[place] = verdict.score
            self._codes[place] = code
            self._times[place] = time.time()
            self._frames += 1
            self._counts[code] += 1
            self._judged_at.append(now)
            self._unjudged_run = 0 if verdict.judged else self._unjudged_run + 1
            if verdict.judged:
                self._latency[bisect_left(LATENCY_BOUNDS, latency)] += 1
                self._latency_sum += latency
            number = self._frames
            self._newest = verdict
        if not self._is_due(code, now):
            return None
        shown = Shown(self.name, number, _lasting(judgement), bundle, now)
        with self._lock:
            self._shown = shown
            if code != CODES[GOOD]:
                self._alarm = shown
        return None if code == CODES[GOOD] else shown

    def _is_due(self, code: int, now: float) -> bool:
        """Tell whether a frame is stored. Called by the stream alone, which alone changes these."""
        last = self._shown if code == CODES[GOOD] else self._alarm
        return last is None or now - last.at >= PICTURE_S

    def view(self) -> LaneView:
        """Return the lane as it is now."""
        now = self._clock()
        with self._lock:
            return LaneView(
                self.name,
                self._frames,
                tuple(self._counts),
                self._fps(now),
                now - self._judged_at[-1] if self._judged_at else None,
                self._to_show(now),
                self._newest,
                tuple(self._latency),
                self._latency_sum,
                self._unjudged_run,
            )

    def to_show(self) -> Shown | None:
        """Return the frame to show: the newest one, or one that is not good for HOLD_S seconds."""
        now = self._clock()
        with self._lock:
            return self._to_show(now)

    def age_of(self, shown: Shown) -> float:
        """Return the seconds since a frame of this lane was judged."""
        return self._clock() - shown.at

    def points(self, after: int) -> list[Point]:
        """Return the frames with a number above `after`, at most the last RECENT ones."""
        with self._lock:
            first = max(after, self._frames - RECENT, 0)
            numbers = np.arange(first, self._frames)
            places = numbers % RECENT
            scores = self._scores[places].tolist()
            codes = self._codes[places].tolist()
            times = self._times[places].tolist()
        points = []
        for number, score, code, at in zip(numbers.tolist(), scores, codes, times, strict=True):
            usable = score if np.isfinite(score) else None
            points.append((number + 1, usable, code, round(at, 3)))
        return points

    def _to_show(self, now: float) -> Shown | None:
        alarm = self._alarm
        if alarm is not None and now - alarm.at < HOLD_S:
            return alarm
        return self._shown

    def _fps(self, now: float) -> float:
        """Return the frames per second; it falls while no frame comes."""
        if len(self._judged_at) < 2:
            return 0.0
        first, last = self._judged_at[0], self._judged_at[-1]
        count = len(self._judged_at) - 1
        usual = (last - first) / count
        # One frame more than those that came would be there by now.
        late = now - last > 2 * usual + 0.5
        duration = now - first if late else last - first
        return count / max(duration, 1e-9)


def _lasting(judgement: Judgement) -> Judgement:
    """Return a judgement whose map stays as it is; the stream uses the other one again."""
    anomaly_map = judgement.verdict.anomaly_map
    if anomaly_map is None:
        return judgement
    verdict = dataclasses.replace(judgement.verdict, anomaly_map=anomaly_map.copy())
    return dataclasses.replace(judgement, verdict=verdict)
