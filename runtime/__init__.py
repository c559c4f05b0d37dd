"""The inspecting machine: it reads a bundle, runs an engine and judges the frames of a camera.

It needs the standard library, numpy, OpenCV, tifffile, and ONNX Runtime for the default engine, and
never torch. Import of this package loads no engine. What a program needs to embed the detector is
here:

    from flawline.runtime import Detector, open_camera, read_bundle

    with Detector(read_bundle("bundles/bottle")) as detector, open_camera("usb://0") as camera:
        for frame in camera:
            print(detector.judge(frame).anomalous)
"""

from importlib import import_module

if __name__ == "runtime":
    # Imported by the name of its folder, as in `python -m runtime.calibrate` in a checkout.
    import_module("runtime.installation").require_installation()
else:
    from flawline import FlawlineError
    from flawline.cameras import Frame, open_camera
    from flawline.runtime.bundle import Bundle, read_bundle
    from flawline.runtime.detector import Detector, Verdict
    from flawline.runtime.engines import EngineOptions

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
