"""Teach a detector on the inspecting machine, from good parts in front of its camera.

Also `python -m runtime.teach`. What a method learns in closed form is computed from the features
of a bundle's own graph, and written to a new bundle with its thresholds. Needs onnx and no torch.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.commands import command_line, program_of
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.bundle_files import may_be_replaced, require_bundle_folder
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.engines import add_engine_arguments, engine_options
from flawline.runtime.files import make_writable
from flawline.runtime.replaced import install_bundle, undo_install
from flawline.runtime.signals import uninterrupted
from flawline.runtime.teaching.appendable import require_appendable
from flawline.runtime.teaching.run import TeachOptions, append, teach
from flawline.runtime.threshold import DEFAULT_RATE, Rates, check_range, describe_needs

EXAMPLES = (
    "flawline teach bundles/part --source usb://0 --images 200 --out bundles/part-new",
    "flawline teach bundles/part --append false-rejects/ --good good-parts/ --out bundles/part-new",
    "flawline teach bundles/part --install bundles/part-new",
    "flawline teach bundles/part --undo",
)
# What the command does, one of which is given.
MODES = ("source", "append", "install", "undo")


def _run(args: argparse.Namespace, words: Sequence[str]) -> None:
    if args.undo:
        with uninterrupted():
            log(undo_install(args.bundle))
    elif args.install is not None:
        with uninterrupted():
            log(install_bundle(args.bundle, args.install))
    else:
        _teach(args, words)


def _teach(args: argparse.Namespace, words: Sequence[str]) -> None:
    check_range(args.false_alarm_rate)
    check_range(args.review_rate, "review rate")
    require_bundle_folder(args.bundle, args.source or args.append)
    bundle = read_bundle(args.bundle)
    if args.append is not None:
        require_appendable(bundle)
    if args.out.resolve() == args.bundle.resolve():
        raise BundleError(
            f"--out {args.out} is the bundle that is taught, which could not be brought back; "
            f"choose another --out, and put that in place with --install"
        )
    _require_writable(args.out)
    options = TeachOptions(
        out=args.out,
        rates=Rates(args.false_alarm_rate, args.review_rate),
        engine=args.engine,
        engine_options=engine_options(args),
        images=args.images,
        folds=args.folds,
        bank_limit=args.bank_limit,
        accept_size=args.accept_size,
        words=words,
    )
    if args.append is not None:
        new = append(bundle, args.append, args.good, options)
    else:
        new = teach(bundle, args.source, options)
    log(f"put it in place: {command_line('teach', args.bundle, '--install', new.path)}")


def _require_writable(out: Path) -> None:
    """Raise BundleError if a bundle cannot be written, before pictures are taken."""
    if not may_be_replaced(out):
        raise BundleError(f"{out} exists and is not a bundle; choose another --out")
    try:
        make_writable(out.parent)
    except OSError as error:
        raise BundleError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("teach"),
        description="Teach a detector on the box from good parts, without torch.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "bundle",
        type=path_argument,
        help="the bundle whose backbone is used; with --install and --undo, the one in use",
    )
    parser.add_argument(
        "--source",
        type=text_argument,
        metavar="CAMERA",
        help="teach from this camera or folder, which shows good parts only; they set the "
        "thresholds alone where the method cannot be taught",
    )
    parser.add_argument(
        "--append",
        type=text_argument,
        metavar="FOLDER",
        help="add these good parts, which were rejected, to what the bundle has learned, or exempt "
        "their patches where its method cannot be taught",
    )
    parser.add_argument(
        "--install",
        type=path_argument,
        metavar="NEW",
        help="put this bundle in the place of the one in use, which is kept",
    )
    parser.add_argument(
        "--undo", action="store_true", help="bring the bundle back that was in use before"
    )
    parser.add_argument("--out", type=path_argument, help="the bundle to write")
    parser.add_argument("--images", type=int, help="pictures at most of --source or --good")
    _add_learning_arguments(parser)
    add_engine_arguments(parser)
    return parser


def _add_learning_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--good",
        type=text_argument,
        metavar="CAMERA",
        help="with --append, the camera or folder with other good parts, which set the thresholds",
    )
    parser.add_argument(
        "--bank-limit",
        type=int,
        metavar="ROWS",
        help="with --append, the most rows that the bank may have; default: twice what it has, or "
        "512 more exempted patches",
    )
    parser.add_argument(
        "--folds",
        type=int,
        help="with --source, how many blocks of the pictures are left out in turn to set the "
        "thresholds; 0 holds out a fifth; default as in flawline train",
    )
    parser.add_argument(
        "--accept-size",
        action="store_true",
        help="where --source sets the thresholds alone, take pictures whose size is far from those "
        "of the training; a stream then needs this flag, too",
    )
    needs = describe_needs().replace("%", "%%")
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        help=f"share of good parts rejected; default {DEFAULT_RATE}, or the smallest that the "
        f"pictures support. Pictures that it takes: {needs}",
    )
    parser.add_argument(
        "--review-rate",
        type=float,
        help="share of good parts reviewed by a person or rejected, above the false-alarm rate; "
        "default: no part is reviewed",
    )


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that exclude or need each other; argparse ends the process."""
    given = [mode for mode in MODES if getattr(args, mode) not in (None, False)]
    if len(given) != 1:
        flags = ", ".join(f"--{mode}" for mode in MODES)
        parser.error(f"give one of {flags}")
    teaches = given[0] in ("source", "append")
    if teaches and args.out is None:
        parser.error(f"--{given[0]} needs --out, the bundle to write")
    if not teaches and args.out is not None:
        parser.error(f"--{given[0]} writes no other bundle; leave --out out")
    if (args.good is not None) != (given[0] == "append"):
        parser.error("--append needs --good, and no other mode has it")
    if args.bank_limit is not None and given[0] != "append":
        parser.error("--bank-limit belongs to --append")
    if args.bank_limit is not None and args.bank_limit < 1:
        parser.error("--bank-limit must be at least 1")
    if args.accept_size and given[0] != "source":
        parser.error("--accept-size belongs to --source")
    if args.folds is not None and given[0] != "source":
        parser.error("--folds belongs to --source")
    if args.folds is not None and (args.folds < 0 or args.folds == 1):
        parser.error(f"--folds {args.folds} is neither 0 nor at least 2")
    if args.images is not None and args.images < 1:
        parser.error("--images must be at least 1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    args = parser.parse_args(words)
    _check(parser, args)
    return run_command(
        parser.prog,
        lambda: _run(args, words),
        interrupted="interrupted; a bundle is written whole or not at all",
    )


if __name__ == "__main__":
    sys.exit(main())
