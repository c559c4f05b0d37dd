"""Set the threshold on the inspecting machine, from good parts in front of its camera.

Also `python -m runtime.calibrate`. The parts must be good, and must not be those that the detector
was trained on. The threshold that is replaced is stored next to the new one, as
calibration.previous.json. Needs no torch.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flawline.cameras import CameraError, open_camera
from flawline.commands import program_of
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.bundle_log import require_writable_log
from flawline.runtime.bundle import CALIBRATION, Bundle, read_bundle, write_calibration
from flawline.runtime.bundle_files import require_bundle_folder
from flawline.runtime.calibration import Calibration
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import discard_stdout, log_notes, run_command, terminal_line
from flawline.runtime.detector import Detector
from flawline.runtime.drift.reference import range_of
from flawline.runtime.engines import add_engine_arguments, engine_options
from flawline.runtime.files import make_writable
from flawline.runtime.good_parts import GOOD, GoodParts, check_beforehand, score_frames
from flawline.runtime.scored_by import ScoredBy, scored_by
from flawline.runtime.signals import uninterrupted
from flawline.runtime.signing.arguments import add_trusted_argument, trusted_keys
from flawline.runtime.signing.signature import has_signed_thresholds
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.threshold import (
    DEFAULT_RATE,
    CalibrationError,
    Rates,
    check_range,
    describe,
    describe_needs,
    require_different_scores,
    set_threshold,
    with_pixel_threshold,
)
from flawline.runtime.undo import undo_calibration
from flawline.uris import without_secrets

EXAMPLES = (
    "flawline calibrate --bundle B --camera usb://0 --max-frames 300",
    "flawline calibrate --bundle B --camera good-parts/ --false-alarm-rate 0.02 --dry-run",
    "flawline calibrate --bundle B --undo",
)
HIGHEST_SHOWN = 3  # scores that are printed: a bad part among the good ones would be among them


def _recalibrate(args: argparse.Namespace) -> None:
    check_range(args.false_alarm_rate)
    check_range(args.review_rate, "review rate")
    require_bundle_folder(args.bundle, args.camera)
    bundle = read_bundle(args.bundle, trusted_keys(args))
    if not args.dry_run:
        _require_writable(bundle)
    parts, engine = _score_good_parts(bundle, args)
    calibration = _calibrate(bundle, parts, _rates(args))
    calibration = replace(calibration, scored_by=engine, scores=range_of(parts.scores))
    lines = _report(bundle.calibration, calibration, parts)
    if args.dry_run:
        unchanged = "nothing was written (--dry-run)"
        _print([*lines, unchanged], unchanged)
        return
    written = f"wrote {bundle.path / CALIBRATION}"
    lines.append(f"{written}; --undo brings the old threshold back")
    if has_signed_thresholds(bundle.path, bundle.manifest_sha256):
        lines.append("note: the thresholds before were signed; sign the new ones to use them")
    # Written before anything is printed: the reader of stdout may be gone at any line.
    with uninterrupted():
        write_calibration(bundle, calibration)
        _print(lines, written)


def _calibrate(bundle: Bundle, parts: GoodParts, rates: Rates) -> Calibration:
    manifest = bundle.manifest
    tolerance = manifest.score_tolerance
    # The first check: equal images would support no rate, however many there are.
    require_different_scores(parts.scores, tolerance, GOOD)
    calibration = set_threshold(
        parts.scores, rates.false_alarm, tolerance, GOOD, review_rate=rates.review
    )
    if bundle.has_map:
        calibration = with_pixel_threshold(calibration, parts.peaks, manifest.map_tolerance)
    return calibration


def _require_writable(bundle: Bundle) -> None:
    """Raise CalibrationError if the bundle cannot be written, before parts pass the camera."""
    try:
        make_writable(bundle.path)
        require_writable_log(bundle.path)
    except OSError as error:
        raise CalibrationError(
            f"{bundle.path} cannot be written ({reason_of(error)}); {remedy_of(error)}, "
            f"or use --dry-run"
        ) from error


def _score_good_parts(
    bundle: Bundle, args: argparse.Namespace
) -> tuple[GoodParts, ScoredBy | None]:
    """Return the camera's frames with their scores, and what gave the scores."""
    # The camera comes first, because opening an engine may take minutes.
    with open_camera(args.camera) as camera:
        if camera.endless and args.max_frames is None:
            raise CameraError(
                f"camera {without_secrets(args.camera)}: does not end by itself; "
                f"give the number of frames with --max-frames 300"
            )
        trained_images = bundle.manifest.trained_images
        check_beforehand(camera, args.max_frames, _rates(args), trained_images)
        # On the engine that will run: its rounding is part of the scores.
        options = engine_options(args)
        # The threshold is given, although no verdict is used, because a warning about scores that
        # the old one was set with would mislead.
        old = bundle.calibration.threshold
        with Detector(bundle, args.engine, options, old, args.accept_size) as detector:
            log_notes(camera.notes())
            camera.on_event = FrameNotices().event
            parts = score_frames(detector, camera, args.max_frames, trained_images)
            engine = detector.engine
    return parts, scored_by(engine.name, engine.precision)


def _rates(args: argparse.Namespace) -> Rates:
    """Return the rates: only a false-alarm rate given by number is above the default."""
    if args.false_alarm_rate is None:
        return Rates(DEFAULT_RATE, args.review_rate)
    return Rates(args.false_alarm_rate, args.review_rate)


def _report(old: Calibration, new: Calibration, parts: GoodParts) -> list[str]:
    """Compare the old and the new threshold in lines of text."""
    scores = parts.scores
    rejected = int(np.sum(scores > old.threshold))
    origin = f"for {old.false_alarm_rate:.1%} false alarms, from {old.good_images} {GOOD}"
    if old.by_hand is not None:
        origin = f"moved by hand by {old.by_hand.person}"
    lines = [
        f"old threshold {old.threshold:.6g} {origin}: rejects {rejected} of these {len(scores)} "
        f"good parts"
    ]
    lines += describe(new, new.false_alarm_rate, GOOD)
    if old.review is not None and new.review is None:
        lines.append(
            f"note: without --review-rate no part is reviewed any more; "
            f"--review-rate {old.review.rate:g} keeps the old rate"
        )
    lines.append(f"{GOOD} that a false-alarm rate takes: {describe_needs()}")
    for i in np.argsort(scores)[::-1][:HIGHEST_SHOWN]:
        lines.append(f"  {scores[i]:.6g}  {parts.sources[i]}")
    lines.append(
        "these scored highest: if one of them is a bad part, remove it and calibrate again"
    )
    return lines


def _undo(args: argparse.Namespace) -> None:
    with uninterrupted():
        undone = undo_calibration(args.bundle)
        calibration = undone.calibration
        lines = describe(calibration, calibration.false_alarm_rate, GOOD)
        _print([*lines, undone.message], undone.message)


def _print(lines: Sequence[str], done: str) -> None:
    """Print lines to stdout. An error says what was `done` all the same."""
    try:
        for line in lines:
            print(terminal_line(line))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise CalibrationError(
            f"{done}, but the report cannot be printed ({reason_of(error)}); "
            f"{remedy_of(error, 'output')}"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("calibrate"),
        description="Set the threshold from good parts.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--bundle", type=path_argument, required=True, help="the bundle whose threshold is set"
    )
    parser.add_argument(
        "--camera",
        "--images",
        type=text_argument,
        help="a camera or folder that shows good parts only",
    )
    needs = describe_needs().replace("%", "%%")
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        help=f"share of good parts rejected; default {DEFAULT_RATE}. Images that it takes: {needs}",
    )
    parser.add_argument(
        "--review-rate",
        type=float,
        help="share of good parts reviewed by a person or rejected, above the false-alarm rate; "
        "default: no part is reviewed",
    )
    parser.add_argument(
        "--max-frames",
        type=int,
        help="stop after so many frames; needed for a camera that does not end",
    )
    parser.add_argument(
        "--accept-size",
        action="store_true",
        help="score images whose size is far from those of the training, instead of refusing them",
    )
    add_engine_arguments(parser)
    add_trusted_argument(parser)
    _add_writing_arguments(parser)
    return parser


def _add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is written."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print the threshold, change nothing"
    )
    parser.add_argument(
        "--undo", action="store_true", help="bring the previous threshold of the bundle back"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    if args.undo and (args.dry_run or args.camera is not None):
        parser.error("--undo takes only --bundle; leave the other flags out")
    if not args.undo and args.camera is None:
        parser.error("--images with a folder of good parts is needed, --camera, or --undo")
    work = _undo if args.undo else _recalibrate
    return run_command(
        parser.prog,
        lambda: work(args),
        interrupted="interrupted; the threshold was not changed",
    )


if __name__ == "__main__":
    sys.exit(main())
