"""The flags of `flawline stream` about master parts."""

from __future__ import annotations

import argparse

from flawline.runtime.command_parser import text_argument
from flawline.runtime.masters.check import Masters
from flawline.runtime.masters.durations import duration_argument
from flawline.runtime.masters.rule import MastersRule


def add_masters_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that demand a check of master parts."""
    parser.add_argument(
        "--masters",
        nargs=2,
        type=text_argument,
        metavar=("GOOD", "BAD"),
        help="folders of parts that are known to be good and bad: the stream begins only if each "
        "is judged as what it is; as flawline masters",
    )
    parser.add_argument(
        "--masters-max-age",
        type=duration_argument,
        metavar="AGE",
        help="begin, and continue, only while the last check of master parts has passed and is not "
        "older, such as 12h; without --masters it is that of flawline masters",
    )


def masters_rule(args: argparse.Namespace) -> MastersRule | None:
    """Return what the flags of `add_masters_arguments` demand; None without them."""
    if args.masters is None and args.masters_max_age is None:
        return None
    masters = None if args.masters is None else Masters(*args.masters)
    return MastersRule(masters, args.masters_max_age)
