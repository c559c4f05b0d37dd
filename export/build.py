"""python -m export.build: from images or a checkpoint to a bundle that was proven, and to its engine.

python -m export.build --method simplenet --data /data/bottle
python -m export.build --bundle B --engine tensorrt     on the box that will run it; needs no torch
python -m export.build --bundle B --precision int8      adds a graph; needs onnx, not torch
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.cameras import CameraError
from flawline.export.machine import add_plan_arguments, prepare_engine
from flawline.export.parity import ExportError
from flawline.runtime.bundle import OUTPUTS, Bundle, BundleError, read_bundle
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.threshold import CalibrationError
from flawline.train import METHODS, TrainError, require_extra
from flawline.train.data.layouts import DataError


def make_bundle(args: argparse.Namespace, command: Sequence[str]) -> Bundle:
    """Train where no checkpoint is given, then pack."""
    from flawline.export.assemble import Order, pack
    from flawline.train.checkpoint import load_checkpoint

    if args.method not in METHODS:
        raise TrainError(f"method {args.method!r} is unknown; known: {', '.join(METHODS)}")
    method, provenance, training = load_checkpoint(args.checkpoint or _train(args))
    if training is not None:
        raise TrainError(
            f"checkpoint {args.checkpoint} is of a run that was not finished; repeat train.fit to go on"
        )
    if method.name != args.method:
        raise TrainError(
            f"checkpoint {args.checkpoint} holds {method.name}; pass --method {method.name}"
        )
    args.data = args.data or Path(provenance["data"])
    out = args.out or Path("bundles") / f"{method.name}-{args.data.name}"
    outputs = OUTPUTS[: OUTPUTS.index(args.outputs) + 1]
    order = Order(
        args.false_alarm_rate, args.parity_images, outputs, 1 if args.static_batch else None
    )
    return pack(method, provenance, args.data, out, order, command)


def _train(args: argparse.Namespace) -> Path:
    """No checkpoint was given: train one, on the given data or on the demo data."""
    from flawline.train.data.demo import write_demo
    from flawline.train.fit import recipe_from_arguments
    from flawline.train.progress import Bars
    from flawline.train.training import train

    if args.data is None:
        demo = Path("demo/data")
        args.data = demo / "bearing"
        log(f"no --checkpoint and no --data: training {args.method} on the demo data {args.data}")
        bars = Bars()
        write_demo(demo, progress=lambda done, total: bars("demo data", done, total))
        if args.weights is None:
            log("the demo data is trained with --weights texture, which needs no download")
            args.weights = "texture"
    else:
        log(f"no --checkpoint: training {args.method} on {args.data}")
    checkpoint = args.save_checkpoint or Path("runs") / f"{args.method}-{args.data.name}.pt"
    return train(recipe_from_arguments(args, args.method, args.data), checkpoint)


def _complete(bundle: Bundle, args: argparse.Namespace) -> Bundle:
    """The bundle with the graph that was asked for. A new one gets FP16's unasked, for a box that builds a plan; where
    that does not keep the decisions it is left out, aloud."""
    wanted = args.precision or (None if args.bundle else "fp16")
    if wanted is None or PRECISIONS[wanted].file is None or wanted in bundle.precisions:
        return bundle
    require_extra("flawline-build", "onnx", "tqdm")
    from flawline.export.scoring import add_precision

    try:
        return add_precision(bundle, wanted, args.data, args.parity_images)
    except ExportError as error:
        if args.precision:
            raise
        log(
            f"note: the bundle gets no FP16 graph ({error}); on a GPU build its plan with --precision fp32"
        )
        return bundle


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flawline-build", description="Export a detector to a bundle and its engine."
    )
    parser.add_argument("--method", default="simplenet", help=f"one of {', '.join(METHODS)}")
    parser.add_argument(
        "--checkpoint", type=Path, help="from train.fit; without it one is trained first"
    )
    parser.add_argument(
        "--save-checkpoint", type=Path, help="where to keep the one that is trained; default runs/"
    )
    parser.add_argument(
        "--bundle", type=Path, help="work on this bundle: only --precision and --engine are done"
    )
    parser.add_argument(
        "--data", type=Path, help="the images: good ones set the threshold, test ones prove parity"
    )
    parser.add_argument("--out", type=Path, help="the bundle to write; default bundles/METHOD-DATA")
    parser.add_argument(
        "--false-alarm-rate", type=float, help="share of good parts rejected; default 0.01"
    )
    parser.add_argument(
        "--parity-images", type=int, default=200, help="test images to prove; default %(default)s"
    )
    parser.add_argument(
        "--outputs",
        choices=OUTPUTS,
        default="map",
        help="score: leave out the map, its upsampling and its blur",
    )
    parser.add_argument(
        "--static-batch",
        action="store_true",
        help="one image a call, for compilers that want shapes",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the engine, and of the graph that is written beside FP32's for it;"
        " default is the engine's own, and fp16",
    )
    add_plan_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = _parser()
    if "--bundle" not in " ".join(words).replace("=", " ").split():
        # Without a bundle one is made, which takes torch; its flags are those of training.
        require_extra("flawline-build")
        from flawline.train.fit import add_training_arguments, parse_arguments

        add_training_arguments(parser)
        try:
            args = parse_arguments(parser, words)
        except TrainError as error:
            log(f"flawline-build: {error}")
            return 2
    else:
        args = parser.parse_args(words)
    if args.parity_images < 0:
        parser.error("--parity-images must be at least 0")
    try:
        bundle = read_bundle(args.bundle) if args.bundle else make_bundle(args, words)
        bundle = _complete(bundle, args)
        prepare_engine(bundle, args)
    except (
        BundleError,
        CameraError,
        CalibrationError,
        DataError,
        EngineError,
        ExportError,
        TrainError,
    ) as error:
        log(f"flawline-build: {error}")
        return 2
    except KeyboardInterrupt:
        log(
            "interrupted; what is not finished was not written, training goes on from the last saved step"
        )
        return 130
    data = args.data or Path(bundle.manifest.provenance["data"])
    camera = data / "test" if (data / "test").is_dir() else data
    log(
        f"bundle {bundle.path}; run it: python runtime/infer_stream.py --bundle {bundle.path} --camera {camera}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
