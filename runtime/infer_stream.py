"""Judge every frame of a camera: one JSON line per frame on stdout, a summary at the end.

python runtime/infer_stream.py --bundle bundles/simplenet-bottle --camera usb://0
python -m runtime.infer_stream --bundle B --camera /data/images --save judged/ --max-frames 100
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np

from flawline.cameras import CAMERAS, Camera, CameraError, Frame, open_camera
from flawline.cameras.live import NewestFrame
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.console import log
from flawline.runtime.detector import Detector, Verdict
from flawline.runtime.engines import (
    ENGINES,
    EngineError,
    add_engine_arguments,
    missing,
    options_from,
)
from flawline.runtime.environment import opencv_conflict, quiet_opencv

FPS_WINDOW = 30  # frames that the running FPS is taken over
LATENCY_WINDOW = 10_000  # frames that the percentiles are taken over: a run may last for years


class Tally:
    """Counts and times of a run. `latency` is per judged frame, from picture to verdict, in milliseconds."""

    def __init__(self) -> None:
        self.frames = self.anomalous = 0
        self.latency: deque[float] = deque(maxlen=LATENCY_WINDOW)
        self._start = time.perf_counter()
        self._recent: deque[float] = deque([self._start], maxlen=FPS_WINDOW + 1)

    def add(self, anomalous: bool, latency: float | None) -> float:
        """Count a frame; the running frames per second."""
        self.frames += 1
        self.anomalous += anomalous
        if latency is not None:
            self.latency.append(latency)
        self._recent.append(time.perf_counter())
        return (len(self._recent) - 1) / max(self._recent[-1] - self._recent[0], 1e-9)

    def summary(self, dropped: int) -> dict[str, Any]:
        percentiles = np.percentile(self.latency, (50, 95, 99)) if self.latency else [math.nan] * 3
        return {
            "frames": self.frames,
            "fps": round(self.frames / max(time.perf_counter() - self._start, 1e-9), 2),
            **{f"p{p}_ms": _finite(v) for p, v in zip((50, 95, 99), percentiles, strict=True)},
            "dropped": dropped,
            "anomalous": self.anomalous,
        }


def record(frame: Frame, verdict: Verdict | None, threshold: float, fps: float) -> dict[str, Any]:
    """The JSON line of one frame. A frame without a picture, or with a score that is no number, is rejected."""
    line: dict[str, Any] = {
        "source": frame.source,
        "index": frame.index,
        "captured_at": round(frame.captured_at, 6),
        "score": _finite(verdict.score, 6) if verdict else None,
        "threshold": threshold,
        "verdict": "anomalous" if verdict is None or verdict.anomalous else "good",
        "milliseconds": {k: round(v, 3) for k, v in verdict.milliseconds.items()}
        if verdict
        else {},
        "fps": round(fps, 2),
    }
    if reason := frame.fault if verdict is None else verdict.reason:
        line["reason"] = reason
    return line


def run(
    detector: Detector,
    camera: Camera,
    save: Path | None,
    max_frames: int | None,
    stop: threading.Event,
    tally: Tally,
) -> None:
    """Judge frames until the camera ends, `max_frames` are judged or `stop` is set. Prints a line for each."""
    threshold, sizes = detector.bundle.calibration.threshold, set()
    for frame in _until(camera, stop, max_frames):
        start = time.perf_counter()
        verdict = None if frame.image is None else detector(frame.image)
        fps = tally.add(
            verdict is None or verdict.anomalous,
            1e3 * (time.perf_counter() - start) if verdict else None,
        )
        if frame.image is not None and (size := frame.image.shape[:2]) not in sizes:
            sizes.add(size)
            if lost := detector.bundle.manifest.geometry.uninspected(*size):
                log(f"note: {lost}")
        print(json.dumps(record(frame, verdict, threshold, fps), allow_nan=False), flush=True)
        if (
            save is not None
            and verdict is not None
            and (why := _save_overlay(detector, frame, verdict, save))
        ):
            log(f"{why}; inspection goes on")


def _until(camera: Camera, stop: threading.Event, max_frames: int | None) -> Iterator[Frame]:
    for count, frame in enumerate(camera, 1):
        if stop.is_set():
            return
        yield frame
        if count == max_frames or stop.is_set():
            return


def _save_overlay(detector: Detector, frame: Frame, verdict: Verdict, folder: Path) -> str | None:
    """Write the overlay named by index, source and verdict; why it could not be written, or None."""
    assert frame.image is not None
    painted = detector.paint(frame.image, verdict.map)
    name = f"{frame.index:06d}-{Path(frame.source).stem or 'frame'}-{'anomalous' if verdict.anomalous else 'good'}.png"
    ok, data = cv2.imencode(".png", painted)
    try:
        if not ok:
            raise OSError(None, "OpenCV cannot encode it")
        (folder / name).write_bytes(data.tobytes())
    except OSError as error:
        return f"overlay {folder / name} was not saved ({error.strerror})"
    return None


def list_available() -> str:
    """Every engine and camera, and of each that cannot be used here what to install."""
    from pkgutil import resolve_name

    lines = ["engines:"]
    for name in ENGINES:
        why, untested = missing(name), getattr(resolve_name(ENGINES[name]), "untested", None)
        mark = f" (untested {untested})" if untested else ""
        lines.append(f"  {name:<16}{'ready' if why is None else f'missing: {why}'}{mark}")
    lines.append("cameras:")
    for name, target in CAMERAS.items():
        untested = resolve_name(target).untested
        lines.append(f"  {name:<16}ready{f' (untested {untested})' if untested else ''}")
    return "\n".join(lines)


def _finite(value: float, digits: int = 3) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="flawline-stream", description="Judge every frame of a camera."
    )
    parser.add_argument("--bundle", type=Path, help="the folder that export.build wrote")
    parser.add_argument(
        "--camera", help="a folder, an image, a video, usb://0, synthetic://?fps=25&frames=100"
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write an overlay of every frame there"
    )
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument(
        "--list", action="store_true", help="name the engines and cameras, and what is missing"
    )
    args = parser.parse_args(argv)
    if not args.list and (args.bundle is None or args.camera is None):
        parser.error("--bundle and --camera are needed (or --list)")
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    return args


def _stream(args: argparse.Namespace) -> None:
    if args.save is not None:
        try:
            args.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CameraError(
                f"--save {args.save}: cannot be made ({error.strerror}); choose another"
            ) from error
    bundle = read_bundle(args.bundle)
    if args.save is not None and bundle.map_size == (0, 0):
        raise BundleError(
            f"bundle {args.bundle} gives no maps to paint; leave --save out, or build it with --outputs map"
        )
    with Detector(bundle, args.engine, options_from(args)) as detector:
        log(
            f"engine {detector.engine.description}, self-test passed, threshold {bundle.calibration.threshold:.6g}"
        )
        camera = open_camera(args.camera)
        stop = threading.Event()

        def end(_signal: int, _frame: FrameType | None) -> None:
            stop.set()
            if isinstance(camera, NewestFrame):
                camera.stop()

        previous = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
        tally = Tally()
        try:
            run(detector, camera, args.save, args.max_frames, stop, tally)
        finally:
            # Also where the camera was lost: what was judged until then is told.
            camera.close()
            print(
                json.dumps({"summary": tally.summary(camera.dropped)}, allow_nan=False), flush=True
            )
            for number, handler in previous.items():
                signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    quiet_opencv()
    if conflict := opencv_conflict():
        log(f"warning: {conflict}")
    try:
        if args.list:
            print(list_available())
        else:
            _stream(args)
    except (BundleError, EngineError, CameraError) as error:
        log(f"flawline-stream: {error}")
        return 2
    except BrokenPipeError:
        # The reader of our lines went away (such as `| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        log(
            f"flawline-stream: the lines cannot be written ({error.strerror}); free the disk or choose another output"
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt:
        log("interrupted before the first frame")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
