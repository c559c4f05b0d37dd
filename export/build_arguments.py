"""The flags of flawline build, and which of them go together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from flawline.commands import program_of
from flawline.export.local_engine import NO_ENGINE, add_build_arguments
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.engines import add_engine_arguments
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.runtime.signing.arguments import add_trusted_argument
from flawline.runtime.source_frame import BGR, LAYOUTS, SourceFrame, parse_source
from flawline.train import METHODS
from flawline.train.fit import DEFAULT_METHOD, add_training_arguments, parse_arguments
from flawline.train.frame_arguments import add_frame_arguments

PROGRAM = program_of("build")
EXAMPLES = (
    "flawline build --method simplenet --data /data/bottle           train and build a bundle",
    "flawline build --checkpoint C --data /data/bottle --out B       build a bundle",
    "flawline build --bundle B --engine tensorrt                     build the engine",
    "flawline build --bundle B --precision int8 --data /data/bottle  add a graph",
)


def first_pass(words: Sequence[str]) -> argparse.Namespace:
    """Find the flags that decide what the command does; --help is left to the second pass."""
    parser = Parser(prog=PROGRAM, add_help=False)
    for flag in ("--bundle", "--checkpoint", "--precision"):
        parser.add_argument(flag)
    return parser.parse_known_args(words)[0]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line with the flags that have a meaning in it.

    A bundle that exists has nothing to train or to build, and a checkpoint nothing to train. Raises
    TrainError for a wrong method, or for a flag of another method.
    """
    given = first_pass(words)
    parser = Parser(
        prog=PROGRAM,
        examples=[line for line in EXAMPLES if given.bundle is None or "--bundle" in line],
        description="Export a detector to a bundle, and build this machine's engine. --precision "
        "also adds the graph of that precision to the bundle.",
    )
    parser.add_argument(
        "--bundle",
        type=path_argument,
        help="work on this bundle instead of building one; takes --data and the flags of engines",
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        help="the data set: its good images set the threshold, its test images prove parity",
    )
    add_engine_arguments(parser, extra=(NO_ENGINE,))
    add_build_arguments(parser)
    if given.bundle is not None:
        add_trusted_argument(parser)
        return _parse_rest(parser, words, "bundle", "--bundle builds and trains nothing")
    _add_bundle_arguments(parser)
    if given.checkpoint is not None:
        parser.add_argument("--method", help="the method of the checkpoint; may be left out")
        return _parse_rest(parser, words, "checkpoint", "--checkpoint trains nothing")
    parser.add_argument(
        "--method", default=DEFAULT_METHOD, help=f"one of {', '.join(METHODS)}; default %(default)s"
    )
    parser.add_argument(
        "--save-checkpoint",
        type=path_argument,
        help="where to save the trained checkpoint; default runs/",
    )
    add_training_arguments(parser)
    add_frame_arguments(parser)
    return parse_arguments(parser, words)


def _parse_rest(
    parser: Parser, words: Sequence[str], given: str, reason: str
) -> argparse.Namespace:
    """Parse the command line, and give the reason why flags of other modes are refused.

    `given` is what the command works on, which states how the training was done.
    """
    args, unknown = parser.parse_known_args(words)
    if unknown:
        flag = unknown[0].partition("=")[0]
        if flag in _flags(add_frame_arguments):
            parser.error(
                f"{flag}: tiles, areas and fixtures belong to the training, and the {given} states "
                f"them; leave {flag} out, or train again with it"
            )
        if flag in _flags(add_training_arguments):
            # It is spelled correctly, so that another flag would be a wrong suggestion.
            parser.error(f"{flag} is a flag of the training ({reason}); leave it out")
        parser.error(f"unrecognized arguments: {' '.join(unknown)} ({reason})")
    return args


def _flags(add_arguments: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    """Return the flags that a function adds to a parser."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    flags: set[str] = set()
    for action in parser._actions:
        flags.update(action.option_strings)
    return flags


def _add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bundle")
    group.add_argument(
        "--checkpoint",
        type=path_argument,
        help="from flawline train; without it, one is trained first",
    )
    group.add_argument(
        "--out", type=path_argument, help="the bundle to write; default bundles/METHOD-DATA"
    )
    group.add_argument(
        "--allow-unfinished",
        action="store_true",
        help="export a training that --max-minutes cut short; the bundle is marked",
    )
    group.add_argument(
        "--false-alarm-rate", type=float, help="share of good parts rejected; default 0.01"
    )
    group.add_argument(
        "--review-rate",
        type=float,
        help="share of good parts reviewed by a person or rejected, above the false-alarm rate; "
        "default: no part is reviewed",
    )
    group.add_argument(
        "--outputs",
        choices=GRAPH_OUTPUTS,
        help="score: leave out the map, its upsampling and its smoothing; default map, if the "
        "method has one",
    )
    group.add_argument(
        "--source",
        type=_source,
        metavar="WIDTHxHEIGHT[:LAYOUT]",
        help=f"the graph takes the camera's own frames of this size, at 8 bits, and prepares them "
        f"on the engine's device; LAYOUT is one of {', '.join(LAYOUTS)}, default {BGR}; made for "
        f"GPUs, slower on CPUs",
    )
    group.add_argument(
        "--static-batch",
        action="store_true",
        help="one image per call, for compilers that need static shapes",
    )


def _source(text: str) -> SourceFrame:
    try:
        return parse_source(text)
    except ValueError as error:
        # argparse prints only the message of this error.
        raise argparse.ArgumentTypeError(str(error)) from error
