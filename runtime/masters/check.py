"""Judging master parts: each good one must be accepted, and each bad one rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from flawline import FlawlineError
from flawline.cameras import CameraError, Frame, open_camera
from flawline.runtime.console import warn
from flawline.runtime.detector import Detector
from flawline.runtime.trained_images import content_hash
from flawline.runtime.verdict import ANOMALOUS, GOOD, Verdict
from flawline.uris import without_secrets

NAMES_SHOWN = 3


class MastersError(FlawlineError):
    """Master parts are not judged as what they are, or it is not known whether they are."""

    exit_code = 1


@dataclass(frozen=True)
class Masters:
    """Where the known parts are: a camera description of each kind, such as a folder.

    `max_frames` limits the frames of each; needed for a camera that does not end by itself.
    """

    good: str
    bad: str
    max_frames: int | None = None


@dataclass(frozen=True)
class WrongMaster:
    """A master part that was not judged as what it is: `expected` is its right verdict."""

    source: str
    expected: str
    verdict: Verdict

    def describe(self) -> str:
        """Return what became of it, and why."""
        text = f"{self.source} is {self.verdict.name} instead of {self.expected}"
        if self.verdict.reason is not None:
            return f"{text} ({self.verdict.reason})"
        return f"{text} (score {self.verdict.score:.6g})"


@dataclass(frozen=True)
class MastersResult:
    """How many good and bad masters were judged, and those that were judged wrong."""

    good: int
    bad: int
    wrong: tuple[WrongMaster, ...]

    @property
    def passed(self) -> bool:
        """Whether all were judged as what they are."""
        return not self.wrong

    def describe(self) -> str:
        """Return the counts in one line, and the first wrong ones."""
        total = self.good + self.bad
        if self.passed:
            return f"{self.good} good master parts accepted, {self.bad} bad ones rejected"
        shown = "; ".join(master.describe() for master in self.wrong[:NAMES_SHOWN])
        if len(self.wrong) > NAMES_SHOWN:
            shown += "; ..."
        return f"{len(self.wrong)} of {total} master parts judged wrong: {shown}"


def check_masters(detector: Detector, masters: Masters) -> MastersResult:
    """Judge all masters with a detector, as it judges the frames of a camera.

    A good one must have the verdict "good", a bad one "anomalous". One that is for review is
    neither, and one that could not be judged shows nothing, so that both are wrong. Raises
    CameraError for a source that is absent, empty or endless, and EngineError.
    """
    good, rejected = _judge(detector, masters.good, GOOD, masters.max_frames)
    bad, accepted = _judge(detector, masters.bad, ANOMALOUS, masters.max_frames)
    return MastersResult(good, bad, (*rejected, *accepted))


def _judge(
    detector: Detector, source: str, expected: str, most: int | None
) -> tuple[int, list[WrongMaster]]:
    """Judge the masters of one kind; return their number, and those that were judged wrong."""
    count = 0
    wrong = []
    with open_camera(source) as camera:
        if camera.endless and most is None:
            raise CameraError(
                f"camera {without_secrets(source)}: does not end by itself; give the number of "
                f"master parts of each kind with --max-frames"
            )
        if expected == GOOD:
            _note_trained(detector, camera.files()[:most])
        for frame in islice(camera, most):
            count += 1
            verdict = detector.judge(frame)
            if verdict.name != expected:
                wrong.append(WrongMaster(_name(frame), expected, verdict))
    if count == 0:
        raise CameraError(f"{without_secrets(source)}: gave no master part; check the source")
    return count, wrong


def _name(frame: Frame) -> str:
    return frame.source if frame.file is not None else f"{frame.source} frame {frame.index}"


def _note_trained(detector: Detector, files: Sequence[Path]) -> None:
    """Warn of good masters that the detector was trained on, which it accepts too easily."""
    trained_on = set(detector.bundle.manifest.trained_images)
    if not trained_on:
        return
    known = [path for path in files if content_hash(path) in trained_on]
    if known:
        warn(
            f"warning: the detector was trained on {len(known)} of {len(files)} good master parts, "
            f"such as {known[0]}; it accepts these more easily than others: take other ones"
        )
