"""Pictures of parts from which a detector is to be taught, as the cameras gave them, on disk."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from flawline import FlawlineError
from flawline.cameras.listing import count_of
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.background import BackgroundWorker
from flawline.runtime.bundle import Bundle
from flawline.runtime.bundle_record import sha256_of_bytes
from flawline.runtime.console import log, warn
from flawline.runtime.outputs import Judgement
from flawline.runtime.outputs.web.facts import part_state
from flawline.runtime.outputs.web.lane import Shown
from flawline.runtime.outputs.web.pictures import jpeg_of
from flawline.runtime.outputs.web.stored import PICTURE, Record, move, remove, store, stored
from flawline.runtime.scratch import PAGE, Scratch, abandoned

# Kinds of pictures: parts that were rejected and are good, and other good parts.
FALSE_REJECT = "false_reject"
GOOD = "good"
# Of all bundles together.
MOST_PICTURES = 500
MOST_BYTES = 2 * 2**30
# Of the frames that wait to be written; further ones are left out.
CAPACITY = 64 * 2**20  # bytes
# A camera that runs freely shows the same part in frames that follow each other.
PAUSE_S = 0.5
# Of the picture that a person looks at.
SHOWN_SIDE = 640  # pixels
# Files are larger by a few percent than with the default, and take a fifth of the time.
COMPRESSION = 1


class CollectionError(FlawlineError):
    """A picture cannot be kept."""


@dataclass(frozen=True)
class Picture:
    """A picture that is on disk, with the record of what it shows.

    `number` counts all pictures from 1, `bundle` is the path of the bundle that judged it, and
    `part` the number of the kept part that it is of.
    """

    number: int
    bundle: Path
    part: int | None
    file: Path
    record: Record


@dataclass
class _Wanted:
    """How many further frames of a bundle's stream are collected, and in whose name."""

    bundle: Path
    person: str
    left: int


class Collection:
    """Keeps pictures until they are taught or removed.

    Those that are left when the stream ends or is killed are taken over by the next one, in
    `restore`. `changed` is called after each change. `offer` is called by the stream, which never
    waits for the disk; any thread calls the others.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.RLock()
        self._pictures: dict[int, Picture] = {}
        self._count = 0
        self._scratch: dict[Path, Scratch] = {}
        self._restored: set[Path] = set()
        self._worker = BackgroundWorker(CAPACITY)
        self._wanted: _Wanted | None = None
        self._wanted_lock = threading.Lock()
        self._taken_at: dict[str, float] = {}
        # Why collecting ended before its time.
        self.fault: str | None = None

    # What the stream calls.

    def offer(self, judgement: Judgement, bundle: Bundle) -> None:
        """Keep a frame if it is wanted, whatever the verdict, which must not choose among them."""
        if self._wanted is None:
            return
        frame = judgement.frame
        if frame.image is None or not judgement.verdict.judged:
            return
        lane = judgement.camera or ""
        now = time.monotonic()
        pause = PAUSE_S if judgement.live and frame.part is None else 0.0
        if now - self._taken_at.get(lane, float("-inf")) < pause:
            return
        verdict = dataclasses.replace(judgement.verdict, anomaly_map=None)
        judgement = dataclasses.replace(judgement, verdict=verdict)
        shown = Shown(lane, frame.index, judgement, bundle, now)
        with self._wanted_lock:
            wanted = self._wanted
            if wanted is None or wanted.bundle != bundle.path:
                return
            job = partial(self._collect, shown, wanted.person)
            if not self._worker.submit(job, frame.image.nbytes, wait=False):
                return
            self._taken_at[lane] = now
            wanted.left -= 1
            if wanted.left == 0:
                self._wanted = None

    def _collect(self, shown: Shown, person: str) -> None:
        try:
            self.add(shown, GOOD, person)
        except CollectionError as error:
            self.stop()
            self.fault = str(error)
            self._changed()

    # What the page calls.

    @property
    def left(self) -> int:
        """How many further frames are to be collected."""
        with self._wanted_lock:
            return 0 if self._wanted is None else self._wanted.left

    def collect(self, bundle: Path, person: str, count: int) -> None:
        """Collect the next `count` frames that a bundle judges."""
        self.fault = None
        with self._wanted_lock:
            self._wanted = _Wanted(bundle, person, count)
        self._changed()

    def stop(self) -> None:
        """Collect no further frames."""
        with self._wanted_lock:
            self._wanted = None
        self._changed()

    def settle(self) -> None:
        """Wait until the frames that were taken are on disk."""
        self._worker.drain()

    def add(self, shown: Shown, kind: str, person: str, part: int | None = None) -> Picture | None:
        """Keep the picture of a frame; None if it is known as a false reject already.

        A good part that turns out to be a false reject counts as that alone, because a threshold
        from pictures that were taught would be too low. Raises CollectionError.
        """
        image = shown.judgement.frame.image
        assert image is not None
        _encoded, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, COMPRESSION])
        content = data.tobytes()
        small = jpeg_of(shown, False, SHOWN_SIDE)
        digest = sha256_of_bytes(content)
        bits = shown.judgement.frame.bit_depth if image.itemsize > 1 else None
        record = Record(kind, person, part_state(shown), bits, len(content), digest)
        with self._lock:
            same = self._same(shown.bundle.path, digest)
            if same is not None and (kind == GOOD or same.record.kind == FALSE_REJECT):
                return None
            picture = self._write(shown.bundle.path, record, part, content, small)
            if same is not None:
                self._forget(same)
        self._changed()
        return picture

    def _same(self, bundle: Path, digest: str) -> Picture | None:
        for picture in self._pictures.values():
            if (picture.bundle, picture.record.digest) == (bundle, digest):
                return picture
        return None

    def _write(
        self, bundle: Path, record: Record, part: int | None, content: bytes, small: bytes
    ) -> Picture:
        """Write a file. The caller holds the lock."""
        held = sum(picture.record.size for picture in self._pictures.values())
        if len(self._pictures) >= MOST_PICTURES or held + record.size > MOST_BYTES:
            raise CollectionError(
                f"{len(self._pictures)} pictures of {held / 2**20:.0f} MB are kept already; teach "
                f"from them, or remove some"
            )
        try:
            file = self._new_file(bundle)
            store(file, content, small, record)
        except OSError as error:
            raise CollectionError(
                f"the picture cannot be stored beside the bundle ({reason_of(error)}); "
                f"{remedy_of(error)}"
            ) from error
        return self._keep(bundle, part, file, record)

    def _new_file(self, bundle: Path) -> Path:
        """Return the file of the next picture. Raises OSError. The caller holds the lock."""
        if bundle not in self._scratch:
            self._scratch[bundle] = Scratch(bundle.resolve(), PAGE)
        self._count += 1
        return self._scratch[bundle].folder / f"{self._count:06d}{PICTURE}"

    def _keep(self, bundle: Path, part: int | None, file: Path, record: Record) -> Picture:
        picture = Picture(self._count, bundle, part, file, record)
        self._pictures[picture.number] = picture
        return picture

    def restore(self, bundle: Path) -> None:
        """Take over, in the background, what earlier streams of a bundle left, once."""
        if bundle in self._restored:
            return
        if self._worker.submit(partial(self._restore, bundle), 0, wait=False):
            self._restored.add(bundle)

    def _restore(self, bundle: Path) -> None:
        taken = 0
        try:
            with abandoned(bundle.resolve(), PAGE) as folders, self._lock:
                for folder in folders:
                    for file, record in stored(folder):
                        target = self._new_file(bundle)
                        move(file, target)
                        self._keep(bundle, None, target, record)
                        taken += 1
        except OSError as error:
            warn(
                f"warning: pictures of an earlier stream cannot be read beside {bundle} "
                f"({reason_of(error)}); {remedy_of(error)}"
            )
        if taken:
            log(f"page: {count_of(taken, 'picture')} of an earlier stream wait to be taught")
            self._changed()

    def pictures(self, bundle: Path) -> list[Picture]:
        """Return the pictures of the stream of a bundle, the oldest first."""
        with self._lock:
            return [picture for picture in self._pictures.values() if picture.bundle == bundle]

    def remove(self, bundle: Path, numbers: set[int]) -> int:
        """Remove these pictures of a bundle; return how many there were."""
        with self._lock:
            chosen = [picture for picture in self.pictures(bundle) if picture.number in numbers]
            for picture in chosen:
                self._forget(picture)
        self._changed()
        return len(chosen)

    def folder(self, bundle: Path) -> Path:
        """Return the folder of a bundle that has pictures."""
        with self._lock:
            return self._scratch[bundle].folder

    def _forget(self, picture: Picture) -> None:
        del self._pictures[picture.number]
        remove(picture.file)

    def close(self) -> None:
        """Leave the pictures to the next stream of their bundle. May be called again."""
        self.stop()
        self._worker.discard()
        self._worker.drain()
        with self._lock:
            for bundle, scratch in self._scratch.items():
                left = len(self.pictures(bundle))
                if left:
                    log(
                        f"page: {count_of(left, 'picture')} that were not taught stay in "
                        f"{scratch.folder}, for the next stream of {bundle} with a page"
                    )
                scratch.close(keep=left > 0)
            self._pictures.clear()
            self._scratch.clear()
