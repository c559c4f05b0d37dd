"""python -m benchmarks.fusion: what the exact rewrite of a method saves, and that it is exact.

    python -m benchmarks.fusion --method simplenet --backbone wide_resnet50_2 --size 288 --weights random

Three forms of one network with one set of weights, timed in turns in one run: (a) what the authors' code executes,
(b) the literal pipeline without its obvious waste, (c) the fused form, which is what `export.build` ships. Exits with
1 where a result differs from the literal one by more than its bound.
"""

from __future__ import annotations

from train import TrainError, require_extra

require_extra("flawline-bench")

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx.utils
import torch
from torch import Tensor

from benchmarks.fusion_report import markdown
from benchmarks.meter import Node, meter, profile
from benchmarks.published import PUBLISHED as PUBLISHED_CODE
from benchmarks.timing import alternate
from cameras import CameraError
from export.to_onnx import node_types, onnx_from_module
from runtime.bundle import OUTPUTS, Calibration, Golden, Manifest, Spread, write_bundle
from runtime.console import say
from runtime.engine import ENGINES, EngineError, EngineOptions, missing
from runtime.environment import cpu_name, versions
from runtime.image import prepare
from train import METHODS
from train.backbone import BACKBONES, calibrate_batchnorm, load_weights
from train.data import DataError, PreparedImages, open_data
from train.demo import render
from train.method import Method, create, resolve_method

BOUND = 1e-4  # of the literal map's range; float32 rounding alone gives a few 1e-6
IMAGES = 4
PUBLISHED, LITERAL, FUSED, BACKBONE = "(a) as published", "(b) literal", "(c) fused", "backbone alone"
EAGER, ORT = "torch eager", "onnxruntime fp32"

Call = Callable[[Any], Any]  # uint8 [N, H, W, 3] to (score, map) as arrays


def measure(method: Method, images: Any, rounds: int, threads: int | None, folder: Path) -> dict[str, Any]:
    """Every form in every engine that is here: costs, errors against the literal form, and medians of one run."""
    # In eval mode, wrappers too: the exporter gives every module back the mode of the outermost.
    published, exportable = (kind(method).eval() for kind in PUBLISHED_CODE[method.name])
    fused: Any = method.fused()
    modules = {PUBLISHED: published, LITERAL: exportable, FUSED: fused}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    calls: dict[tuple[str, str], Call] = {(BACKBONE, EAGER): _eager(lambda x: fused.trunk(fused.input(x)))}
    image = torch.from_numpy(images[:1])
    with torch.inference_mode():
        trunk: Any = method.trunk
        levels = trunk(trunk.normalise(image))
    for form, module in modules.items():
        head = meter(partial(module.head, *levels))
        calls[form, EAGER] = _eager(module)
        rows[form, EAGER] = {
            "macs": meter(partial(module, image)).macs,
            "head_macs": head.macs,
            "head_bytes_written": head.bytes_written,
            "parameters": sum(p.numel() for p in module.parameters()),
        }
    nodes: dict[str, list[Node]] = {}
    for form in (LITERAL, FUSED):
        model = onnx_from_module(modules[form], method.geometry)
        backbone = _backbone(model)
        nodes[form], nodes[BACKBONE] = (profile(m, images[:1], threads) for m in (model, backbone))
        calls[form, ORT] = session(model, threads)
        rows[form, ORT] = {
            "onnx_nodes": sum(node_types(model).values()),
            "head_bytes_written": sum(n.bytes_written for n in nodes[form])
            - sum(n.bytes_written for n in nodes[BACKBONE]),
        }
    calls[BACKBONE, ORT] = session(backbone, threads)
    for name, call in _engines(method, model, images, folder / "bundle", threads):
        calls[FUSED, name] = call
        rows[FUSED, name] = {}
    reference = calls[LITERAL, EAGER](images)
    for key in rows:
        rows[key]["error"] = _error(calls[key](images), reference)
    turns = {key: partial(call, images[:1]) for key, call in calls.items()}
    for key, milliseconds in alternate(turns, rounds, 5, settle_s=0.3).items():
        rows.setdefault(key, {})["ms"] = milliseconds
    return {
        "rows": [{"form": form, "engine": engine, **row} for (form, engine), row in rows.items()],
        "left_in_the_head": _left(nodes[FUSED], nodes[BACKBONE]),
    }


def _backbone(model: bytes) -> bytes:
    """The part of a form's graph up to the feature maps that its head reads."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    inside = [n for n in graph.graph.node if n.name.startswith(("/trunk/", "/input/"))]
    made = {name for node in inside for name in node.output}
    names = {n.name for n in inside}
    read = [i for n in graph.graph.node if n.name not in names for i in n.input if i in made]
    cut = onnx.utils.Extractor(graph).extract_model(["image"], list(dict.fromkeys(read)))
    serialised: bytes = cut.SerializeToString()
    return serialised


def _eager(module: Callable[[Tensor], Any]) -> Call:
    @torch.inference_mode()
    def call(image: Any) -> Any:
        return tuple(x.numpy() for x in module(torch.from_numpy(image)))

    return call


def session(model: bytes, threads: int | None) -> Call:
    """ONNX Runtime without our engine around it, so that the literal form and the bare backbone run alike."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def _engines(
    method: Method, model: bytes, images: Any, folder: Path, threads: int | None
) -> Iterator[tuple[str, Call]]:
    """Every other engine that can be used here, at FP32, through a bundle as users open it."""
    others = [name for name in ENGINES if name != "onnxruntime" and missing(name) is None]
    if not others:
        return
    score, heat = session(model, threads)(images)
    spread = Spread.of(score)
    tolerance = max(float(np.ptp(heat)), 1.0)
    manifest = Manifest(
        method.name, method.backbone, method.geometry, spread, spread, tolerance, tolerance, (), OUTPUTS, {}
    )
    calibration = Calibration(float(score.max()) + 1, 0.5, (0.0, 1.0), 0.95, 1)
    bundle = write_bundle(folder, manifest, calibration, {"fp32": model}, Golden(images, score, heat))
    for name in others:
        yield f"{name} fp32", resolve_name(ENGINES[name]).open(bundle, EngineOptions(threads, "fp32"))


def _error(got: Any, reference: Any) -> float:
    """The largest difference of any score or map value, over the range of the literal map."""
    span = float(np.ptp(reference[1]))
    return max(float(np.abs(np.asarray(g) - r).max()) for g, r in zip(got, reference, strict=True)) / span


def _left(fused: list[Node], backbone: list[Node]) -> list[dict[str, Any]]:
    """What ONNX Runtime spends after the backbone, the slowest first."""
    known = {node.name for node in backbone}
    head = [node for node in fused if node.name not in known and "/trunk/" not in node.name]
    ordered = sorted(head, key=lambda node: -node.milliseconds)
    return [{"node": n.name, "kind": n.kind, "ms": n.milliseconds, "bytes_written": n.bytes_written} for n in ordered]


def build_method(args: argparse.Namespace, count: int) -> tuple[Method, Any]:
    """The network that the flags describe, and `count` prepared images, uint8 [count, H, W, 3], of --data or of the
    demo's generator. Raises TrainError, DataError."""
    if args.backbone not in BACKBONES:
        raise TrainError(f"backbone {args.backbone!r} is unknown; known: {', '.join(BACKBONES)}")
    if args.method not in PUBLISHED_CODE:
        raise TrainError(f"{args.method} has no published code to compare with; known: {', '.join(PUBLISHED_CODE)}")
    hyperparameters = resolve_method(args.method).defaults(args.backbone)
    if args.size is not None:
        hyperparameters["geometry"] = {"kind": "stretch", "height": args.size, "width": args.size}
    torch.manual_seed(args.seed)
    method = create(args.method, hyperparameters)
    if args.data is None:
        images = [prepare(render("board", None, seed)[0], method.geometry) for seed in range(count)]
    else:
        images = list(PreparedImages(open_data(args.data).train_good[:count], method.geometry))
    trunk: Any = method.trunk
    load_weights(trunk, args.weights, args.seed)
    if args.weights == "random":
        calibrate_batchnorm(trunk, images)
    return method.eval(), np.stack(images)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.fusion", description="What the fused form of a method saves.")
    parser.add_argument("--method", default="simplenet", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--backbone", default="resnet18", help=f"one of {', '.join(BACKBONES)}")
    parser.add_argument("--size", type=int, help="input height and width; default is the method's")
    parser.add_argument("--weights", default="random", help="imagenet, random or a FILE; speed does not depend on it")
    parser.add_argument("--data", type=Path, help="images to compare on; default the demo's board")
    parser.add_argument("--rounds", type=int, default=10, help="turns of 5 calls each; default %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write fusion-METHOD-BACKBONE-SIZE.{json,md} there"
    )
    args = parser.parse_args(argv)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads_before)
    try:
        method, images = build_method(args, IMAGES)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            found = measure(method, images, args.rounds, args.threads, Path(folder))
    except (TrainError, DataError, CameraError, EngineError) as error:
        say(f"benchmarks.fusion: {error}")
        return 2
    finally:
        torch.set_num_threads(threads_before)
    size = f"{method.geometry.width}x{method.geometry.height}"
    about = {
        "method": method.name,
        "backbone": method.backbone,
        "input": size,
        "device": cpu_name(),
        "threads": args.threads or "all",
        "versions": versions(),
    }
    table = markdown(about, found)
    print(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"fusion-{method.name}-{method.backbone}-{method.geometry.height}"
        stem.with_suffix(".md").write_text(table + "\n")
        stem.with_suffix(".json").write_text(json.dumps({**about, **found}, indent=2) + "\n")
    wrong = [row for row in found["rows"] if not row.get("error", 0.0) <= BOUND]
    for row in wrong:
        say(f"{row['form']} in {row['engine']}: differs by {row['error']:.2e}, the bound is {BOUND:g}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
