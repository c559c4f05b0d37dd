"""The anomaly map of every judged frame, painted over its image and saved as a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2

from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import image_of, paint
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions
from flawline.runtime.outputs.jsonl import verdict_name


class Overlays(Output):
    """Saves one PNG file per judged frame.

    `target` is a folder, which is created. A file is named by index, source and verdict of its
    frame. A frame that could not be judged has no map, and no file.
    """

    required: ClassVar[bool] = False

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        if not target:
            raise OutputError("output overlays: needs a folder; write overlays:DIR")
        self._folder = Path(target)
        self._manifest = bundle.manifest
        if not bundle.has_map:
            raise OutputError(
                f"bundle {bundle.path} gives no maps to paint; "
                f"leave --save out, or build it with --outputs map"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"--save {target}: cannot be created ({error.strerror}); choose another folder"
            ) from error

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        # The part could not be judged; the reason is in the other outputs.
        if verdict.anomaly_map is None:
            return
        frame = judgement.frame
        image = image_of(frame, self._manifest)
        painted = paint(image, verdict.anomaly_map, self._manifest)
        source = Path(frame.source).stem or "frame"
        path = self._folder / f"{frame.index:06d}-{source}-{verdict_name(judgement)}.png"
        # Encoded in memory, because cv2.imwrite does not say why it could not write.
        encoded, data = cv2.imencode(".png", painted)
        if not encoded:
            raise OutputError(f"overlay {path} was not saved: OpenCV cannot encode it")
        try:
            path.write_bytes(data.tobytes())
        except OSError as error:
            raise OutputError(f"overlay {path} was not saved ({error.strerror})") from error
