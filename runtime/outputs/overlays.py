"""The anomaly map of judged frames, painted over their images and saved as PNG files."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
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
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions
from flawline.runtime.painting import paint

# Characters that a file system of Windows, macOS or Linux does not accept, among them the
# surrogates that stand for bytes that are not UTF-8.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]')
# Names of 143 bytes are accepted by every file system, also by those that encrypt names.
LONGEST_SOURCE = 80  # bytes, of the source or of source and part together
LONGEST_PART = 48
# Of the images that wait to be written: three of 4000 x 3000 pixels, or 140 of 640 x 480.
CAPACITY = 128 * 2**20  # bytes


@dataclass(frozen=True)
class OverlayOptions(OutputOptions):
    """Raises ValueError for a limit below 1."""

    frames: Literal["all", "rejected"] = option(
        "all", "which frames are saved; rejected: anomalous and unjudged ones, and those for review"
    )
    limit: int = option(10_000, "the number of images at which the folder is full")

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit is {self.limit}, not 1 or more")


class Overlays(Output):
    """Saves one PNG file per frame, as a whole or not at all. No file is replaced or deleted.

    `target` is a folder, which is created. A file is named by the start of the run, random digits,
    and index, camera, source, part and verdict of its frame, so that several streams may share the
    folder. A judged frame is saved with its map, outlined where it is anomalous, and with score and
    threshold below it; a small image is magnified. A frame that could not be judged is saved as it
    came, unless it has no image.

    A thread paints and writes. A live camera never waits for it: frames for which there is no
    memory are left out and counted. Other cameras wait.
    """

    required: ClassVar[bool] = False
    usage: ClassVar[str] = "overlays:DIR[?frames=rejected&limit=1000]"
    Options: ClassVar[type[OutputOptions]] = OverlayOptions

    def __init__(self, target: str, options: OverlayOptions, bundle: Bundle) -> None:
        if not target:
            raise OutputError("output overlays: needs a folder; write overlays:DIR")
        self._folder = Path(target)
        self._options = options
        self._manifest = bundle.manifest
        self._pixel_threshold = bundle.calibration.pixel_threshold
        started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._run = f"{started}-{secrets.token_hex(4)}"
        if not bundle.has_map:
            raise OutputError(
                f"output overlays: bundle {bundle.path} gives no maps to paint; "
                "leave this output (--save, --save-rejected) out, or build it with --outputs map, "
                "of a method that has maps"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._room = options.limit - sum(1 for _ in self._folder.glob("*.png"))
        except OSError as error:
            raise OutputError(
                f"output overlays: {target} cannot be created ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error
        self._worker = BackgroundWorker(CAPACITY)
        self._accepted = 0
        self._saved = 0
        self._refused = 0
        self._over_limit = 0

    @classmethod
    def image_folder(cls, target: str) -> Path | None:
        return Path(target) if target else None

    def change_bundle(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._pixel_threshold = bundle.calibration.pixel_threshold

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        wanted = self._options.frames == "all" or verdict.anomalous or verdict.review
        if wanted and judgement.frame.image is not None:
            self._save(judgement)
        self._raise_failure()

    def totals(self) -> Mapping[str, int]:
        """Wait for the images that are not written yet; count those that were and were not."""
        self._worker.drain()
        return {
            "saved": self._saved,
            "not_saved": self._refused + self._accepted - self._saved,
            "over_limit": self._over_limit,
        }

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._worker.drain()
        self._raise_failure()

    def close(self) -> None:
        self._worker.close()
        self._raise_failure()

    def _save(self, judgement: Judgement) -> None:
        if self._room <= 0:
            if not self._over_limit:
                warn(
                    f"output overlays: {self._folder} holds {self._options.limit} images, its "
                    f"limit; no more are saved; move them away, or raise it with ?limit=N"
                )
            self._over_limit += 1
            return
        frame = judgement.frame
        assert frame.image is not None
        # The detector overwrites its map in the next call.
        anomaly_map = judgement.verdict.anomaly_map
        if anomaly_map is not None:
            anomaly_map = anomaly_map.copy()

        # The bundle may change before the thread comes to this frame.
        manifest = self._manifest
        pixel_threshold = self._pixel_threshold

        def write() -> None:
            self._write(judgement, anomaly_map, manifest, pixel_threshold)

        if self._worker.submit(write, frame.image.nbytes, wait=judgement.can_wait):
            self._room -= 1
            self._accepted += 1
            return
        self._refused += 1
        # After 1, 2, 4, 8 frames and so on: a camera that is always too fast must not fill a log.
        if self._refused & (self._refused - 1) == 0:
            warn(
                f"output overlays: frames come faster than they can be written: frame "
                f"{frame.index} of {frame.source} was not saved, {self._refused} in all; "
                f"save fewer with ?frames=rejected"
            )

    def _write(
        self,
        judgement: Judgement,
        anomaly_map: npt.NDArray[np.float32] | None,
        manifest: Manifest,
        pixel_threshold: float | None,
    ) -> None:
        """Paint and write one frame. Called by the thread."""
        frame = judgement.frame
        verdict = judgement.verdict
        if verdict.judged and anomaly_map is not None:
            image = magnified(image_of(frame, manifest))
            painted = paint(image, anomaly_map, manifest, pixel_threshold)
            pixels = with_caption(painted, verdict)
        else:
            pixels = np.asarray(frame.image)
        label = _label(judgement)
        path = self._folder / f"{self._run}-{frame.index:06d}-{label}-{verdict.name}.png"
        # Encoded in memory, because cv2.imwrite does not say why it could not write.
        encoded, data = cv2.imencode(".png", pixels)
        if not encoded:
            raise OutputError(
                f"output overlays: OpenCV cannot encode {path}; "
                f"give the camera smaller images, or leave this output out"
            )
        try:
            # Waiting for the disk would delay the following frames.
            write_atomically(path, data.tobytes(), durable=False)
        except OSError as error:
            raise OutputError(
                f"output overlays: {path} cannot be written ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error
        self._saved += 1

    def _raise_failure(self) -> None:
        """Raise what went wrong in the thread since the last call, if anything did."""
        failures = self._worker.take_failures()
        if not failures:
            return
        # The files were not written, so that their places in the folder are free.
        self._room += len(failures)
        for failure in failures:
            if not isinstance(failure, OutputError):
                raise failure
        if len(failures) == 1:
            raise failures[0]
        raise OutputError(f"{len(failures)} images were not saved; the first: {failures[0]}")


def _label(judgement: Judgement) -> str:
    """Return camera, source and part of a frame for a file name; they are cut before the part."""
    frame = judgement.frame
    source = Path(frame.source).stem
    if judgement.camera is not None:
        # Frames of two cameras may have the same index and source.
        source = f"{judgement.camera}-{source}"
    if frame.part is None:
        return portable_name(source)
    part = portable_name(frame.part, LONGEST_PART)
    return f"{portable_name(source, LONGEST_SOURCE - len(part.encode()) - 1)}-{part}"


def portable_name(name: str, longest: int = LONGEST_SOURCE) -> str:
    """Return a name as a piece of a file name that every file system accepts.

    Forbidden characters become underscores, and a name of more than `longest` bytes is cut.
    """
    valid = FORBIDDEN.sub("_", name).encode()[:longest]
    # A character that was cut through is left out.
    return valid.decode(errors="ignore") or "frame"
