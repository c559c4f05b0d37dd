"""The flags of flawline stream for the regions of the anomaly map."""

from __future__ import annotations

import argparse
from dataclasses import replace

from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.command_parser import Parser
from flawline.runtime.regions import RegionSettings, regions_missing

FLAGS = ("min_region_area", "mm_per_pixel")


def add_region_arguments(parser: Parser) -> None:
    """Add the flags; `read_region_settings` reads them."""
    parser.add_argument(
        "--min-region-area",
        type=_positive,
        metavar="PIXELS",
        help="leave out anomalous regions with a smaller area, in pixels of the camera's image; "
        "default: none is left out",
    )
    parser.add_argument(
        "--mm-per-pixel",
        type=_positive,
        metavar="MM",
        help="the size of a pixel of the camera's image on the part: regions are given in "
        "millimetres, too; for all cameras",
    )


def read_region_settings(args: argparse.Namespace, bundle: Bundle) -> RegionSettings:
    """Return what the flags ask for. Raises BundleError if the bundle gives no regions."""
    given = [name for name in FLAGS if getattr(args, name) is not None]
    reason = regions_missing(bundle)
    if given and reason is not None:
        flag = given[0].replace("_", "-")
        raise BundleError(f"--{flag} is about anomalous regions: {reason}")
    settings = RegionSettings(mm_per_pixel=args.mm_per_pixel)
    if args.min_region_area is not None:
        settings = replace(settings, min_area=args.min_region_area)
    return settings


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    # Also false for NaN.
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
