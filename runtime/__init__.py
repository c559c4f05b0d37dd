"""The inspecting machine: it reads a bundle, runs an engine and judges the frames of a camera.

It needs the standard library, numpy, OpenCV, tifffile, msgspec for a station file, and ONNX Runtime
for the default engine, and never torch. Import of this package loads no engine. What a program
needs to embed the detector is here:

    import cv2

    from flawline.runtime import Detector

    with Detector("bundles/part") as detector:
        image = detector.read_image("part.png")  # or your own array, uint8 [h, w, 3] BGR or [h, w]
        verdict = detector(image)
        print(verdict.name, verdict.score, verdict.threshold)
        cv2.imwrite("map.png", detector.paint(image, verdict.anomaly_map))

and for the frames of a camera:

    from flawline.runtime import Detector, open_camera

    with Detector("bundles/part") as detector, open_camera("usb://0") as camera:
        for frame in camera:
            print(detector.judge(frame).name)

A bundle, an engine, a camera or an image file that cannot be used raises a FlawlineError, whose
message is one line with the remedy. An array of another dtype or shape raises ValueError.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Public name -> module. They are imported when they are used, because a command imports this
# package before it can say how Ctrl-C ends it.
PUBLIC = {
    "Bundle": "flawline.runtime.bundle",
    "Detector": "flawline.runtime.detector",
    "EngineOptions": "flawline.runtime.engines",
    "FlawlineError": "flawline",
    "Frame": "flawline.cameras",
    "Verdict": "flawline.runtime.verdict",
    "open_camera": "flawline.cameras",
    "read_bundle": "flawline.runtime.bundle",
}

if TYPE_CHECKING:
    from flawline import FlawlineError
    from flawline.cameras import Frame, open_camera
    from flawline.runtime.bundle import Bundle, read_bundle
    from flawline.runtime.detector import Detector
    from flawline.runtime.engines import EngineOptions
    from flawline.runtime.verdict import Verdict

__all__ = [
    "Bundle",
    "Detector",
    "EngineOptions",
    "FlawlineError",
    "Frame",
    "Verdict",
    "open_camera",
    "read_bundle",
]

if __name__ == "runtime":
    # Imported by the name of its folder, as in `python -m runtime.calibrate` in a checkout.
    import_module("runtime.installation").require_installation()


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
