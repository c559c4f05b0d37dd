"""Check this machine, and say what to do about each problem.

Also `python -m runtime.doctor`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

from flawline import __version__
from flawline.commands import program_of
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import run_command, terminal_line
from flawline.runtime.doctor import CHECKS
from flawline.runtime.doctor.examine import examine
from flawline.runtime.doctor.finding import LEVELS, PROBLEM, Finding
from flawline.runtime.doctor.machine import Subject

EXAMPLES = (
    "flawline doctor",
    "flawline doctor --bundle bundles/part --folder /data/results",
    "flawline doctor --station station.json --json",
    "flawline doctor --only engines --only cameras",
)
FOUND_PROBLEMS = 1
# Columns of the report.
LEVEL_WIDTH = max(map(len, LEVELS))
NAME_WIDTH = max(map(len, CHECKS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status.

    The status is 1 if a problem was found.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _examine(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("doctor"),
        description="Check this machine, and say what to do about each problem. The exit status is "
        "1 if there is one.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--bundle",
        type=path_argument,
        help="also read this bundle, and run its self-test with each engine",
    )
    parser.add_argument(
        "--station",
        type=path_argument,
        metavar="FILE",
        help="check what this station file names: its bundle, engine and audit log",
    )
    parser.add_argument(
        "--engine-cache",
        type=path_argument,
        metavar="DIR",
        help="folder for compiled plans; default BUNDLE/engines",
    )
    parser.add_argument(
        "--folder",
        type=path_argument,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder that results are written to; repeat for several",
    )
    parser.add_argument(
        "--server",
        type=text_argument,
        metavar="URI",
        help="the server of an engine that computes on one",
    )
    _add_report_arguments(parser)
    return parser


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        action="append",
        choices=tuple(CHECKS),
        metavar="CHECK",
        help=f"make this check alone; repeat for several: {', '.join(CHECKS)}",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _examine(args: argparse.Namespace) -> int:
    subject = Subject(args.bundle, args.engine_cache, tuple(args.folder), args.server, args.station)
    counts: Counter[str] = Counter()
    listed = []
    for name, finding in examine(args.only or CHECKS, subject):
        counts[finding.level] += 1
        listed.append({"check": name, **vars(finding)})
        if not args.json:
            _print(name, finding)
    if args.json:
        print(json.dumps({"flawline": __version__, "counts": counts, "findings": listed}, indent=2))
    else:
        print(_summary(counts))
    return FOUND_PROBLEMS if counts[PROBLEM] else 0


def _print(name: str, finding: Finding) -> None:
    print(terminal_line(f"{finding.level:<{LEVEL_WIDTH}}  {name:<{NAME_WIDTH}}  {finding.text}"))
    if finding.remedy is not None:
        indent = " " * (LEVEL_WIDTH + NAME_WIDTH + 4)
        print(terminal_line(f"{indent}-> {finding.remedy}"), flush=True)


def _summary(counts: Counter[str]) -> str:
    parts = []
    for level in reversed(LEVELS):
        noun = level if counts[level] == 1 or level == LEVELS[0] else f"{level}s"
        parts.append(f"{counts[level]} {noun}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
