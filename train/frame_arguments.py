"""The flags that say what a network gets of each image: fixture, inspected area and tiles."""

from __future__ import annotations

import argparse

from flawline import FlawlineError
from flawline.runtime.tiles import (
    ALIGNMENT,
    DEFAULT_OVERLAP,
    LARGEST_OVERLAP,
    Tiling,
    parse_tiles,
)
from flawline.train import TrainError
from flawline.train.data.area import AreaDrawing, Shape, drawing_of, parse_shape
from flawline.train.data.fixture import EXAMPLE, FixturePlan, parse_fixture


def add_frame_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, which `fixture_of_flags`, `tiles_of` and `area_of` read."""
    group = parser.add_argument_group("parts of an image")
    group.add_argument(
        "--tiles",
        metavar="COLUMNSxROWS",
        help="cut each image into so many overlapping tiles, such as 3x2, for small defects in "
        "large images; default: the whole image is one input",
    )
    group.add_argument(
        "--overlap",
        type=float,
        help=f"share of a tile that overlaps with the next one, from 0 to {LARGEST_OVERLAP:g}, "
        f"rounded up to {ALIGNMENT} pixels of the input; default {DEFAULT_OVERLAP:g}",
    )
    for flag, meaning in (("--include", "inspect only this area"), ("--exclude", "leave it out")):
        group.add_argument(
            flag,
            type=_shape,
            action="append",
            metavar="AREA",
            help=f"{meaning} of each image: a polygon 'x,y x,y x,y' in pixels, a JSON file of "
            f"polygons, or a mask image; may be repeated",
        )
    group.add_argument(
        "--fixture",
        type=_fixture,
        metavar="PICTURE?region=X,Y,WIDTH,HEIGHT",
        help=f"turn and shift each image so that its part lies as in this picture, where it is "
        f"found by this region; for example '{EXAMPLE}': up to 30 degrees and 20 pixels; default "
        f"15 degrees and a twentieth of the shorter side",
    )


def tiles_of(args: argparse.Namespace) -> Tiling | None:
    """Return the tiles that the flags ask for, if the command has them. Raises TrainError."""
    tiles = getattr(args, "tiles", None)
    overlap = getattr(args, "overlap", None)
    if tiles is None:
        if overlap is not None:
            raise TrainError("--overlap goes with --tiles; give both, or leave it out")
        return None
    try:
        return parse_tiles(tiles, DEFAULT_OVERLAP if overlap is None else overlap)
    except ValueError as error:
        raise TrainError(f"--tiles: {error}; see --tiles and --overlap") from error


def area_of(args: argparse.Namespace) -> AreaDrawing | None:
    """Return the area that the flags draw, if the command has them."""
    include = getattr(args, "include", None) or []
    exclude = getattr(args, "exclude", None) or []
    return drawing_of(include, exclude)


def fixture_of_flags(args: argparse.Namespace) -> FixturePlan | None:
    """Return the fixture that the flags ask for, if the command has them."""
    plan: FixturePlan | None = getattr(args, "fixture", None)
    return plan


def _fixture(text: str) -> FixturePlan:
    try:
        return parse_fixture(text)
    except FlawlineError as error:
        # argparse prints only the message of this error.
        raise argparse.ArgumentTypeError(str(error)) from error


def _shape(text: str) -> Shape:
    try:
        return parse_shape(text)
    except FlawlineError as error:
        # argparse prints only the message of this error.
        raise argparse.ArgumentTypeError(str(error)) from error
