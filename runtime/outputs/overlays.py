"""The anomaly map of judged frames, painted over their images and saved as PNG files."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt

from flawline.options import option
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.background import BackgroundWorker
from flawline.runtime.bundle import Bundle
from flawline.runtime.caption import magnified, with_caption
from flawline.runtime.console import warn
from flawline.runtime.files import write_atomically
from flawline.runtime.frame_image import image_of
from flawline.runtime.manifest import Manifest
from flawline.runtime.outputs import (
    Judgement,
    Output,
    OutputError,
    OutputOptions,
    OutputState,
)
from flawline.runtime.outputs.jsonl import record
from flawline.runtime.outputs.picture_folder import PICTURE, RECORD, PictureFolder
from flawline.runtime.outputs.picture_names import picture_label
from flawline.runtime.painting import paint

# Of the images that wait to be written: three of 4000 x 3000 pixels, or 140 of 640 x 480.
CAPACITY = 128 * 2**20  # bytes
RATE_S = 60.0  # seconds in which `per_minute` images may be saved


@dataclass(frozen=True)
class OverlayOptions(OutputOptions):
    """Raises ValueError for a limit below 1."""

    frames: Literal["all", "rejected"] = option(
        "all", "which frames are saved; rejected: anomalous and unjudged ones, and those for review"
    )
    limit: int = option(10_000, "the number of images at which the folder is full")
    max_mb: int | None = option(None, "the megabytes (10^6 bytes) at which the folder is full")
    when_full: Literal["stop", "replace"] = option(
        "stop", "stop: save no more; replace: delete the oldest images that a stream saved there"
    )
    per_minute: int | None = option(None, "save at most so many images in 60 seconds")
    record: bool = option(False, "save the JSON line of each image beside it, as NAME.json")
    paint: bool = option(True, "paint the anomaly map; 0: save each frame as the camera gave it")

    def __post_init__(self) -> None:
        for name in ("limit", "max_mb", "per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, not 1 or more")


class Overlays(Output):
    """Saves one PNG file per frame, as a whole or not at all.

    No file is replaced, and none is deleted unless the options ask for it; see `PictureFolder`.

    `target` is a folder, which is created. A file is named by the start of the run, random digits,
    and index, camera, source, part and verdict of its frame, so that several streams may share the
    folder. A judged frame is saved with its map, outlined where it is anomalous, and with score and
    threshold below it; a small image is magnified. A frame that could not be judged is saved as it
    came, unless it has no image, and so is each with `paint` false.

    A thread paints and writes. A live camera never waits for it: frames for which there is no
    memory are left out and counted. Other cameras wait.
    """

    required: ClassVar[bool] = False
    usage: ClassVar[str] = "overlays:DIR[?frames=rejected&limit=1000&when_full=replace]"
    Options: ClassVar[type[OutputOptions]] = OverlayOptions

    def __init__(self, target: str, options: OverlayOptions, bundle: Bundle) -> None:
        if not target:
            raise OutputError("output overlays: needs a folder; write overlays:DIR")
        self._folder = Path(target)
        self._options = options
        self._manifest = bundle.manifest
        self._pixel_threshold = bundle.calibration.pixel_threshold
        self._bundle_id = bundle.short_id
        self.uses_regions = options.record
        started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._run = f"{started}-{secrets.token_hex(4)}"
        if options.paint and not bundle.has_map:
            raise OutputError(
                f"output overlays: bundle {bundle.path} gives no maps to paint; "
                "leave this output (--save, --save-rejected) out, save frames without maps with "
                "?paint=0, or build it with --outputs map, of a method that has maps"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            most = None if options.max_mb is None else 1_000_000 * options.max_mb
            forgets = options.when_full == "replace"
            self._pictures = PictureFolder(self._folder, options.limit, most, forgets)
        except OSError as error:
            raise OutputError(
                f"output overlays: {target} cannot be created ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error
        self._worker = BackgroundWorker(CAPACITY)
        self._accepted_at: deque[float] = deque()
        # Counted by the stream: images for which there was no memory, and those beyond the rate or
        # into a folder that was full already.
        self._refused = 0
        self._left_out = 0
        # Counted by the thread.
        self._saved = 0
        self._failed = 0
        self._without_room = 0
        self._said_rate = False
        self._full_said = threading.Lock()

    @classmethod
    def image_folder(cls, target: str) -> Path | None:
        return Path(target) if target else None

    def change_bundle(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._pixel_threshold = bundle.calibration.pixel_threshold
        self._bundle_id = bundle.short_id

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        wanted = self._options.frames == "all" or verdict.anomalous or verdict.review
        if wanted and judgement.frame.image is not None:
            self._save(judgement)
        self._raise_failure()

    def totals(self) -> Mapping[str, int]:
        """Wait for the images that are not written yet; count those that were and were not."""
        self._worker.drain()
        return self._counts()

    def _counts(self) -> dict[str, int]:
        return {
            "saved": self._saved,
            "not_saved": self._refused + self._failed,
            "over_limit": self._left_out + self._without_room,
        }

    def state(self) -> OutputState:
        return OutputState(self._counts(), "the folder is full" if self._pictures.is_full else None)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._worker.drain()
        self._raise_failure()

    def close(self) -> None:
        self._worker.close()
        self._raise_failure()

    def _save(self, judgement: Judgement) -> None:
        if self._pictures.is_full:
            self._left_out += 1
            self._say_full()
            return
        if not self._within_rate():
            self._left_out += 1
            return
        frame = judgement.frame
        assert frame.image is not None
        anomaly_map = judgement.verdict.anomaly_map if self._options.paint else None
        if anomaly_map is not None:
            # The detector overwrites its map in the next call.
            anomaly_map = anomaly_map.copy()

        # The bundle may change before the thread comes to this frame.
        manifest = self._manifest
        pixel_threshold = self._pixel_threshold
        bundle_id = self._bundle_id

        def write() -> None:
            try:
                picture = _picture(judgement, anomaly_map, manifest, pixel_threshold)
                self._write(judgement, picture, bundle_id)
            except BaseException:
                self._failed += 1
                raise

        if self._worker.submit(write, frame.image.nbytes, wait=judgement.can_wait):
            return
        self._refused += 1
        # After 1, 2, 4, 8 frames and so on: a camera that is always too fast must not fill a log.
        if self._refused & (self._refused - 1) == 0:
            warn(
                f"output overlays: frames come faster than they can be written: frame "
                f"{frame.index} of {frame.source} was not saved, {self._refused} in all; "
                f"save fewer with ?frames=rejected"
            )

    def _within_rate(self) -> bool:
        """Whether another image may be saved now; if so, it is counted."""
        most = self._options.per_minute
        if most is None:
            return True
        now = _now()
        while self._accepted_at and now - self._accepted_at[0] >= RATE_S:
            self._accepted_at.popleft()
        if len(self._accepted_at) >= most:
            if not self._said_rate:
                warn(
                    f"output overlays: more than {most} images in {RATE_S:g} s; the others are "
                    f"counted and not saved; raise it with ?per_minute=N"
                )
            self._said_rate = True
            return False
        self._accepted_at.append(now)
        return True

    def _write(self, judgement: Judgement, pixels: npt.NDArray[Any], bundle_id: str) -> None:
        """Encode and write one picture, after its record. Called by the thread."""
        name = f"{self._run}-{judgement.frame.index:06d}-{picture_label(judgement)}"
        path = self._folder / f"{name}-{judgement.verdict.name}{PICTURE}"
        # Encoded in memory, because cv2.imwrite does not say why it could not write.
        encoded, data = cv2.imencode(PICTURE, pixels)
        if not encoded:
            raise OutputError(
                f"output overlays: OpenCV cannot encode {path}; "
                f"give the camera smaller images, or leave this output out"
            )
        files = {path: data.tobytes()}
        if self._options.record:
            line = {**record(judgement), "bundle": bundle_id, "image": path.name}
            content = json.dumps(line, allow_nan=False, indent=1)
            files = {path.with_suffix(RECORD): content.encode(), **files}
        size = sum(len(content) for content in files.values())
        try:
            if not self._pictures.make_room(size):
                self._without_room += 1
                self._say_full()
                return
            for file, bytes_of_file in files.items():
                # Waiting for the disk would delay the following frames.
                write_atomically(file, bytes_of_file, durable=False)
        except OSError as error:
            # A record, which is small, may have found room where its picture does not.
            with suppress(OSError):
                path.with_suffix(RECORD).unlink(missing_ok=True)
            raise OutputError(
                f"output overlays: {path} cannot be written ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error
        self._pictures.add(size)
        self._saved += 1

    def _say_full(self) -> None:
        """Say once that the folder is full. Called by the stream and by the thread."""
        # Never released: the first call alone gets it.
        if not self._full_said.acquire(blocking=False):
            return
        limits = f"{self._options.limit} images"
        if self._options.max_mb is not None:
            limits += f" or {self._options.max_mb} MB"
        warn(
            f"output overlays: {self._folder} is full, at its limit of {limits}; no more are "
            f"saved; move them away, raise the limit with ?limit=N, or delete the oldest ones with "
            f"&when_full=replace"
        )

    def _raise_failure(self) -> None:
        """Raise what went wrong in the thread since the last call, if anything did."""
        failures = self._worker.take_failures()
        if not failures:
            return
        for failure in failures:
            if not isinstance(failure, OutputError):
                raise failure
        if len(failures) == 1:
            raise failures[0]
        raise OutputError(f"{len(failures)} images were not saved; the first: {failures[0]}")


def _picture(
    judgement: Judgement,
    anomaly_map: npt.NDArray[np.float32] | None,
    manifest: Manifest,
    pixel_threshold: float | None,
) -> npt.NDArray[Any]:
    """Return a judged frame with its map and a caption, and without a map the frame as it came."""
    verdict = judgement.verdict
    if not verdict.judged or anomaly_map is None:
        return np.asarray(judgement.frame.image)
    image = magnified(image_of(judgement.frame, manifest))
    return with_caption(paint(image, anomaly_map, manifest, pixel_threshold), verdict)


def _now() -> float:
    return time.monotonic()
