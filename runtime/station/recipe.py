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
import json
import sys
from collections.abc import Sequence

from flawline.commands import program_of
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.log import open_log
from flawline.runtime.bundle import read_bundle
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import run_command, terminal_line
from flawline.runtime.files import write_atomically
from flawline.runtime.signals import uninterrupted
from flawline.runtime.station.settings.opening import check_recipe
from flawline.runtime.station.settings.places import span_of
from flawline.runtime.station.settings.station_file import Station, StationError, read_station

EXAMPLES = (
    "flawline recipe station.json          # lists the recipes",
    "flawline recipe station.json bottle",
)


def _recipe(args: argparse.Namespace) -> None:
    station = read_station(args.station)
    if args.recipe is None:
        for recipe in station.content.recipes:
            mark = "*" if recipe.name == station.content.recipe else " "
            print(terminal_line(f"{mark} {recipe.name}  {recipe.bundle}"))
        return
    recipe = station.recipe_named(args.recipe)
    # What the file and the bundle show is found before the file is changed. The engine's self-test
    # is made by the stream, which has the engine.
    check_recipe(station, recipe, read_bundle(station.bundle_of(recipe)))
    with uninterrupted():
        print(terminal_line(_change(station, recipe.name)), flush=True)


def _change(station: Station, name: str) -> str:
    """Write the name of the recipe into the file; return a line that says so."""
    with open_log(station.audit_log) as log:
        # Another process may have changed it.
        station = read_station(station.path)
        station.recipe_named(name)
        old = station.content.recipe
        if old == name:
            return f"{station.path}: recipe {name} is the one in use already"
        states = ({"recipe": old}, {"recipe": name})
        with log.change("recipe", *states, lambda: _state(station)):
            _write(station, name)
    return (
        f"{station.path}: recipe {name} in place of {old}; a stream that runs with this file takes "
        f"it over when it has opened it"
    )


def _write(station: Station, name: str) -> None:
    start, end = span_of(station.text, ("recipe",))
    text = station.text[:start] + json.dumps(name) + station.text[end:]
    # A link stays one.
    path = station.path.resolve()
    try:
        write_atomically(path, text.encode(), like=path.stat())
    except OSError as error:
        raise StationError(
            f"{station.path} cannot be written ({reason_of(error)}); {remedy_of(error)}"
        ) from error


def _state(station: Station) -> dict[str, str]:
    return {"recipe": read_station(station.path).content.recipe}


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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(
        parser.prog, lambda: _recipe(args), interrupted="interrupted; the recipe was not changed"
    )


if __name__ == "__main__":
    sys.exit(main())
