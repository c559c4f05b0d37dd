"""The flags of a single run of a stream, which a station file does not state."""

from __future__ import annotations

import argparse

from flawline.runtime.command_parser import path_argument, text_argument


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which parts are judged, for how long, and what is measured."""
    parser.add_argument(
        "--parts",
        type=text_argument,
        metavar="FILE",
        help="name the parts of a triggered camera by the lines of this file, or of stdin (-); "
        "with trigger=software, each line sends a pulse",
    )
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="measure where the time goes: a table on stderr, and keys of the summary",
    )
    parser.add_argument(
        "--alive",
        type=path_argument,
        metavar="FILE",
        help="write this file, whose time is new while the stream lives, for a container's health",
    )
