"""flawline build: from images or a checkpoint to a bundle, and to this machine's engine.

Also `python -m export.build`.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flawline.cameras.bit_depth import bit_depth_remedy
from flawline.commands import command_line
from flawline.export import ExportError
from flawline.export.build_arguments import PROGRAM, first_pass, parse
from flawline.export.graphs_of_bundle import add_default_graphs, add_missing_graph
from flawline.export.local_engine import (
    NO_ENGINE,
    log_threshold_remedy,
    needs_own_threshold,
    prepare_local_engine,
    read_build_options,
)
from flawline.extras import EXTRA_OF_PACKAGE, missing_package
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import log, run_command
from flawline.runtime.engines import ENGINES, engine_options, missing, require_precision
from flawline.runtime.engines.auto import options_of_machine
from flawline.runtime.engines.choice import record_path, require_writable
from flawline.runtime.files import make_writable
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.runtime.signing.arguments import trusted_keys
from flawline.runtime.threshold import Rates
from flawline.train import TrainError
from flawline.train.data.demo import DEMO_PRODUCT, DEMO_WEIGHTS
from flawline.train.data_arguments import lists_doubtful
from flawline.train.fit import recipe_from_arguments

if TYPE_CHECKING:
    from flawline.train.checkpoint import Checkpoint

# What Ctrl-C prints: while a bundle is built, a graph is added to it, or nothing but an engine is
# prepared.
BUILD_INTERRUPTED = "interrupted; a bundle is written whole or not at all"
GRAPH_INTERRUPTED = "interrupted; a graph is added whole or not at all"
ENGINE_INTERRUPTED = "interrupted; the bundle is unchanged"
# Where bundles are written without --out.
DEFAULT_OUT = Path("bundles")
# Where the demo data is written if neither images nor a checkpoint are given.
DEMO_FOLDER = Path("demo/data")


@dataclass(frozen=True)
class _Built:
    """A new bundle, the checkpoint that it was built from, and its data set."""

    bundle: Bundle
    checkpoint: Checkpoint
    data: Path


def _build(args: argparse.Namespace, words: Sequence[str]) -> _Built:
    """Build a bundle from a checkpoint, which is trained if none is given."""
    from flawline.export.assemble import ExportOptions, build_bundle
    from flawline.export.graphs.to_onnx import choose_outputs
    from flawline.train.checkpoint import load_checkpoint
    from flawline.train.data.images import TRAIN_WITH_BITS
    from flawline.train.method import resolve_method

    path = args.checkpoint
    data = args.data
    outputs = _outputs(args)
    if path is None:
        # Reported before minutes of training.
        choose_outputs(resolve_method(args.method), outputs)
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
        out = DEFAULT_OUT / f"{method.name}-{_given_name(data)}"
    options = ExportOptions(
        false_alarm_rate=args.false_alarm_rate,
        review_rate=args.review_rate,
        outputs=outputs,
        static_batch=1 if args.static_batch else None,
        allow_unfinished=args.allow_unfinished,
        source=args.source,
        describe=args.checkpoint is not None,
    )
    with bit_depth_remedy(TRAIN_WITH_BITS):
        bundle = build_bundle(checkpoint, data, out, options, words)
    # What follows adds to the bundle, which is usable from here on.
    log(f"wrote bundle {bundle.path}")
    return _Built(bundle, checkpoint, data)


def _outputs(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the outputs up to the named one, or None for those of the method."""
    if args.outputs is None:
        return None
    return GRAPH_OUTPUTS[: GRAPH_OUTPUTS.index(args.outputs) + 1]


def _given_name(data: Path) -> str:
    """Return the name of a folder, of a link its own; `.` is the current folder."""
    return Path(os.path.abspath(data)).name


def _require_writable(out: Path) -> None:
    """Raise ExportError if a folder cannot be written, before minutes of training and judging."""
    try:
        make_writable(out.parent)
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error


def _refuse_parts_of_frames(args: argparse.Namespace) -> None:
    """Refuse, before the training, what the export would refuse. Raises ExportError."""
    parts = (args.tiles, args.include, args.exclude, args.fixture)
    if args.source is not None and any(parts):
        from flawline.export.assemble import SOURCE_WITH_PARTS

        raise ExportError(SOURCE_WITH_PARTS)


def _train(args: argparse.Namespace) -> tuple[Path, Path]:
    """Train on the given data, or on the demo data; return the checkpoint and the data set."""
    from flawline.export.exported import require_source_of_data
    from flawline.export.good_scores import require_rate_of_training
    from flawline.train.training import train

    data = args.data
    if data is None:
        data = DEMO_FOLDER / DEMO_PRODUCT
        log(f"no --checkpoint and no --data: training {args.method} on the demo data {data}")
        _write_demo()
    else:
        log(f"no --checkpoint: training {args.method} on {data}")
    _refuse_parts_of_frames(args)
    recipe = recipe_from_arguments(args, args.method, data)
    if args.data is None and args.weights is None:
        log(f"the demo data is trained with --weights {DEMO_WEIGHTS}, which needs no download")
        recipe = replace(recipe, weights=DEMO_WEIGHTS)
    # Minutes of training would come first.
    rates = Rates(args.false_alarm_rate, args.review_rate)
    require_rate_of_training(rates, recipe.data, recipe.folds, recipe.excluded)
    if args.source is not None:
        require_source_of_data(args.source, recipe.data, recipe.bit_depth, recipe.excluded)
    checkpoint = args.save_checkpoint
    if checkpoint is None:
        checkpoint = Path("runs") / f"{args.method}-{_given_name(data)}.pt"
    return train(recipe, checkpoint, args.again, lists_doubtful(args, checkpoint)), data


def _write_demo() -> None:
    from flawline.train.data.demo import write_demo
    from flawline.train.progress import Bars

    with Bars() as bars:
        write_demo(DEMO_FOLDER, progress=lambda done, total: bars("demo data", done, total))


def _run(words: Sequence[str]) -> None:
    args = parse(words)
    options = engine_options(args)
    # Read before the work begins, so that a flag that the engine does not have is reported at once.
    build_options = read_build_options(args)
    if args.engine in ENGINES and missing(args.engine) is None and options.precision != "auto":
        require_precision(args.engine, options.precision)
    data = args.data
    built = None
    if args.bundle is not None:
        bundle = read_bundle(args.bundle, trusted_keys(args))
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
            Rates(args.false_alarm_rate, args.review_rate),
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
    command = command_line("stream", *words, *options_of_machine(engine_options(args)))
    log(f"bundle {bundle.path}; run it: {command}")


def _run_or_name_the_other_way(words: Sequence[str], given: argparse.Namespace) -> None:
    """Run the command. A missing package is named with what the command does without it."""
    try:
        _run(words)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if given.bundle is not None or EXTRA_OF_PACKAGE.get(package) != "train":
            raise
        other_way = "--bundle BUNDLE prepares an engine without it"
        raise ExportError(missing_package(package, other_way)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 for a mistake of the user."""
    words = sys.argv[1:] if argv is None else list(argv)
    # A wrong command line is reported, and ends the process.
    given = first_pass(words)
    interrupted = BUILD_INTERRUPTED
    if given.bundle is not None:
        interrupted = ENGINE_INTERRUPTED if given.precision in (None, "auto") else GRAPH_INTERRUPTED
    return run_command(PROGRAM, lambda: _run_or_name_the_other_way(words, given), interrupted)


if __name__ == "__main__":
    sys.exit(main())
