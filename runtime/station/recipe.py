"""Change the recipe of a station, also while its stream runs.

Also `python -m runtime.station.recipe`. The station file is edited in place, and the stream takes
the recipe over between two frames.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence

from flawline.commands import program_of
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import run_command, terminal_line

EXAMPLES = (
    "flawline recipe station.json          lists the recipes",
    "flawline recipe station.json bottle",
    "flawline recipe station.json bottle --wait 30",
)
LONGEST_WAIT_S = 3600


def _recipe(args: argparse.Namespace) -> None:
    # Imported here, so that the help needs no library.
    from flawline.runtime.station.settings.recipes import change_recipe, list_recipes

    if args.recipe is None:
        for line in list_recipes(args.station):
            print(terminal_line(line))
        return
    print(terminal_line(change_recipe(args.station, args.recipe, args.wait or 0.0)), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("recipe"),
        description="Change the recipe of a station file, which a running stream takes over "
        "without a lost frame.",
        examples=EXAMPLES,
    )
    parser.add_argument("station", type=path_argument, help="the station file")
    parser.add_argument(
        "recipe", type=text_argument, nargs="?", help="name of the recipe; default: list them"
    )
    parser.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="wait until a running stream has the recipe ready; an error if it refuses it, or if "
        "none does so in that time",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    # Not `value <= 0`, which is false for NaN.
    if args.wait is not None and not 0 < args.wait <= LONGEST_WAIT_S:
        parser.error(f"--wait must be above 0 and at most {LONGEST_WAIT_S}")
    return run_command(
        parser.prog,
        lambda: _recipe(args),
        interrupted="interrupted; the file names the recipe if it was changed already",
    )


if __name__ == "__main__":
    sys.exit(main())
