"""Several exposures of one part, such as under different lights, judged as one part."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from flawline.cameras import Frame
from flawline.runtime.detector import Verdict
from flawline.runtime.outputs import ViewVerdict


@dataclass(frozen=True)
class PartVerdict:
    """The verdict on a part, the frame that it comes from, and the verdicts on all its views.

    `views` is empty for a part with a single exposure.
    """

    frame: Frame
    verdict: Verdict
    views: tuple[ViewVerdict, ...] = ()


class ViewGroups:
    """Collects the views of a part, in their order, until all of them are judged.

    The verdict on a part is that on its worst view, the one with the highest score. A view that
    could not be judged, or is missing, makes the part unjudged.
    """

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._verdicts: list[Verdict] = []

    def add(self, frame: Frame, verdict: Verdict) -> list[PartVerdict]:
        """Take the verdict on a frame; return the parts that are complete, or cannot become so."""
        if frame.views == 1:
            return [*self.flush(), PartVerdict(frame, verdict)]
        parts = []
        if self._frames and not _follows(self._frames[-1], frame):
            parts = self.flush()
        self._frames.append(frame)
        self._verdicts.append(self._kept(verdict))
        if frame.view == frame.views - 1:
            parts.extend(self.flush())
        return parts

    def flush(self) -> list[PartVerdict]:
        """Return the part whose views were collected so far, if there is one."""
        if not self._frames:
            return []
        part = _join(self._frames, self._verdicts)
        self._frames = []
        self._verdicts = []
        return [part]

    def _kept(self, verdict: Verdict) -> Verdict:
        """Return a verdict that stays valid; only the worst one keeps its map.

        The detector overwrites its map in the next call.
        """
        if verdict.anomaly_map is None:
            return verdict
        worst = max((other.score for other in self._verdicts if other.judged), default=-math.inf)
        anomaly_map = None
        if verdict.judged and verdict.score > worst:
            anomaly_map = verdict.anomaly_map.copy()
        return dataclasses.replace(verdict, anomaly_map=anomaly_map)


def _follows(before: Frame, frame: Frame) -> bool:
    """Tell whether a frame is the next view of the same part."""
    same = before.part == frame.part and before.views == frame.views
    return same and frame.view == before.view + 1


def _join(frames: list[Frame], verdicts: list[Verdict]) -> PartVerdict:
    """Return the verdict on a part from those on its views."""
    views = []
    milliseconds: dict[str, float] = {}
    for frame, verdict in zip(frames, verdicts, strict=True):
        views.append(
            ViewVerdict(frame.view, frame.index, verdict.score, verdict.name, verdict.reason)
        )
        for stage, duration in verdict.milliseconds.items():
            milliseconds[stage] = milliseconds.get(stage, 0.0) + duration
    index = _worst(verdicts)
    verdict = verdicts[index]
    reason = None
    if not verdict.judged:
        reason = f"view {frames[index].view + 1} of {frames[index].views}: {verdict.reason}"
    elif len(frames) < frames[0].views:
        reason = f"only {len(frames)} of the part's {frames[0].views} views came"
    if reason is None:
        verdict = dataclasses.replace(verdict, milliseconds=milliseconds)
    else:
        verdict = Verdict(math.nan, verdict.threshold, True, None, {}, reason)
    return PartVerdict(frames[index], verdict, tuple(views))


def _worst(verdicts: list[Verdict]) -> int:
    """Return the position of the first verdict that is unjudged, or of that with the most score."""
    worst = 0
    for index, verdict in enumerate(verdicts):
        if not verdict.judged:
            return index
        if verdict.score > verdicts[worst].score:
            worst = index
    return worst
