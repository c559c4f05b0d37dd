"""flawline build: from images or a checkpoint to a bundle, and to this machine's engine.

Also `python -m export.build`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flawline.cameras.bit_depth import bit_depth_remedy
from flawline.commands import command_line, program_of
from flawline.export import ExportError
from flawline.export.graphs_of_bundle import add_default_graphs, add_missing_graph
from flawline.export.local_engine import (
    NO_ENGINE,
    add_build_arguments,
    log_threshold_remedy,
    needs_own_threshold,
    prepare_local_engine,
    read_build_options,
)
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.engines import ENGINES, add_engine_arguments, engine_options, missing
from flawline.runtime.engines.auto import cache_and_threads
from flawline.runtime.engines.choice import record_path, require_writable
from flawline.runtime.files import make_writable
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.train import METHODS, TrainError
from flawline.train.data.demo import DEMO_PRODUCT, DEMO_WEIGHTS
from flawline.train.fit import (
    DEFAULT_METHOD,
    add_training_arguments,
    parse_arguments,
    recipe_from_arguments,
)

if TYPE_CHECKING:
    from flawline.train.checkpoint import Checkpoint

PROGRAM = program_of("build")
EXAMPLES = (
    "flawline build --method simplenet --data /data/bottle           train and build a bundle",
    "flawline build --checkpoint C --data /data/bottle --out B       build a bundle",
    "flawline build --bundle B --engine tensorrt                     build the engine",
    "flawline build --bundle B --precision int8 --data /data/bottle  add a graph",
)
# What Ctrl-C prints: while a bundle is built, a graph is added to it, or nothing but an engine is
# prepared.
BUILD_INTERRUPTED = "interrupted; a bundle is written whole or not at all"
GRAPH_INTERRUPTED = "interrupted; a graph is added whole or not at all"
ENGINE_INTERRUPTED = "interrupted; the bundle is unchanged"
# Where bundles are written without --out.
DEFAULT_OUT = Path("bundles")
# Where the demo data is written if neither images nor a checkpoint are given.
DEMO_FOLDER = Path("demo/data")


def _first_pass(words: Sequence[str]) -> argparse.Namespace:
    """Find the flags that decide what the command does; --help is left to the second pass."""
    parser = Parser(prog=PROGRAM, add_help=False)
    for flag in ("--bundle", "--checkpoint", "--precision"):
        parser.add_argument(flag)
    return parser.parse_known_args(words)[0]


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line with the flags that have a meaning in it.

    A bundle that exists has nothing to train or to build, and a checkpoint nothing to train. Raises
    TrainError for a wrong method, or for a flag of another method.
    """
    given = _first_pass(words)
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
        return _parse_rest(parser, words, "--bundle builds and trains nothing")
    _add_bundle_arguments(parser)
    if given.checkpoint is not None:
        parser.add_argument("--method", help="the method of the checkpoint; may be left out")
        return _parse_rest(parser, words, "--checkpoint trains nothing")
    parser.add_argument(
        "--method", default=DEFAULT_METHOD, help=f"one of {', '.join(METHODS)}; default %(default)s"
    )
    parser.add_argument(
        "--save-checkpoint",
        type=path_argument,
        help="where to save the trained checkpoint; default runs/",
    )
    add_training_arguments(parser)
    return parse_arguments(parser, words)


def _parse_rest(parser: Parser, words: Sequence[str], reason: str) -> argparse.Namespace:
    """Parse the command line, and give the reason why flags of other modes are refused."""
    args, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)} ({reason})")
    return args


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
        "--outputs",
        choices=GRAPH_OUTPUTS,
        default="map",
        help="score: leave out the map, its upsampling and its smoothing",
    )
    group.add_argument(
        "--static-batch",
        action="store_true",
        help="one image per call, for compilers that need static shapes",
    )


@dataclass(frozen=True)
class _Built:
    """A new bundle, the checkpoint that it was built from, and its data set."""

    bundle: Bundle
    checkpoint: Checkpoint
    data: Path


def _build(args: argparse.Namespace, words: Sequence[str]) -> _Built:
    """Build a bundle from a checkpoint, which is trained if none is given."""
    from flawline.export.assemble import ExportOptions, build_bundle
    from flawline.train.checkpoint import load_checkpoint
    from flawline.train.data.images import TRAIN_WITH_BITS

    path = args.checkpoint
    data = args.data
    if path is None:
        path, data = _train(args)
    checkpoint = load_checkpoint(path)
    method = checkpoint.method
    if checkpoint.training is not None:
        raise TrainError(
            f"checkpoint {path} is of an unfinished training; continue it with the command that "
            f"trained it"
        )
    if args.method is not None and args.method != method.name:
        raise TrainError(f"checkpoint {path} holds {method.name}; leave --method out")
    if data is None:
        # A checkpoint stays on the machine that trains, so that it can name the folder.
        data = Path(checkpoint.provenance["data"])
    out = args.out
    if out is None:
        out = DEFAULT_OUT / f"{method.name}-{data.name}"
    options = ExportOptions(
        false_alarm_rate=args.false_alarm_rate,
        outputs=GRAPH_OUTPUTS[: GRAPH_OUTPUTS.index(args.outputs) + 1],
        static_batch=1 if args.static_batch else None,
        allow_unfinished=args.allow_unfinished,
    )
    with bit_depth_remedy(TRAIN_WITH_BITS):
        bundle = build_bundle(checkpoint, data, out, options, words)
    # What follows adds to the bundle, which is usable from here on.
    log(f"wrote bundle {bundle.path}")
    return _Built(bundle, checkpoint, data)


def _require_writable(out: Path) -> None:
    """Raise ExportError if a folder cannot be written, before minutes of training and judging."""
    try:
        make_writable(out.parent)
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error


def _train(args: argparse.Namespace) -> tuple[Path, Path]:
    """Train on the given data, or on the demo data; return the checkpoint and the data set."""
    from flawline.train.training import train

    data = args.data
    if data is None:
        data = DEMO_FOLDER / DEMO_PRODUCT
        log(f"no --checkpoint and no --data: training {args.method} on the demo data {data}")
        _write_demo()
    else:
        log(f"no --checkpoint: training {args.method} on {data}")
    recipe = recipe_from_arguments(args, args.method, data)
    if args.data is None and args.weights is None:
        log(f"the demo data is trained with --weights {DEMO_WEIGHTS}, which needs no download")
        recipe = replace(recipe, weights=DEMO_WEIGHTS)
    checkpoint = args.save_checkpoint
    if checkpoint is None:
        checkpoint = Path("runs") / f"{args.method}-{data.name}.pt"
    return train(recipe, checkpoint, args.again), data


def _write_demo() -> None:
    from flawline.train.data.demo import write_demo
    from flawline.train.progress import Bars

    with Bars() as bars:
        write_demo(DEMO_FOLDER, progress=lambda done, total: bars("demo data", done, total))


def _run(words: Sequence[str]) -> None:
    args = _parse(words)
    options = engine_options(args)
    # Read before the work begins, so that a flag that the engine does not have is reported at once.
    build_options = read_build_options(args)
    data = args.data
    built = None
    if args.bundle is not None:
        bundle = read_bundle(args.bundle)
        if args.engine == "auto":
            # Also before a graph is added, which takes minutes.
            require_writable(record_path(bundle, options))
    else:
        _require_writable(args.out or DEFAULT_OUT / "bundle")
        built = _build(args, words)
        bundle = built.bundle
        data = built.data
    if options.precision != "auto":
        bundle = add_missing_graph(bundle, options.precision, data)
    elif args.bundle is None:
        bundle = add_default_graphs(bundle, data)
    if args.engine != NO_ENGINE:
        prepare_local_engine(bundle, args.engine, options, build_options, data)
    if needs_own_threshold(bundle, args.engine, options):
        _set_own_threshold(bundle, args, built)
    _log_next_step(bundle, data, args)


def _set_own_threshold(bundle: Bundle, args: argparse.Namespace, built: _Built | None) -> None:
    """Set the threshold with the scores of a lossy engine that was named, or log how to do it.

    The images that set a threshold are known while a bundle is built from them.
    """
    if built is None or missing(args.engine) is not None:
        log_threshold_remedy(bundle, args.engine, engine_options(args))
        return
    from flawline.export.own_threshold import set_own_threshold
    from flawline.train.data.images import TRAIN_WITH_BITS

    with bit_depth_remedy(TRAIN_WITH_BITS):
        set_own_threshold(
            bundle,
            built.checkpoint,
            built.data,
            args.engine,
            engine_options(args),
            args.false_alarm_rate,
        )


def _log_next_step(bundle: Bundle, data: Path | None, args: argparse.Namespace) -> None:
    camera = "CAMERA"
    if data is not None:
        test = data / "test"
        camera = str(test if test.is_dir() else data)
    words: list[str | Path] = ["--bundle", bundle.path, "--camera", camera]
    # A plan for another machine cannot run here.
    if args.engine in ENGINES and missing(args.engine) is None:
        words += ["--engine", args.engine]
        if args.precision != "auto":
            words += ["--precision", args.precision]
    command = command_line("stream", *words, *cache_and_threads(engine_options(args)))
    log(f"bundle {bundle.path}; run it: {command}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 for a mistake of the user."""
    words = sys.argv[1:] if argv is None else list(argv)
    # A wrong command line is reported, and ends the process.
    given = _first_pass(words)
    interrupted = BUILD_INTERRUPTED
    if given.bundle is not None:
        interrupted = ENGINE_INTERRUPTED if given.precision in (None, "auto") else GRAPH_INTERRUPTED
    return run_command(PROGRAM, lambda: _run(words), interrupted)


if __name__ == "__main__":
    sys.exit(main())
