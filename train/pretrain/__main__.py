"""python -m train.pretrain: train a backbone's weights on procedural textures."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.options import field_parser
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.train.pretrain.schedule import PretrainingSettings

INTERRUPTED = "interrupted; the same command continues from the last saved step"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    if argv is None:
        argv = sys.argv[1:]
    words = list(argv)
    return run_command(parser.prog, lambda: _run(parser, words), INTERRUPTED)


def _parser() -> Parser:
    parser = Parser(
        prog="train.pretrain",
        description="Train a backbone's weights on procedural textures, from formulas alone.",
    )
    parser.add_argument(
        "--images", type=int, default=500_000, help="images to see in all; default %(default)s"
    )
    for field in dataclasses.fields(PretrainingSettings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field_parser(PretrainingSettings, field.name),
            default=field.default,
            help=f"{field.metadata['help']}; default %(default)s",
        )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one"
    )
    parser.add_argument("--threads", type=int, help="of the CPU; 1 is best while other work runs")
    parser.add_argument(
        "--out", type=path_argument, help="weights to write; default runs/BACKBONE-texture.pth"
    )
    parser.add_argument(
        "--picture", type=path_argument, help="only draw the images that are trained on, as one PNG"
    )
    return parser


def _run(parser: Parser, argv: Sequence[str]) -> None:
    args = parser.parse_args(argv)
    _check(parser, args)
    if args.picture is not None:
        from flawline.train.pretrain.textures.sheet import write_sheet

        write_sheet(args.picture, args.classes, args.seed)
        return
    _pretrain(args, command=f"python -m train.pretrain {shlex.join(argv)}")


def _check(parser: Parser, args: argparse.Namespace) -> None:
    for name in ("images", "batch", "classes", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value} is not above 0")
    smallest = _smallest_size(args.backbone)
    if min(args.size, args.final_size) < smallest:
        parser.error(f"--size and --final-size must be {smallest} or more")
    if not 0 <= args.seed < 2**31:
        parser.error(f"--seed {args.seed} is not from 0 to {2**31 - 1}")


def _smallest_size(backbone: str) -> int:
    """Return the height and width from which on every trained level has several positions."""
    from flawline.train.backbones import backbone_facts
    from flawline.train.backbones.facts import PRETRAINED_LEVELS

    strides = []
    for number, level in backbone_facts(backbone).levels.items():
        if number <= max(PRETRAINED_LEVELS):
            strides.append(level.stride)
    return 2 * max(strides)


def _pretrain(args: argparse.Namespace, command: str) -> None:
    import torch

    from flawline.train.loop import choose_device
    from flawline.train.pretrain.training import pretrain
    from flawline.train.pretrain.weights import write_weights
    from flawline.train.progress import Bars

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    values = {}
    for field in dataclasses.fields(PretrainingSettings):
        values[field.name] = getattr(args, field.name)
    settings = PretrainingSettings(**values)
    device = choose_device(args.device)
    out = args.out or Path("runs") / f"{settings.backbone}-texture.pth"
    with Bars() as bars:
        training = pretrain(settings, args.images, device, out.with_suffix(".state.pt"), bars)
    write_weights(training, out, command)
    log(f"weights {out}")


if __name__ == "__main__":
    sys.exit(main())
