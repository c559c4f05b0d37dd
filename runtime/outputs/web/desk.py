"""The threshold desk: what the thresholds are, and moving them in the name of a person."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from flawline import FlawlineError
from flawline.runtime.bundle import CALIBRATION, MANIFEST
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import log, printable
from flawline.runtime.files import sha256_of
from flawline.runtime.moved_threshold import (
    move_thresholds,
    previous_calibration,
    read_calibration,
    revision_of,
    undo_by,
)
from flawline.runtime.outputs.web.board import Board
from flawline.runtime.signing.signature import has_signed_thresholds


@dataclass(frozen=True)
class Thresholds:
    """A pair of thresholds of the score; without the second one no part is reviewed."""

    threshold: float
    review_threshold: float | None


@dataclass(frozen=True)
class GoodScores:
    """Mean, standard deviation and range of the held-out good images' scores."""

    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class DeskState:
    """The thresholds of a bundle, and what supports them; see `Calibration`.

    `computed` are those that follow from good images, which `false_alarm_rate` and `interval` are
    of; `moved_by` is the person who moved them, or null. `previous` is what undoing brings back.
    `revision` must be given to change them. `fault` says why they cannot be changed here.
    """

    bundle: str
    current: Thresholds
    computed: Thresholds
    previous: Thresholds | None
    moved_by: str | None
    false_alarm_rate: float
    review_rate: float | None
    interval: tuple[float, float]
    confidence: float
    good_images: int
    folds: int
    scored_by: str | None
    good: GoodScores
    revision: str
    fault: str | None


class DeskError(FlawlineError):
    """The thresholds cannot be read or changed."""


class Desk:
    """Reads and changes the thresholds of the bundle that judges. Any thread may call."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._changing = threading.Lock()

    def state(self) -> DeskState:
        """Return the thresholds. Raises FlawlineError if they cannot be read."""
        bundle = self._board.bundle
        fault = self._fault()
        # Before the content, so that a change between the two is noticed.
        revision = revision_of(bundle.path)
        calibration = read_calibration(bundle.path, bundle.manifest)
        previous = previous_calibration(bundle.path, bundle.manifest)
        by_hand = calibration.by_hand
        computed = _pair(calibration)
        if by_hand is not None:
            computed = Thresholds(by_hand.threshold, by_hand.review_threshold)
        review = calibration.review
        scored_by = calibration.scored_by
        good = bundle.manifest.score
        return DeskState(
            bundle=bundle.short_id,
            current=_pair(calibration),
            computed=computed,
            previous=None if previous is None else _pair(previous),
            moved_by=None if by_hand is None else printable(by_hand.person),
            false_alarm_rate=calibration.false_alarm_rate,
            review_rate=None if review is None else review.rate,
            interval=calibration.interval,
            confidence=calibration.confidence,
            good_images=calibration.good_images,
            folds=calibration.folds,
            scored_by=None if scored_by is None else str(scored_by),
            good=GoodScores(good.mean, good.std, good.min, good.max),
            revision=revision or "",
            fault=fault,
        )

    def move(
        self, threshold: float, review_threshold: float | None, person: str, revision: str
    ) -> DeskState:
        """Write thresholds that a person chose. Raises FlawlineError if that is refused."""
        self._require_changeable()
        bundle = self._board.bundle
        with self._changing:
            move_thresholds(bundle, threshold, review_threshold, person, revision)
        log(f"page: threshold {threshold:.6g} of {bundle.path}, moved by hand by {person.strip()}")
        return self.state()

    def undo(self, person: str, revision: str) -> DeskState:
        """Bring the previous thresholds back. Raises FlawlineError if that is refused."""
        self._require_changeable()
        bundle = self._board.bundle
        with self._changing:
            calibration = undo_by(bundle.path, person, revision)
        log(
            f"page: threshold {calibration.threshold:.6g} of {bundle.path}, brought back by "
            f"{person.strip()}"
        )
        return self.state()

    def _require_changeable(self) -> None:
        fault = self._fault()
        if fault is not None:
            raise DeskError(fault)

    def _fault(self) -> str | None:
        """Say why the thresholds cannot be changed here; None if they can."""
        stream = self._board.stream()
        if stream is not None and stream.own_thresholds:
            return (
                "the recipe in the station file has a threshold of its own, which takes the place "
                "of the bundle's; change it there"
            )
        bundle = self._board.bundle
        path = bundle.path
        if manifest_hash(path) != bundle.manifest_sha256:
            return "another bundle is in its folder, which the station has not taken over"
        if has_signed_thresholds(path, bundle.manifest_sha256):
            return "the thresholds are signed with the bundle; calibrate it and sign it again"
        if not os.access(path, os.W_OK) or not os.access(path / CALIBRATION, os.R_OK):
            return f"the folder of the bundle cannot be written: {printable(str(path))}"
        return None


def manifest_hash(path: Path) -> str | None:
    """Return the SHA-256 of the manifest that is in a folder now; None without one."""
    try:
        return sha256_of(path / MANIFEST)
    except OSError:
        return None


def _pair(calibration: Calibration) -> Thresholds:
    return Thresholds(calibration.threshold, calibration.review_threshold)
