"""Set the threshold anew on the box, from good parts in front of its own camera. Needs no torch.

    python -m runtime.calibrate --bundle B --camera usb://0 --max-frames 300
    python -m runtime.calibrate --bundle B --camera good-parts/ --false-alarm-rate 0.02 --dry-run

The parts must be good and must not be those that the detector was trained on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from flawline.cameras import CameraError, open_camera
from flawline.runtime.bundle import BundleError, read_bundle, write_calibration
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, add_engine_arguments, options_from
from flawline.runtime.threshold import CalibrationError, calibrate, describe

SHOWN = 3  # of the highest scores: where a bad part among the good ones would be


def score_frames(
    detector: Detector, uri: str, max_frames: int | None
) -> tuple[list[str], list[float]]:
    """Sources and scores of a camera's frames. A frame without a picture or a finite score ends it with an error:
    a threshold from part of the images would promise what it cannot hold."""
    sources, scores = [], []
    camera = open_camera(uri)
    if camera.live and max_frames is None:
        camera.close()
        raise CameraError(
            f"camera {uri}: is live and does not end; say how many frames with --max-frames 300"
        )
    try:
        for frame in islice(camera, max_frames):
            if frame.image is None:
                raise CameraError(f"{frame.fault}")
            score = detector(frame.image).score
            if not math.isfinite(score):
                raise EngineError(f"{frame.source}: the score is {score}; build the bundle again")
            sources.append(f"{frame.source} frame {frame.index}" if camera.live else frame.source)
            scores.append(score)
            if len(scores) % 50 == 0:
                log(f"{len(scores)} frames scored")
    finally:
        camera.close()
    return sources, scores


def _recalibrate(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    with Detector(bundle, args.engine, options_from(args)) as detector:
        sources, scores = score_frames(detector, args.camera, args.max_frames)
    calibration = calibrate(np.array(scores), args.false_alarm_rate)
    old = bundle.calibration.threshold
    over = sum(score > old for score in scores)
    print(f"old threshold {old:.6g}: rejects {over} of these {len(scores)} good parts")
    for line in describe(calibration, args.false_alarm_rate):
        print(line)
    for i in np.argsort(scores)[::-1][:SHOWN]:
        print(f"  {scores[i]:.6g}  {sources[i]}")
    print("these scored highest: if one of them is a bad part, take it out and calibrate again")
    if args.dry_run:
        print("nothing was written (--dry-run)")
        return
    write_calibration(bundle, calibration)
    print(f"wrote {bundle.path / 'calibration.json'}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="flawline-calibrate", description="Set the threshold from good parts."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--camera", "--images", required=True, help="a camera or folder that shows good parts only"
    )
    parser.add_argument(
        "--false-alarm-rate", type=float, help="share of good parts rejected; default 0.01"
    )
    parser.add_argument(
        "--max-frames", type=int, help="stop after so many frames; a live camera needs it"
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the threshold, change nothing"
    )
    args = parser.parse_args(argv)
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    try:
        _recalibrate(args)
    except (BundleError, EngineError, CameraError, CalibrationError) as error:
        log(f"flawline-calibrate: {error}")
        return 2
    except OSError as error:
        log(
            f"flawline-calibrate: {args.bundle} cannot be written ({error.strerror}); check its permissions"
        )
        return 2
    except KeyboardInterrupt:
        log("interrupted; the threshold is as it was")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
