"""flawline train: train a detector on good images and write its checkpoint.

Also `python -m train.fit`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawline.commands import program_of
from flawline.options import field_parser
from flawline.runtime.command_parser import UNKNOWN_FLAGS, Parser, path_argument
from flawline.runtime.console import run_command
from flawline.runtime.good_images.folds import DEFAULT_FOLDS, HOLD_OUT_FROM
from flawline.runtime.image import GEOMETRIES
from flawline.train import METHODS, TrainError
from flawline.train.backbones import BACKBONES, DEFAULT_BACKBONE
from flawline.train.backbones.facts import IMAGENET, WEIGHT_KINDS
from flawline.train.data.demo import DEMO_WEIGHTS
from flawline.train.data_arguments import (
    add_doubtful_argument,
    add_exclusion_argument,
    excluded_of,
    lists_doubtful,
)
from flawline.train.frame_arguments import (
    add_frame_arguments,
    area_of,
    fixture_of_flags,
    tiles_of,
)

if TYPE_CHECKING:
    from flawline.train.recipe import Recipe

EXAMPLES = (
    "flawline train --data /data/bottle",
    "flawline train --method patchcore --data /data/bottle --out runs/bottle.pt",
    "flawline train --method patchcore --help     the flags of one method",
)
DEFAULT_METHOD = "simplenet"


def _weight_kinds() -> str:
    kinds = []
    for kind, origin in WEIGHT_KINDS.items():
        kinds.append(f"{kind} ({origin})")
    return ", ".join(kinds)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to train, without --method and the flags of single methods."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--backbone",
        help=f"one of {', '.join(BACKBONES)}; default is the method's, usually {DEFAULT_BACKBONE}",
    )
    group.add_argument(
        "--weights",
        help=f"{_weight_kinds()}, or a FILE of weights; default {IMAGENET} "
        f"(demo data: {DEMO_WEIGHTS})",
    )
    group.add_argument(
        "--size", type=int, help="input height and width in pixels; default is the method's"
    )
    group.add_argument(
        "--geometry",
        choices=GEOMETRIES,
        help="how images become the input; default is the method's",
    )
    add_exclusion_argument(group)
    add_doubtful_argument(group)
    _add_length_arguments(group)
    group.add_argument("--seed", type=int, default=0, help="of all random choices; default 0")
    group.add_argument(
        "--bits", type=int, help="significant bits of 16-bit images, such as 12 for a 12-bit camera"
    )
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU if there is one"
    )
    group.add_argument(
        "--folds",
        type=int,
        help=f"train {DEFAULT_FOLDS + 2} times instead of once: on all good images, without each "
        f"of {DEFAULT_FOLDS} blocks of them, whose scores then set the threshold, and once for "
        f"comparison. 0: train once and hold out a fifth. Default {DEFAULT_FOLDS} below "
        f"{HOLD_OUT_FROM} good images, 0 from there on",
    )


def _add_length_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags that say how long to train."""
    group.add_argument("--steps", type=int, help="optimiser steps in all")
    group.add_argument("--epochs", type=int, help="passes over the images, instead of --steps")
    group.add_argument(
        "--max-minutes",
        type=float,
        help="stop after so many minutes; the same command continues from there",
    )
    group.add_argument(
        "--again", action="store_true", help="train also if the checkpoint is of this training"
    )


def add_method_arguments(
    parser: argparse.ArgumentParser, method: str, marker: str = "flag"
) -> None:
    """Add the flags of one method, which its settings declare by `marker`. Raises TrainError."""
    from flawline.train.method import flag_fields, resolve_method

    settings = resolve_method(method).Settings
    group = parser.add_argument_group(f"options of {method}")
    for field in flag_fields(settings, marker):
        group.add_argument(
            _flag(field.name),
            type=_argument_type(field_parser(settings, field.name)),
            help=field.metadata["help"].replace("%", "%%"),
        )


def parse_arguments(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    marker: str = "flag",
    default_method: Callable[[], str] = lambda: DEFAULT_METHOD,
) -> argparse.Namespace:
    """Parse a command line with the flags of the method that it names.

    `parser` has a flag --method, and `default_method` chooses the method without it; `marker` is
    that of `flag_fields`. --help without --method lists the flags of every method, if torch is
    installed. Raises TrainError for an unknown method and for a flag of another method.
    """
    first = Parser(prog=parser.prog, add_help=False)
    first.add_argument("--method")
    first.add_argument("-h", "--help", action="store_true")
    given, _ = first.parse_known_args(argv)
    if given.help and given.method is None:
        parser.epilog = f"{_help_of_methods(marker)}\n\n{parser.epilog or ''}"
    else:
        method = given.method or default_method()
        parser.set_defaults(method=method)
        add_method_arguments(parser, method, marker)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(parser, args.method, unknown, marker)
    return args


def _help_of_methods(marker: str) -> str:
    """List the flags of every method. Two methods may share one, so each has its own list."""
    lists = []
    for method in METHODS:
        parser = Parser(prog="", add_help=False, usage=argparse.SUPPRESS, verbosity=False)
        try:
            add_method_arguments(parser, method, marker)
        except ModuleNotFoundError:
            return "The options of the methods are listed where torch is installed."
        lists.append(parser.format_help().strip())
    return "\n\n".join(lists)


def given_options(args: argparse.Namespace, method: str) -> dict[str, Any]:
    """Return the parsed flags of a method that were given, by the names of its settings."""
    from flawline.train.method import flag_fields, resolve_method

    options: dict[str, Any] = {}
    for field in flag_fields(resolve_method(method).Settings):
        value = getattr(args, field.name, None)
        if value is not None:
            options[field.name] = value
    return options


def recipe_from_arguments(args: argparse.Namespace, method: str, data: Path) -> Recipe:
    """Return the recipe of a method on a data set, as the parsed flags say. Raises TrainError."""
    from flawline.train.recipe import plan

    return plan(
        method,
        data,
        backbone=args.backbone,
        size=args.size,
        geometry=args.geometry,
        options=given_options(args, method),
        weights=args.weights,
        steps=args.steps,
        epochs=args.epochs,
        max_minutes=args.max_minutes,
        seed=args.seed,
        bit_depth=args.bits,
        device=args.device,
        folds=args.folds,
        tiles=tiles_of(args),
        area=area_of(args),
        fixture=fixture_of_flags(args),
        excluded=excluded_of(args, data),
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _argument_type(parse: Any) -> Any:
    """Wrap a field's parser, so that argparse reports its own message."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is {error}") from error

    return convert


def _refuse(
    parser: argparse.ArgumentParser, method: str, unknown: Sequence[str], marker: str
) -> None:
    """Report unknown words of the command line, with the methods that have such a flag."""
    from flawline.train.method import flag_fields, resolve_method

    flag = unknown[0].split("=")[0]
    owners = []
    for name in METHODS:
        settings = resolve_method(name).Settings
        flags = [_flag(field.name) for field in flag_fields(settings, marker)]
        if flag in flags:
            owners.append(name)
    if owners:
        raise TrainError(
            f"{flag} is no option of {method}; it belongs to --method {' or '.join(owners)}"
        )
    parser.error(f"{UNKNOWN_FLAGS}{' '.join(unknown)}")


def _parser() -> Parser:
    parser = Parser(
        prog=program_of("train"),
        description="Train a detector on images of good parts.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        required=True,
        help="MVTec-like folder, or a folder of good images",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("runs/checkpoint.pt"),
        help="the checkpoint to write; default %(default)s",
    )
    parser.add_argument(
        "--method", default=DEFAULT_METHOD, help=f"one of {', '.join(METHODS)}; default %(default)s"
    )
    add_training_arguments(parser)
    add_frame_arguments(parser)
    return parser


def _run(argv: Sequence[str] | None) -> None:
    args = parse_arguments(_parser(), argv)
    from flawline.train.training import train

    recipe = recipe_from_arguments(args, args.method, args.data)
    train(recipe, args.out, args.again, lists_doubtful(args, args.out))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(program_of("train"), lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
