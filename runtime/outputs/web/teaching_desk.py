"""Teaching from the page: parts that are marked as good, and who has the bundle taught."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from flawline.runtime.audit.bundle_log import ID, bundle_state
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, printable
from flawline.runtime.engines import REFERENCE_ENGINE, engine_class
from flawline.runtime.moved_threshold import name_of
from flawline.runtime.outputs.web.board import Board
from flawline.runtime.outputs.web.collection import (
    FALSE_REJECT,
    GOOD,
    MOST_PICTURES,
    Collection,
    Picture,
)
from flawline.runtime.outputs.web.stored import shown
from flawline.runtime.outputs.web.teachable import APPEND, Teachable, modes_of, rates_for
from flawline.runtime.outputs.web.teaching_job import Order, TeachingError, TeachingJob
from flawline.runtime.outputs.web.teaching_shapes import (
    JobState,
    ModeState,
    PictureState,
    TeachingState,
)
from flawline.runtime.precisions import FP32
from flawline.runtime.replaced import previous_of, undo_install
from flawline.runtime.threshold import CalibrationError

# Folders of the pictures.
MARKED_FOLDER = "false-rejects"
GOOD_FOLDER = "good-parts"


class TeachingDesk:
    """Collects pictures and teaches the bundle that judges. Any thread may call.

    What a person asks for is refused with a FlawlineError.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._teachable = Teachable(board)
        self._changing = threading.Lock()
        self._job: TeachingJob | None = None

    @property
    def _collection(self) -> Collection:
        return self._board.collection

    def state(self) -> TeachingState:
        """Return what can be taught, from what, and how the last teaching run went."""
        bundle = self._board.bundle
        pictures = self._collection.pictures(bundle.path)
        fault = self._teachable.fault()
        previous = _id_at(previous_of(bundle.path))
        return TeachingState(
            bundle=bundle.short_id,
            method=bundle.manifest.method,
            fault=fault,
            modes=tuple(_mode_state(bundle, mode, pictures) for mode in modes_of(bundle)),
            pictures=tuple(map(_picture_state, pictures)),
            markable=tuple(self._markable(bundle)),
            collecting=self._collection.left,
            collection_fault=self._collection.fault,
            most_pictures=MOST_PICTURES,
            job=self._job_state(),
            in_place=_id_at(bundle.path),
            previous=previous,
            undo_fault=None if previous is None else self._teachable.fault_of_undo(),
        )

    def shown(self, number: int) -> bytes | None:
        """Return a small picture of one of the pictures as JPEG; None if there is none."""
        for picture in self._collection.pictures(self._board.bundle.path):
            if picture.number == number:
                return shown(picture.file)
        return None

    def mark(self, part: int, person: str) -> TeachingState:
        """Take a kept part as one that is good, although it was rejected."""
        name = name_of(person)
        bundle = self._require_teachable()
        kept = self._board.kept.with_image(part)
        if kept is None or kept.bundle.path != bundle.path:
            raise TeachingError("the image of this part is no longer kept; mark a newer one")
        if self._collection.add(kept, FALSE_REJECT, name, part) is None:
            raise TeachingError("this part is marked already")
        score = kept.judgement.verdict.score
        log(f"page: part {part} with score {score:.6g} marked as good by {name}")
        return self.state()

    def collect(self, count: int, person: str) -> TeachingState:
        """Keep the next `count` frames as pictures of good parts; 0 stops that."""
        name = name_of(person)
        bundle = self._require_teachable()
        if count == 0:
            self._collection.stop()
        else:
            self._collection.collect(bundle.path, name, count)
            log(f"page: the next {count} parts are collected as good ones by {name}")
        return self.state()

    def remove(self, picture: int | None, person: str, kind: str | None = None) -> TeachingState:
        """Remove a picture, or all of a kind, or all of them."""
        name = name_of(person)
        path = self._board.bundle.path
        with self._changing:
            self._require_idle()
            chosen = set()
            for one in self._collection.pictures(path):
                if picture in (None, one.number) and kind in (None, one.record.kind):
                    chosen.add(one.number)
            removed = self._collection.remove(path, chosen)
        log(f"page: {removed} pictures removed by {name}")
        return self.state()

    def start(self, mode: str, bundle_id: str, person: str) -> TeachingState:
        """Teach in one of the modes. `bundle_id` is the bundle that the person saw."""
        name = name_of(person)
        bundle = self._require_teachable()
        if bundle_id != bundle.short_id:
            raise TeachingError("another bundle judges by now; look at it again")
        if mode not in modes_of(bundle):
            raise TeachingError(f"{bundle.manifest.method} cannot be taught in this way")
        with self._changing:
            self._require_idle()
            self._collection.stop()
            self._collection.settle()
            pictures = self._collection.pictures(bundle.path)
            order = self._order(bundle, mode, pictures, name)
            used = {picture.number for picture in pictures}

            def done() -> None:
                self._collection.remove(bundle.path, used)

            self._job = TeachingJob(order, self._board.note_teaching, done)
        log(f"page: teaching begins: {order.note}")
        return self.state()

    def stop(self, person: str) -> TeachingState:
        """End the teaching run."""
        name = name_of(person)
        if self._job is None or not self._job.is_running:
            raise TeachingError("no bundle is being taught")
        self._job.stop(name)
        return self.state()

    def undo(self, bundle_id: str, person: str) -> TeachingState:
        """Bring the bundle back that was in the place before; `bundle_id` is the one there now."""
        name = name_of(person)
        path = self._board.bundle.path
        fault = self._teachable.fault_of_undo()
        if fault is not None:
            raise TeachingError(fault)
        with self._changing:
            self._require_idle()
            if bundle_id != _id_at(path):
                raise TeachingError("another bundle is in its place by now; look at it again")
            undo_install(path, f"on the live page by {name}")
            log(f"page: bundle {_id_at(path)} is in {path} again, brought back by {name}")
        self._board.note_teaching()
        return self.state()

    def close(self) -> None:
        """End the teaching run. May be called again."""
        if self._job is not None:
            self._job.close()

    def _require_teachable(self) -> Bundle:
        fault = self._teachable.fault()
        if fault is not None:
            raise TeachingError(fault)
        self._require_idle()
        return self._board.bundle

    def _require_idle(self) -> None:
        if self._job is not None and self._job.is_running:
            raise TeachingError(
                "a bundle is being taught already; wait until that has ended, or stop it"
            )

    def _markable(self, bundle: Bundle) -> Iterable[int]:
        for part in self._board.kept.parts():
            if part.facts.has_image and part.facts.bundle.path == bundle.path:
                yield part.number

    def _order(self, bundle: Bundle, mode: str, pictures: list[Picture], person: str) -> Order:
        """Return what is to be done. Raises CalibrationError if pictures are missing."""
        rates = rates_for(bundle, mode, pictures)
        marked = [picture for picture in pictures if picture.record.kind == FALSE_REJECT]
        good = [picture for picture in pictures if picture.record.kind == GOOD]
        depths = {picture.record.bits for picture in pictures} - {None}
        options = f"?bits={depths.pop()}" if depths else ""
        if mode == APPEND:
            folders = {MARKED_FOLDER: marked, GOOD_FOLDER: good}
            words = ["--append", MARKED_FOLDER + options, "--good", GOOD_FOLDER + options]
        else:
            folders = {GOOD_FOLDER: pictures}
            words = ["--source", GOOD_FOLDER + options]
        if rates.flag is not None:
            words += ["--false-alarm-rate", repr(rates.flag)]
        if rates.review is not None:
            words += ["--review-rate", repr(rates.review)]
        files = {}
        for name, chosen in folders.items():
            files[name] = [picture.file for picture in chosen]
        words += self._engine_words()
        note = _note(mode, marked, good, person)
        folder = self._collection.folder(bundle.path)
        return Order(bundle, mode, person, note, folder, files, words)

    def _engine_words(self) -> list[str]:
        """Return the engine that tests the new bundle: that of the stream, with one thread."""
        stream = self._board.stream()
        name = REFERENCE_ENGINE if stream is None else stream.engine_name
        # A plan takes minutes of the device that judges, and the stream makes it later anyway.
        if engine_class(name).compiles:
            name = REFERENCE_ENGINE
        return ["--engine", name, "--precision", FP32.name, "--threads", "1"]

    def _job_state(self) -> JobState | None:
        job = self._job
        if job is None:
            return None
        return JobState(
            phase=job.phase,
            mode=job.order.mode,
            person=job.order.person,
            started=job.started,
            ended=job.ended,
            lines=tuple(job.lines()),
            reason=job.reason,
            bundle=job.new,
            in_use=job.new is not None and self._board.bundle.short_id == job.new,
        )


def _note(mode: str, marked: list[Picture], good: list[Picture], person: str) -> str:
    """Return what the audit log says: who called which pictures those of good parts."""
    what = "false rejects added" if mode == APPEND else "learned again"
    texts = [f"{what} on the live page by {person}"]
    for called, pictures in (("false rejects marked", marked), ("good parts collected", good)):
        if pictures:
            names = ", ".join(sorted({picture.record.person for picture in pictures}))
            texts.append(f"{len(pictures)} {called} by {names}")
    return "; ".join(texts)


def _mode_state(bundle: Bundle, mode: str, pictures: list[Picture]) -> ModeState:
    try:
        rates = rates_for(bundle, mode, pictures)
    except CalibrationError as error:
        return ModeState(mode, str(error), None)
    return ModeState(mode, None, rates.false_alarm)


def _picture_state(picture: Picture) -> PictureState:
    return PictureState(
        picture.number,
        picture.record.kind,
        picture.record.person,
        picture.part,
        picture.record.facts,
    )


def _id_at(path: Path) -> str | None:
    """Return the identifier of the bundle at a path, which is not checked; None without one."""
    if not os.path.isdir(path):
        return None
    try:
        state = bundle_state(path)
    except OSError:
        return None
    return None if state is None or state[ID] is None else printable(str(state[ID]))
