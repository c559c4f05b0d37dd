"""Check at the start of a shift that known parts are judged as what they are.

Also `python -m runtime.masters`. Each good master part must be accepted, and each bad one rejected.
The result is a line in the audit log of the bundle, which `flawline stream --masters-max-age` looks
for.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import os
import sys
from collections.abc import Sequence

from flawline.commands import program_of
from flawline.runtime.bundle import read_bundle
from flawline.runtime.bundle_files import require_bundle_folder
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import log, run_command, terminal_line
from flawline.runtime.detector import Detector
from flawline.runtime.engines import add_engine_arguments, engine_options
from flawline.runtime.environment import quiet_opencv
from flawline.runtime.masters.check import Masters, MastersError
from flawline.runtime.masters.record import check_and_log
from flawline.runtime.signing.arguments import add_trusted_argument, trusted_keys

EXAMPLES = (
    "flawline masters bundles/part --good masters/good --bad masters/bad",
    "flawline masters bundles/part --good masters/good --bad masters/bad --engine openvino",
    "flawline masters --station station.json     those of the recipe in use",
)
BESIDE_STATION = ("station", "trusted_key")


def _masters(args: argparse.Namespace) -> int:
    quiet_opencv()
    if args.station is not None:
        return _of_station(args)
    require_bundle_folder(args.bundle, args.good)
    bundle = read_bundle(args.bundle, trusted_keys(args))
    options = engine_options(args)
    with Detector(bundle, args.engine, options, accept_size=args.accept_size) as detector:
        return _check(detector, Masters(args.good, args.bad, args.max_frames))


def _of_station(args: argparse.Namespace) -> int:
    # Imported here, since only a station needs the library of its types.
    from flawline.runtime.station.settings.opening import (
        bundle_reader,
        masters_of,
        open_detector,
    )
    from flawline.runtime.station.settings.station_file import read_station

    station = read_station(args.station.absolute())
    recipe = station.recipe
    masters = masters_of(recipe)
    if masters is None:
        raise MastersError(
            f"{station.path}: recipe {recipe.name} has no master parts; add the key masters with "
            f"good and bad"
        )
    keys = [path.absolute() for path in args.trusted_key or []]
    bundle = bundle_reader(station, keys)(station.bundle_of(recipe))
    # Relative paths begin there.
    os.chdir(station.folder)
    with open_detector(station, recipe, bundle) as detector:
        return _check(detector, masters)


def _check(detector: Detector, masters: Masters) -> int:
    log(
        f"engine {detector.engine.description}, self-test passed, "
        f"threshold {detector.threshold:.6g}"
    )
    result = check_and_log(detector, masters)
    for master in result.wrong:
        print(terminal_line(master.describe()))
    if result.passed:
        print(terminal_line(f"passed: {result.describe()}"), flush=True)
        return 0
    wrong = f"{len(result.wrong)} of {result.good + result.bad} master parts judged wrong"
    print(f"failed: {wrong}", flush=True)
    return MastersError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("masters"),
        description="Check that parts known to be good are accepted, and parts known to be bad "
        "rejected, with the engine of the stream. The exit status is 1 if not.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "bundle", nargs="?", type=path_argument, help="the folder that flawline build wrote"
    )
    parser.add_argument(
        "--good", type=text_argument, metavar="DIR", help="good master parts: a folder or camera"
    )
    parser.add_argument(
        "--bad", type=text_argument, metavar="DIR", help="bad master parts: a folder or camera"
    )
    parser.add_argument(
        "--station",
        type=path_argument,
        metavar="FILE",
        help="check the recipe in use of this station file, with its engine and master parts",
    )
    parser.add_argument(
        "--max-frames",
        type=int,
        metavar="N",
        help="master parts of each kind; needed for a camera that does not end by itself",
    )
    parser.add_argument(
        "--accept-size",
        action="store_true",
        help="judge images whose size is far from those of the training, instead of rejecting them",
    )
    add_engine_arguments(parser)
    add_trusted_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    named = (args.bundle, args.good, args.bad)
    if args.station is not None:
        from flawline.runtime.station.settings.stream import refuse_flags

        refuse_flags(_parser(), argv, BESIDE_STATION)
    elif None in named:
        parser.error("BUNDLE, --good and --bad are needed (or --station)")
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    return run_command(
        parser.prog,
        lambda: _masters(args),
        interrupted="interrupted; the check counts as not made",
    )


if __name__ == "__main__":
    sys.exit(main())
