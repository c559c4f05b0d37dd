"""The command lines of the studies: their parser, and the flags that several of them share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline.benchmarks.train_bundle import SET_HERE, require_not_set_here
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import run_command
from flawline.train import METHODS
from flawline.train.backbones import BACKBONES, DEFAULT_BACKBONE
from flawline.train.backbones.facts import RANDOM, WEIGHT_KINDS
from flawline.train.fit import DEFAULT_METHOD


def study_parser(study: str, description: str | None) -> Parser:
    """Return the parser of a study, named after its folder; the description is printed as it is."""
    return Parser(
        prog=f"benchmarks.studies.{study}",
        description=description,
    )


def add_out_argument(parser: argparse._ActionsContainer, default: str) -> None:
    """Add --out, the files of the results without their suffix; `default` is a name in results/."""
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("results") / default,
        help="results without suffix; default %(default)s",
    )


def run_with_build_flags(
    parser: Parser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace, Sequence[str]], None],
    set_here: Sequence[str] = SET_HERE,
) -> int:
    """Run a study that gives the flags that its parser does not have to `flawline build`.

    Returns the exit status. Flags that the study sets, `set_here`, are refused.
    """

    def work() -> None:
        args, flags = parser.parse_known_args(argv)
        require_not_set_here(flags, set_here)
        run(args, flags)

    return run_command(parser.prog, work)


@dataclass(frozen=True)
class NetworkOptions:
    """The network that a study measures.

    `size` is height and width of the input, None for the method's default. `weights` are the
    backbone's, as for `train.fit`. `data` is a data set whose good images are used; None renders
    the demo's board. `settings` are NAME=VALUE of the method.
    """

    method: str
    backbone: str
    size: int | None
    weights: str
    data: Path | None
    seed: int
    settings: tuple[str, ...] = ()


def add_network_arguments(
    parser: argparse.ArgumentParser, backbone: str = DEFAULT_BACKBONE, size: int | None = None
) -> None:
    """Add the flags that `network_options` reads. `backbone` and `size` are their defaults."""
    size_help = "is the method's" if size is None else size
    parser.add_argument("--method", default=DEFAULT_METHOD, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--backbone", default=backbone, help=f"one of {', '.join(BACKBONES)}")
    parser.add_argument(
        "--size",
        type=int,
        default=size,
        help=f"input height and width; default {size_help}",
    )
    parser.add_argument(
        "--weights",
        default=RANDOM,
        help=f"{', '.join(WEIGHT_KINDS)} or a FILE; speed does not depend on it",
    )
    parser.add_argument(
        "--data", type=path_argument, help="images to compare on; default the demo's board"
    )
    parser.add_argument("--seed", type=int, default=0)


def network_options(args: argparse.Namespace) -> NetworkOptions:
    """Return the options that the flags of `add_network_arguments` say."""
    return NetworkOptions(
        method=args.method,
        backbone=args.backbone,
        size=args.size,
        weights=args.weights,
        data=args.data,
        seed=args.seed,
        settings=tuple(getattr(args, "set", ())),
    )
