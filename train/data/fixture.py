"""The fixture of a training: its reference picture, and what the good images say about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline.cameras.decode import read_image
from flawline.options import OptionError, option, parse_options
from flawline.runtime.console import log
from flawline.runtime.find_part import Pose
from flawline.runtime.fixture import (
    LARGEST_TURN,
    SMALLEST_REGION,
    Fixture,
    FixtureError,
    PartNotFoundError,
    Region,
)
from flawline.train.data.reference_picture import fixture_of
from flawline.uris import split_options

EXAMPLE = "still.png?region=120,40,400,400&turn=30&shift=20"
# Of the shorter side of the reference picture.
DEFAULT_SHIFT = 0.05

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FixtureOptions:
    """What follows the reference picture in --fixture. Raises ValueError for a wrong region."""

    region: str = option(
        "",
        f"X,Y,WIDTH,HEIGHT of what parts are found by in the picture, in pixels, {SMALLEST_REGION} "
        f"at least on each side",
    )
    turn: float = option(15.0, f"the largest angle in degrees, up to {LARGEST_TURN:g}")
    shift: float | None = option(
        None, f"the largest shift in pixels; default is {DEFAULT_SHIFT:.0%} of the shorter side"
    )

    def __post_init__(self) -> None:
        _region(self.region)


@dataclass(frozen=True)
class FixturePlan:
    """The reference picture of a fixture, and how far parts may lie from it."""

    picture: Path
    options: FixtureOptions

    def untaught(self, bit_depth: int | None) -> Fixture:
        """Return the fixture, which knows no good images yet.

        Raises CameraError for a picture that cannot be read, and FixtureError.
        """
        image = read_image(self.picture, bit_depth)
        shift = self.options.shift
        if shift is None:
            shift = float(round(DEFAULT_SHIFT * min(image.shape[:2])))
        try:
            return fixture_of(image, _region(self.options.region), self.options.turn, shift)
        except FixtureError as error:
            raise FixtureError(f"--fixture {self.picture}: {error}; see --fixture") from error


def parse_fixture(text: str) -> FixturePlan:
    """Read PICTURE?region=X,Y,WIDTH,HEIGHT&turn=DEGREES&shift=PIXELS. Raises OptionError."""
    picture, values = split_options(text)
    if not picture:
        raise OptionError(f"{text} names no reference picture, such as '{EXAMPLE}'")
    return FixturePlan(Path(picture), parse_options(FixtureOptions, values))


def learn_fixture(
    plan: FixturePlan, paths: Sequence[Path], bit_depth: int | None, progress: Progress
) -> Fixture:
    """Return the fixture of a plan, with the smallest match that is accepted from good images.

    Raises FixtureError for an image of another size, and for one in which the part is not found
    within the limits.
    """
    fixture = plan.untaught(bit_depth)
    log(f"fixture: {fixture}: what a turned part brings from outside of its frame is left out")
    poses = []
    for done, path in enumerate(paths, 1):
        try:
            poses.append(fixture.require(read_image(path, bit_depth)))
        except PartNotFoundError as error:
            raise FixtureError(
                f"{path}: {error}; remove the image, or give a larger turn or shift or another "
                f"region, see --fixture"
            ) from error
        except FixtureError as error:
            # An image of another size: its message says what to do.
            raise FixtureError(f"{path}: {error}") from error
        progress("finding parts", done, len(paths))
    fixture = fixture.with_quality_of([pose.quality for pose in poses])
    log(_describe(fixture, poses))
    return fixture


def _describe(fixture: Fixture, poses: Sequence[Pose]) -> str:
    turn = max(abs(pose.turn) for pose in poses)
    shift = max(pose.shift for pose in poses)
    qualities = [pose.quality for pose in poses]
    return (
        f"found the part in all {len(poses)} good images, turned by up to {turn:.1f} degrees and "
        f"shifted by up to {shift:.1f} pixels; their matches with the reference picture are "
        f"{min(qualities):.2f} to {max(qualities):.2f}, median {np.median(qualities):.2f}, and a "
        f"match below {fixture.quality:.2f} rejects a part"
    )


def _region(text: str) -> Region:
    """Read X,Y,WIDTH,HEIGHT. Raises ValueError."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"region={text} is not X,Y,WIDTH,HEIGHT, such as --fixture '{EXAMPLE}'")
    x, y, width, height = (int(number) for number in numbers)
    return x, y, width, height
