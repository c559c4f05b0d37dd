"""Counts and times of a run."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from flawline.cameras import Camera
from flawline.runtime.recent_values import RecentValues
from flawline.runtime.stage_times import StageTimes
from flawline.runtime.strict_json import finite
from flawline.runtime.verdict import Verdict

FPS_WINDOW = 30  # frames of the running FPS
PERCENTILES = (50, 95, 99)


class Tally:
    """Counts frames and verdicts, and measures frames per second and latency.

    A frame that could not be judged counts as unjudged, not as anomalous, and in no measurement: it
    takes hardly any time. The latency of a frame is the time that its preparation and the
    engine took, in milliseconds; its age is the time from its capture to its verdict. `clock`
    returns seconds that never go backwards. With `profile`, the summary has the times of `stages`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, *, profile: bool = False
    ) -> None:
        self.stages = StageTimes(clock)
        # What the summary says about them.
        self.profiled: Mapping[str, Mapping[str, Any]] | None = None
        self.profile = profile
        self.frames = 0
        self.anomalous = 0
        # Parts for review; None while no verdict has a threshold for them.
        self.review: int | None = None
        self.unjudged = 0
        # Parts that were judged while a warning of the drift check was on, by its name.
        self.drift: Counter[str] = Counter()
        self.latency = RecentValues()
        self.ages = RecentValues()
        self._clock = clock
        self._start = clock()
        self._recent: deque[float] = deque([self._start], maxlen=FPS_WINDOW + 1)

    def add(self, verdict: Verdict, age: float | None = None) -> float:
        """Count a verdict; return the running frames per second.

        `age` is that of its frame in seconds, if the camera states it.
        """
        self.frames += 1
        self.drift.update(verdict.drift)
        if verdict.review_threshold is not None:
            self.review = (self.review or 0) + int(verdict.review)
        if verdict.judged:
            if verdict.anomalous:
                self.anomalous += 1
            self.latency.add(sum(verdict.milliseconds.values()))
            self._recent.append(self._clock())
            if age is not None:
                self.ages.add(1e3 * age)
        else:
            self.unjudged += 1
        duration = self._recent[-1] - self._recent[0]
        return (len(self._recent) - 1) / max(duration, 1e-9)

    def summary(self, *cameras: Camera) -> dict[str, Any]:
        """Return the summary of the run so far, as it is printed.

        The counters of several cameras are added up.
        """
        duration = max(self._clock() - self._start, 1e-9)
        summary: dict[str, Any] = {
            "frames": self.frames,
            "fps": round((self.frames - self.unjudged) / duration, 2),
        }
        for percent in PERCENTILES:
            summary[f"p{percent}_ms"] = _percentile(self.latency, percent)
        if any(camera.live for camera in cameras):
            summary["p95_age_ms"] = _percentile(self.ages, 95)
        for camera in cameras:
            for name, count in camera.counts().items():
                summary[name] = summary.get(name, 0) + count
        summary["anomalous"] = self.anomalous
        if self.review is not None:
            summary["review"] = self.review
        summary["unjudged"] = self.unjudged
        if self.drift:
            summary["drift"] = dict(self.drift)
        if self.profile:
            self.profiled = self.stages.summary()
            summary["profile"] = self.profiled
        return summary


def _percentile(milliseconds: RecentValues, percent: int) -> float | None:
    """Return a percentile, or None if no frame was measured."""
    if not milliseconds:
        return None
    return finite(milliseconds.percentiles([percent])[0], 3)
