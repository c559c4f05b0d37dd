"""Set the threshold on the inspecting machine, from good parts in front of its camera.

    python -m runtime.calibrate --bundle B --camera usb://0 --max-frames 300
    python -m runtime.calibrate --bundle B --camera good-parts/ --false-alarm-rate 0.02 --dry-run

The parts must be good, and must not be those that the detector was trained on. Needs no torch.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from flawline.cameras import Camera, CameraError, Frame, open_camera
from flawline.runtime.bundle import read_bundle, write_calibration
from flawline.runtime.console import Parser, log, run_command
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, add_engine_arguments, engine_options
from flawline.runtime.threshold import describe, set_threshold

HIGHEST_SHOWN = 3  # scores that are printed: a bad part among the good ones would be among them
PROGRESS_EVERY = 50  # frames


def score_frames(
    detector: Detector, camera: Camera, max_frames: int | None = None
) -> tuple[list[str], list[float]]:
    """Score the frames of a camera; return their sources and scores.

    A frame without an image or without a finite score is an error, because a threshold from a part
    of the images would not have the false-alarm rate that it states. Raises CameraError and
    EngineError.
    """
    sources: list[str] = []
    scores: list[float] = []
    for frame in islice(camera, max_frames):
        scores.append(_score(detector, frame))
        sources.append(_source(camera, frame))
        if len(scores) % PROGRESS_EVERY == 0:
            log(f"{len(scores)} frames scored")
    return sources, scores


def _score(detector: Detector, frame: Frame) -> float:
    verdict = detector.judge(frame)
    if verdict.anomaly_map is None:
        # Faults of image files begin with their path already.
        reason = str(verdict.reason)
        if frame.source not in reason:
            reason = f"{frame.source}: {reason}"
        raise CameraError(reason)
    if not math.isfinite(verdict.score):
        raise EngineError(f"{frame.source}: the score is {verdict.score}; build the bundle again")
    return verdict.score


def _source(camera: Camera, frame: Frame) -> str:
    if camera.live:
        return f"{frame.source} frame {frame.index}"
    return frame.source


def _recalibrate(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    # The camera comes first, because opening an engine may take minutes.
    with open_camera(args.camera) as camera:
        if camera.live and args.max_frames is None:
            raise CameraError(
                f"camera {args.camera}: is live and does not end; "
                f"give the number of frames with --max-frames 300"
            )
        # On the engine that will run: its rounding is part of the scores.
        options = engine_options(args)
        with Detector(bundle, args.engine, options, accept_size=args.accept_size) as detector:
            sources, scores = score_frames(detector, camera, args.max_frames)
    calibration = set_threshold(np.array(scores), args.false_alarm_rate)
    old = bundle.calibration.threshold
    rejected = int(np.sum(np.array(scores) > old))
    print(f"old threshold {old:.6g}: rejects {rejected} of these {len(scores)} good parts")
    for line in describe(calibration, args.false_alarm_rate):
        print(line)
    for i in np.argsort(scores)[::-1][:HIGHEST_SHOWN]:
        print(f"  {scores[i]:.6g}  {sources[i]}")
    print("these scored highest: if one of them is a bad part, remove it and calibrate again")
    if args.dry_run:
        print("nothing was written (--dry-run)")
        return
    write_calibration(bundle, calibration)
    print(f"wrote {bundle.path / 'calibration.json'}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="flawline-calibrate", description="Set the threshold from good parts.")
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
    parser.add_argument(
        "--accept-size",
        action="store_true",
        help="score images whose size is far from those of the training, instead of refusing them",
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the threshold, change nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    return run_command(
        parser.prog,
        lambda: _recalibrate(args),
        interrupted="interrupted; the threshold was not changed",
    )


if __name__ == "__main__":
    sys.exit(main())
