"""The anomaly map of every judged frame, painted over its image and saved as a PNG file."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import ClassVar

import cv2

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import image_of
from flawline.runtime.files import write_atomically
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions
from flawline.runtime.painting import paint

# Characters that a file system of Windows, macOS or Linux does not accept, among them the
# surrogates that stand for bytes that are not UTF-8.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]')
# Names of 143 bytes are accepted by every file system, also by those that encrypt names.
LONGEST_SOURCE = 80  # bytes


class Overlays(Output):
    """Saves one PNG file per judged frame, as a whole or not at all. No file is replaced.

    `target` is a folder, which is created. A file is named by the start of the run, a random part,
    and index, source and verdict of its frame, so that several streams may share the folder. A
    frame that could not be judged has no map, and no file.
    """

    required: ClassVar[bool] = False
    usage: ClassVar[str] = "overlays:DIR"

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        if not target:
            raise OutputError("output overlays: needs a folder; write overlays:DIR")
        self._folder = Path(target)
        self._manifest = bundle.manifest
        started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._run = f"{started}-{secrets.token_hex(4)}"
        if not bundle.has_map:
            raise OutputError(
                f"output overlays: bundle {bundle.path} gives no maps to paint; "
                f"leave this output out, or build the bundle with --outputs map"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"output overlays: {target} cannot be created ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error

    @classmethod
    def image_folder(cls, target: str) -> Path | None:
        return Path(target) if target else None

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        # The part could not be judged; the reason is in the other outputs.
        if verdict.anomaly_map is None:
            return
        frame = judgement.frame
        image = image_of(frame, self._manifest)
        painted = paint(image, verdict.anomaly_map, self._manifest)
        source = portable_name(Path(frame.source).stem)
        name = f"{self._run}-{frame.index:06d}-{source}-{verdict.name}.png"
        path = self._folder / name
        # Encoded in memory, because cv2.imwrite does not say why it could not write.
        encoded, data = cv2.imencode(".png", painted)
        if not encoded:
            raise OutputError(
                f"output overlays: OpenCV cannot encode {path}; "
                f"give the camera smaller images, or leave this output out"
            )
        try:
            # Waiting for the disk would slow the stream down.
            write_atomically(path, data.tobytes(), durable=False)
        except OSError as error:
            raise OutputError(
                f"output overlays: {path} cannot be written ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error


def portable_name(name: str) -> str:
    """Return a name as a part of a file name that every file system accepts.

    Forbidden characters become underscores, and a long name is cut.
    """
    valid = FORBIDDEN.sub("_", name).encode()[:LONGEST_SOURCE]
    # A character that was cut through is left out.
    return valid.decode(errors="ignore") or "frame"
