"""The flags of `flawline stream` for several cameras."""

from __future__ import annotations

import argparse
from dataclasses import replace

from flawline.runtime.station.several_cameras import StationSettings

LONGEST_WAIT_MS = 60_000
LONGEST_PART_WAIT_S = 86_400


def add_several_cameras_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of several cameras. The default of each is None, to notice what was given."""
    defaults = StationSettings()
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="a folder or a video: the frames in one call of the engine, for throughput as with "
        "--streams, default 1; several cameras: the most frames in one call, at most one of each "
        "camera, default one of each on a GPU, and 1 on a CPU, where batches are not faster",
    )
    parser.add_argument(
        "--batch-wait",
        type=float,
        metavar="MS",
        help="several cameras: milliseconds that a frame may wait for those of other cameras; "
        f"default {defaults.batch_wait:g}: what is there already is judged together",
    )
    parser.add_argument(
        "--same-part",
        action="store_true",
        default=None,
        help="several cameras: they see the same parts, and a part has one verdict, that of its "
        "worst view; for cameras with a trigger, and for files",
    )
    parser.add_argument(
        "--part-wait",
        type=float,
        metavar="SECONDS",
        help="--same-part: reject a part if a view is missing so long after the first one; "
        f"default {defaults.part_wait:g}",
    )


def check_several_cameras(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags of several cameras that are wrong, or without effect."""
    several = len(args.camera or []) > 1
    for name in ("batch_wait", "same_part"):
        if getattr(args, name) is not None and not several:
            parser.error(f"--{name.replace('_', '-')} is for several cameras; repeat --camera")
    if args.streams is not None and several:
        parser.error("--streams is for one folder or video; give a single --camera")
    if args.part_wait is not None and not args.same_part:
        parser.error("--part-wait needs --same-part")
    if args.batch is not None and args.batch < 1:
        parser.error("--batch must be at least 1")
    # Not `value < 0`, which is false for NaN.
    if args.batch_wait is not None and not 0 <= args.batch_wait <= LONGEST_WAIT_MS:
        parser.error(f"--batch-wait must be from 0 to {LONGEST_WAIT_MS}")
    if args.part_wait is not None and not 0 < args.part_wait <= LONGEST_PART_WAIT_S:
        parser.error(f"--part-wait must be above 0 and at most {LONGEST_PART_WAIT_S}")
    if args.parts is not None and several and not args.same_part:
        parser.error("--parts with several cameras needs --same-part: a line names one part")


def station_settings(args: argparse.Namespace) -> StationSettings:
    """Return what the flags of `add_several_cameras_arguments` say."""
    settings = StationSettings(batch=args.batch, same_part=bool(args.same_part))
    if args.batch_wait is not None:
        settings = replace(settings, batch_wait=1e-3 * args.batch_wait)
    if args.part_wait is not None:
        settings = replace(settings, part_wait=args.part_wait)
    return settings
