"""python -m export.build --method simplenet: from a checkpoint (or from images) to a bundle that was proven."""

from __future__ import annotations

from train import require_extra

require_extra("flawline-build")

import argparse
import datetime
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cameras import CameraError
from export.to_onnx import node_types, onnx_from_module
from export.verify import ExportError, compare, gate
from runtime.bundle import OUTPUTS, Bundle, BundleError, Golden, Manifest, Spread, write_bundle
from runtime.engine import EngineError
from runtime.environment import versions
from runtime.ort import OnnxRuntime
from runtime.threshold import CalibrationError, calibrate, describe
from train import METHODS
from train.data import DataError, DataSet, PreparedImages, describe_sizes, hold_out, open_data
from train.demo import write_demo
from train.fit import Bars, add_training_arguments, fit_from_arguments, say
from train.method import Method, Progress, TrainError, evaluate, load_checkpoint

DEMO_DATA, DEMO_PRODUCT = Path("demo/data"), "bearing"
# Of the good images' standard deviation: what an engine's score may be off. Far above float32 rounding and FP16's
# few thousandths, far below anything that matters to a threshold.
TOLERANCE = 0.05
GOLDEN_PER_SIDE = 3


def build(
    method: Method,
    provenance: dict[str, str],
    data: Path,
    out: Path,
    rate: float | None,
    limit: int,
    outputs: tuple[str, ...],
    batch: int | None,
    command: Sequence[str],
) -> Bundle:
    """Export, set the threshold on held-out good images, prove parity on real ones, write the bundle."""
    data_set = open_data(data)
    _, held = hold_out(data_set.train_good)
    bits = int(provenance["bits"])
    bits_of_files = None if bits == 8 else bits
    calibrate(np.arange(len(held)), rate)  # refuses a rate that so few images do not support before the work
    for line in describe_sizes(held, method.geometry, bits_of_files):
        say(f"note: {line}")
    model = onnx_from_module(method.fused(), method.geometry, outputs, batch)
    say(f"exported {sum(node_types(model).values())} ONNX nodes, {len(model) / 1e6:.1f} MB")
    paths = _parity_paths(held, data_set, limit)
    images = PreparedImages(paths, method.geometry, bits_of_files)
    bars = Bars()
    try:
        scores, maps = _engine_scores(method, model, outputs, images, bars)
        reference, reference_maps = evaluate(method, images, bars)
    finally:
        bars.close()
    good = slice(0, len(held))
    calibration = calibrate(scores[good], rate)
    for line in describe(calibration, rate):
        say(line)
    highest = int(np.argmax(scores[good]))
    say(
        f"highest-scoring of them, which a bad part among the good ones would be: {scores[highest]:.6g} {held[highest]}"
    )
    score, map_peak = Spread.of(scores[good]), Spread.of(reference_maps[good].max((1, 2)))
    tolerances = [TOLERANCE * max(s.std, 1e-3 * abs(s.mean), 1e-6) for s in (score, map_peak)]
    parity = compare(paths, reference, scores, calibration.threshold, tolerances[0], max(score.std, 1e-9))
    say(str(parity))
    for near in parity.near_flips:
        say(f"note: within tolerance of the threshold: {near}")
    if outputs != OUTPUTS:
        reference_maps = maps
    gate(parity, tolerances[0], float(np.abs(maps - reference_maps).max(initial=0.0)), tolerances[1])
    golden = _golden(images, reference, reference_maps, calibration.threshold, tolerances[0])
    manifest = Manifest(
        method=method.name,
        backbone=method.backbone,
        geometry=method.geometry,
        score=score,
        map_peak=map_peak,
        score_tolerance=tolerances[0],
        map_tolerance=tolerances[1],
        fp32_islands=method.fp32_islands,
        outputs=outputs,
        provenance={
            **{f"train_{k}": v for k, v in provenance.items()},
            "data": str(data.resolve()),
            "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "export.build", *command]),
            **versions(),
        },
    )
    return write_bundle(out, manifest, calibration, {"fp32": model}, golden)


def _parity_paths(held: list[Path], data_set: DataSet, limit: int) -> list[Path]:
    """All held-out good images, then up to `limit` test images, evenly spread over the kinds of defect."""
    test = [sample.path for sample in data_set.test]
    chosen: Any = np.linspace(0, len(test) - 1, min(limit, len(test))).astype(int) if test else []
    return held + [test[i] for i in chosen]


def _engine_scores(
    method: Method, model: bytes, outputs: tuple[str, ...], images: Sequence[Any], progress: Progress
) -> tuple[Any, Any]:
    """Scores [n] and maps [n, H, W] ([n, 0, 0] without) as ONNX Runtime computes them from the exported graph."""
    map_size = (method.geometry.height, method.geometry.width) if outputs == OUTPUTS else (0, 0)
    scores, maps = [], []
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        engine = OnnxRuntime(path, map_size)
        for i, image in enumerate(images):
            score, heat = engine(image[None])
            scores.append(float(score[0]))
            maps.append(heat[0].copy())
            progress("onnxruntime", i + 1, len(images))
        engine.close()
    return np.array(scores, np.float32), np.array(maps)


def _golden(images: Sequence[Any], scores: Any, maps: Any, threshold: float, tolerance: float) -> Golden:
    """The images farthest from the threshold on either side: their decisions survive any tolerable engine."""
    order = np.argsort(scores)
    low = [i for i in order[:GOLDEN_PER_SIDE] if scores[i] < threshold - tolerance]
    high = [i for i in order[-GOLDEN_PER_SIDE:] if scores[i] > threshold + tolerance]
    chosen = low + high or [order[0]]
    return Golden(np.stack([images[int(i)] for i in chosen]), scores[chosen], maps[chosen])


def _train(args: argparse.Namespace) -> Path:
    """No checkpoint was given: train one, on the given data or on the demo data."""
    if args.data is None:
        args.data = DEMO_DATA / DEMO_PRODUCT
        say(f"no --checkpoint and no --data: training {args.method} on the demo data {args.data}")
        bars = Bars()
        write_demo(DEMO_DATA, progress=lambda done, total: bars("demo data", done, total))
        if args.weights is None:
            say("the demo data is trained with --weights random, which needs no download")
            args.weights = "random"
    else:
        say(f"no --checkpoint: training {args.method} on {args.data}")
    checkpoint = args.save_checkpoint or Path("runs") / f"{args.method}-{args.data.name}.pt"
    return fit_from_arguments(args, args.method, args.data, checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flawline-build", description="Export a detector to a bundle.")
    parser.add_argument("--method", default="simplenet", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--checkpoint", type=Path, help="from train.fit; without it one is trained first")
    parser.add_argument("--save-checkpoint", type=Path, help="where to keep the one that is trained; default runs/")
    parser.add_argument("--data", type=Path, help="the images: good ones set the threshold, test ones prove parity")
    parser.add_argument("--out", type=Path, help="the bundle to write; default bundles/METHOD-DATA")
    parser.add_argument("--false-alarm-rate", type=float, help="share of good parts rejected; default 0.01")
    parser.add_argument(
        "--outputs", choices=OUTPUTS, default="map", help="score: leave out the map, its upsampling and its blur"
    )
    parser.add_argument("--static-batch", action="store_true", help="one image a call, for compilers that want shapes")
    parser.add_argument("--parity-images", type=int, default=200, help="test images to prove; default %(default)s")
    add_training_arguments(parser)
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    if args.parity_images < 0:
        parser.error("--parity-images must be at least 0")
    try:
        if args.method not in METHODS:
            raise TrainError(f"method {args.method!r} is unknown; known: {', '.join(METHODS)}")
        method, provenance, training = load_checkpoint(args.checkpoint or _train(args))
        if training is not None:
            raise TrainError(
                f"checkpoint {args.checkpoint} is of a run that was not finished; repeat train.fit to go on"
            )
        if method.name != args.method:
            raise TrainError(f"checkpoint {args.checkpoint} holds {method.name}; pass --method {method.name}")
        data = args.data or Path(provenance["data"])
        outputs, batch = OUTPUTS[: OUTPUTS.index(args.outputs) + 1], 1 if args.static_batch else None
        out = args.out or Path("bundles") / f"{method.name}-{data.name}"
        bundle = build(method, provenance, data, out, args.false_alarm_rate, args.parity_images, outputs, batch, words)
    except (
        TrainError,
        DataError,
        CameraError,
        ExportError,
        BundleError,
        EngineError,
        CalibrationError,
    ) as error:
        say(f"flawline-build: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; nothing was written, training goes on from the last saved step")
        return 130
    camera = data / "test" if (data / "test").is_dir() else data
    say(f"bundle {bundle.path}; run it: python runtime/infer_stream.py --bundle {bundle.path} --camera {camera}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
