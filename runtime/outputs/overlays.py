"""The anomaly map of every judged frame, painted over its image and saved as a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import image_of, paint
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions


class Overlays(Output):
    """Saves one PNG file per judged frame.

    `target` is a folder, which is created. A file is named by index, source and verdict of its
    frame. A frame that could not be judged has no map, and no file.
    """

    required: ClassVar[bool] = False
    usage: ClassVar[str] = "overlays:DIR"

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        if not target:
            raise OutputError("output overlays: needs a folder; write overlays:DIR")
        self._folder = Path(target)
        self._manifest = bundle.manifest
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

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        # The part could not be judged; the reason is in the other outputs.
        if verdict.anomaly_map is None:
            return
        frame = judgement.frame
        image = image_of(frame, self._manifest)
        painted = paint(image, verdict.anomaly_map, self._manifest)
        source = Path(frame.source).stem or "frame"
        path = self._folder / f"{frame.index:06d}-{source}-{judgement.verdict_name}.png"
        # Encoded in memory, because cv2.imwrite does not say why it could not write.
        encoded, data = cv2.imencode(".png", painted)
        if not encoded:
            raise OutputError(
                f"output overlays: OpenCV cannot encode {path}; "
                f"give the camera smaller images, or leave this output out"
            )
        try:
            path.write_bytes(data.tobytes())
        except OSError as error:
            raise OutputError(
                f"output overlays: {path} cannot be written ({reason_of(error)}); "
                f"{remedy_of(error, 'folder')}"
            ) from error
