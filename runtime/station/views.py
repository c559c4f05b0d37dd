"""Several views of one part, such as under different lights, judged as one part."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from flawline.cameras import Frame
from flawline.runtime.outputs import ViewVerdict
from flawline.runtime.verdict import ANOMALOUS, GOOD, REVIEW, Verdict

RANKS = {GOOD: 0, REVIEW: 1, ANOMALOUS: 2}


@dataclass(frozen=True)
class PartVerdict:
    """The verdict on a part, its frame that is shown, and the verdicts on all its views.

    `frame` is that of the worst view. If that one has no image, it is that of the worst view among
    those with an image, so that something of the part is saved. `views` is empty for a part with a
    single view. `camera` is the name of the camera of the frame, if there are several.
    """

    frame: Frame
    verdict: Verdict
    views: tuple[ViewVerdict, ...] = ()
    camera: str | None = None


@dataclass(frozen=True)
class _View:
    """A view of a part that was judged; `number` counts from 0."""

    number: int
    frame: Frame
    verdict: Verdict
    camera: str | None

    def label(self, total: int) -> str:
        """Return what a message calls it, if the part has `total` views."""
        if self.camera is None:
            return f"view {self.number + 1} of {total}"
        if self.frame.views == 1:
            return f"camera {self.camera}"
        return f"camera {self.camera}, view {self.frame.view + 1} of {self.frame.views}"


class PartViews:
    """The views of one part that were judged so far, of `total` views.

    The verdict on a part is that on its worst view. An anomalous view outweighs one for review, and
    this a good one; among equal ones it is that whose score is highest above its threshold, since
    cameras may have thresholds of their own. A view that could not be judged, or is missing, makes
    the part unjudged.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._views: dict[int, _View] = {}

    def __len__(self) -> int:
        return len(self._views)

    def __contains__(self, number: int) -> bool:
        return number in self._views

    @property
    def complete(self) -> bool:
        """Whether all views were judged."""
        return len(self._views) == self.total

    def add(self, number: int, frame: Frame, verdict: Verdict, camera: str | None = None) -> None:
        """Add the verdict on view `number`, from 0, that the camera of this name took."""
        self._views[number] = _View(number, frame, self._kept(verdict), camera)

    def _kept(self, verdict: Verdict) -> Verdict:
        """Return a verdict that stays valid; only the worst one keeps its map.

        The detector overwrites its map in the next call.
        """
        if verdict.anomaly_map is None:
            return verdict
        others = [view.verdict for view in self._views.values()]
        anomaly_map = None
        if verdict.judged and all(_badness(verdict) > _badness(other) for other in others):
            anomaly_map = verdict.anomaly_map.copy()
        return dataclasses.replace(verdict, anomaly_map=anomaly_map)

    def join(self, missing: str | None = None) -> PartVerdict:
        """Return the verdict on the part, of which at least one view was judged.

        `missing` says why views are missing, if it is known.
        """
        views = [self._views[number] for number in sorted(self._views)]
        worst = _worst(views)
        verdict = worst.verdict
        reason = None
        if not verdict.judged:
            reason = f"{worst.label(self.total)}: {verdict.reason}"
        elif not self.complete:
            reason = missing or f"only {len(views)} of the part's {self.total} views came"
        if reason is None:
            verdict = dataclasses.replace(verdict, milliseconds=_total_times(views))
        else:
            review = verdict.review_threshold
            verdict = Verdict(math.nan, verdict.threshold, True, None, {}, reason, review)
        with_image = [view for view in views if view.frame.image is not None]
        shown = worst
        if worst.frame.image is None and with_image:
            shown = _worst(with_image)
        records = tuple(_record(view) for view in views)
        return PartVerdict(shown.frame, verdict, records, shown.camera)


class ViewGroups:
    """Collects the exposures of a part, one after the other, until all of them are judged."""

    def __init__(self) -> None:
        self._last: Frame | None = None
        self._views = PartViews(1)

    def add(self, frame: Frame, verdict: Verdict) -> list[PartVerdict]:
        """Take the verdict on a frame; return the parts that are complete, or cannot become so."""
        if frame.views == 1:
            return [*self.flush(), PartVerdict(frame, verdict)]
        parts = []
        if self._last is not None and not _follows(self._last, frame):
            parts = self.flush()
        if self._last is None:
            self._views = PartViews(frame.views)
        self._last = frame
        self._views.add(frame.view, frame, verdict)
        if frame.view == frame.views - 1:
            parts.extend(self.flush())
        return parts

    @property
    def is_idle(self) -> bool:
        """Whether no part waits for further exposures."""
        return self._last is None

    def flush(self) -> list[PartVerdict]:
        """Return the part whose views were collected so far, if there is one."""
        if self._last is None:
            return []
        self._last = None
        return [self._views.join()]


def _follows(before: Frame, frame: Frame) -> bool:
    """Tell whether a frame is the next view of the same part."""
    same = before.part == frame.part and before.views == frame.views
    return same and frame.view == before.view + 1


def _record(view: _View) -> ViewVerdict:
    verdict = view.verdict
    return ViewVerdict(
        view.number, view.frame.index, verdict.score, verdict.name, verdict.reason, view.camera
    )


def _total_times(views: list[_View]) -> dict[str, float]:
    """Return the time of each stage for all views, in milliseconds."""
    total: dict[str, float] = {}
    batches: list[int] = []
    for view in views:
        # The verdicts of one batch share the record of its times.
        batch = id(view.verdict.milliseconds)
        if batch in batches:
            continue
        batches.append(batch)
        for stage, duration in view.verdict.milliseconds.items():
            total[stage] = total.get(stage, 0.0) + duration
    return total


def _worst(views: list[_View]) -> _View:
    """Return the first view that could not be judged, or else the first of the worst ones."""
    worst = views[0]
    for view in views:
        if not view.verdict.judged:
            return view
        if _badness(view.verdict) > _badness(worst.verdict):
            worst = view
    return worst


def _badness(verdict: Verdict) -> tuple[int, float]:
    """Return what orders verdicts from good to bad; those without a score come first."""
    if not verdict.judged:
        return -1, 0.0
    return RANKS[verdict.name], verdict.score - verdict.threshold
