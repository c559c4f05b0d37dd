"""What judges the frames of a stream now, and what takes its place between two frames.

A stream takes a `Judge` from its `Exchange` before each frame. Another one is opened, with its
self-test, by a thread while the present one judges; a fault in it leaves the present one in place.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flawline import FlawlineError
from flawline.cameras import Frame
from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.console import describe_failure, first_line, log, log_notes, warn
from flawline.runtime.detector import Detector
from flawline.runtime.drift.gauge import Gauge
from flawline.runtime.drift.watch import Change, DriftWatch, drift_notes
from flawline.runtime.graph_input import Laid
from flawline.runtime.image import Image
from flawline.runtime.masters.rule import MastersRule
from flawline.runtime.verdict import Verdict

JOIN_S = 5.0  # seconds that `close` waits for an engine that is being opened


@dataclass(frozen=True)
class Levels:
    """The thresholds of one camera: a score above the first one rejects, above the second reviews.

    Without the second one, no part is reviewed.
    """

    threshold: float
    review_threshold: float | None = None


@dataclass(frozen=True)
class Window:
    """Rejects while at least `frames` of the last `of` frames of a camera are bad."""

    frames: int
    of: int


class Judge:
    """A detector, the name of the recipe that it is of, and what a camera adds to its verdicts.

    `levels` has the name of each camera with thresholds other than those of the detector. With a
    `window`, single frames do not reject; see `verdict`. `masters` is what is demanded of the
    master parts; None demands nothing. `takes_bundles` says whether another bundle that comes to
    the path of this one is offered to the stream.
    """

    def __init__(
        self,
        detector: Detector,
        recipe: str | None = None,
        levels: Mapping[str, Levels] | None = None,
        window: Window | None = None,
        masters: MastersRule | None = None,
        takes_bundles: bool = False,
    ) -> None:
        self.detector = detector
        self.recipe = recipe
        self.levels = dict(levels or {})
        self.window = window
        self.masters = masters
        self.takes_bundles = takes_bundles
        # Called once with this judge when it begins to judge in the place of another, by a thread
        # that is not the stream's. May raise FlawlineError. It should not refer to the judge
        # itself: such a cycle would keep its detector in memory after the next exchange.
        self.on_begin: Callable[[Judge], None] = lambda judge: None
        # For each camera, whether its last frames were bad.
        self._recent: dict[str, deque[bool]] = {}
        self._gauge: Gauge | None = None
        self._drift: DriftWatch | None = None
        reference = detector.bundle.drift
        if reference is not None:
            self._gauge = Gauge(reference, detector.graph_input)
            self._drift = DriftWatch(reference)

    def prepare(self, frame: Frame) -> Image | Laid | Verdict:
        """Return what the detector prepares, with what is read of the frame for the drift check."""
        made = self.detector.prepare(frame)
        if self._gauge is None or isinstance(made, Verdict):
            return made
        if not isinstance(made, Laid):
            made = Laid(made)
        return made._replace(reading=self._gauge.read(made.image))

    def follow(self, other: Judge) -> None:
        """Count the last frames of another one in the window, if it judged by the same recipe.

        The same bad place is in several frames, some of which may be from before the exchange. The
        check of drift continues if frames are compared with the same.
        """
        if self.recipe == other.recipe and self.window == other.window:
            self._recent = other._recent
        if self.detector.bundle.drift == other.detector.bundle.drift:
            self._drift = other._drift

    def verdict(
        self, verdict: Verdict, camera: str, note: Callable[[Change], None] = lambda change: None
    ) -> Verdict:
        """Return what becomes of the detector's verdict on the next frame of a camera.

        It gets the thresholds of the camera. With a window, the frame is rejected while enough of
        the last frames are bad, with this one, and is not rejected otherwise, whatever its score.
        A frame that could not be judged is always rejected, and counts as bad. The check of drift
        changes no verdict; it adds the names of its warnings that are on, and calls `note` with one
        that begins or ends.
        """
        verdict = self._with_drift(verdict, camera, note)
        levels = self.levels.get(camera)
        if levels is not None:
            verdict = dataclasses.replace(
                verdict,
                threshold=levels.threshold,
                anomalous=not verdict.judged or verdict.score > levels.threshold,
                review_threshold=levels.review_threshold,
            )
        if self.window is None:
            return verdict
        recent = self._recent.setdefault(camera, deque(maxlen=self.window.of))
        recent.append(verdict.anomalous)
        bad = sum(recent)
        anomalous = not verdict.judged or bad >= self.window.frames
        return dataclasses.replace(verdict, anomalous=anomalous, recent_bad=bad)

    def _with_drift(self, verdict: Verdict, camera: str, note: Callable[[Change], None]) -> Verdict:
        if self._drift is None:
            return verdict
        if verdict.reading is not None and verdict.judged:
            for change in self._drift.add(camera, verdict.reading, verdict.score):
                note(change)
        # What was read is of no further use.
        names = self._drift.active(camera)
        return dataclasses.replace(verdict, reading=None, drift=names)


# Opens what is to judge next; raises FlawlineError if it cannot be used.
Opening = Callable[[], Judge]


class Outdated(FlawlineError):
    """What was offered is not there any more, so that there is nothing to refuse."""


class Exchange:
    """Holds the judge of a stream, and exchanges it when the stream asks for it.

    `offer` may be called by any thread, `take` and `close` by that of the stream. Use it as a
    context manager, or close it: it closes the detectors.
    """

    def __init__(self, first: Judge) -> None:
        self._now = first
        self._changed = threading.Condition()
        self._opening: Opening | None = None
        self._next: Judge | None = None
        # Those that began to judge, until `on_begin` was called.
        self._begun: list[Judge] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def now(self) -> Judge:
        """What judges now."""
        return self._now

    @property
    def is_due(self) -> bool:
        """Whether another judge is ready, which `take` returns."""
        return self._next is not None

    def take(self) -> Judge:
        """Return what judges from now on, and close what did before if that is another."""
        with self._changed:
            following = self._next
            self._next = None
        if following is not None:
            old = self._now
            self._now = following
            following.follow(old)
            old.detector.close()
            with self._changed:
                self._begun.append(following)
                self._changed.notify_all()
            log(f"from now on: {describe(following)}")
            log_notes(drift_notes(following.detector.bundle.drift))
        return self._now

    def offer(self, opening: Opening) -> None:
        """Open another judge in the background; `take` returns it when it is ready.

        If one is being opened or waits to be taken, the latest takes its place. One that cannot be
        opened is refused with a warning, and what judges now stays.
        """
        with self._changed:
            if self._closed:
                return
            self._opening = opening
            if self._thread is None:
                # A daemon, so that an engine that hangs cannot keep the process from ending.
                self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def refuse(self, error: Exception) -> None:
        """Print a warning about what cannot be used; what judges now stays."""
        reason = describe_failure(error) or f"{type(error).__name__}: {first_line(error)}"
        warn(f"{reason}; refused, and inspection continues with {describe(self._now)}")

    def close(self) -> None:
        """Close the detectors. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(JOIN_S)
        with self._changed:
            following = self._next
            self._next = None
        if following is not None:
            following.detector.close()
        self._now.detector.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the thread calls.

    def _run(self) -> None:
        closed = False
        while not closed:
            with self._changed:
                self._changed.wait_for(self._has_work)
                begun = self._begun
                self._begun = []
                opening = self._opening
                self._opening = None
                closed = self._closed
            for judge in begun:
                self._begin(judge)
            if opening is not None and not closed:
                self._open(opening)

    def _has_work(self) -> bool:
        return self._closed or self._opening is not None or bool(self._begun)

    def _begin(self, judge: Judge) -> None:
        try:
            judge.on_begin(judge)
        except FlawlineError as error:
            warn(f"{error}; inspection continues")

    def _open(self, opening: Opening) -> None:
        try:
            opened = opening()
        except Outdated:
            return
        except Exception as error:
            # Whatever is wrong with what was offered must not end the inspection.
            self.refuse(error)
            return
        self._keep(opened)

    def _keep(self, opened: Judge) -> None:
        """Let the stream take what was opened, unless it has ended or another is wanted by now."""
        replaced: Judge | None = opened
        with self._changed:
            if not self._closed and self._opening is None:
                replaced = self._next
                self._next = opened
        if replaced is not None:
            replaced.detector.close()


def require_same_maps(bundle: Bundle, first: Bundle) -> None:
    """Raise BundleError for a bundle whose results the outputs were not opened for."""
    if bundle.has_map == first.has_map:
        return
    gives = "maps" if bundle.has_map else "no maps"
    raise BundleError(
        f"bundle {bundle.path} gives {gives}, unlike the one that the stream began with; start the "
        f"stream again"
    )


def exchange_of(judging: Detector | Exchange) -> Exchange:
    """Return an exchange; a detector stands for one that nothing is offered to."""
    return judging if isinstance(judging, Exchange) else Exchange(Judge(judging))


def describe(judge: Judge) -> str:
    """Name a judge in a message: its recipe if it has one, and its bundle."""
    bundle = judge.detector.bundle
    name = f"bundle {bundle.short_id} in {bundle.path}"
    if judge.recipe is not None:
        name = f"recipe {judge.recipe}, {name}"
    return f"{name}, threshold {judge.detector.threshold:.6g}"
