"""python -m benchmarks.fusion: what the exact rewrite of a method saves, and that it is exact.

    python -m benchmarks.fusion --method simplenet --backbone wide_resnet50_2 --size 288 --weights random

Three forms of one network with one set of weights, timed in turns in one run: (a) what the authors' code executes,
(b) the literal pipeline without its obvious waste, (c) the fused form, which is what `export.build` ships; of a flow
also what (c) was chosen from. Exits with 1 where an FP32 result differs from the literal one by more than its bound.

Another program's model can take its turns beside them, on random input of its own signature. anomalib's, in an
environment of its own, and then held against the same eight couplings of one kind of kernel:

    python -c "from anomalib.models import Fastflow; m = Fastflow(pre_trained=False, conv3x3_only=True);
    m.to_onnx('theirs', input_size=(256, 256)); m.to_openvino('theirs', input_size=(256, 256))"
    python -m benchmarks.fusion --method fastflow --against theirs/weights/onnx/model.onnx \
        --against-openvino theirs/weights/openvino/model.xml

Without conv3x3_only it is anomalib's default, alternating kernels, which is --set alternate=true here.
"""

from __future__ import annotations

from flawline.train import TrainError, require_extra

require_extra("flawline-bench")

import argparse
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from flawline.benchmarks.measure.meter import Node, meter, profile
from flawline.benchmarks.measure.sessions import (
    AGAINST,
    OPENVINO,
    ORT,
    Call,
    Calls,
    against,
    openvino_session,
)
from flawline.benchmarks.measure.sessions import session as session  # of benchmarks.stencils too
from flawline.benchmarks.measure.timing import alternate
from flawline.benchmarks.published import ALTERNATIVES, as_if_trained
from flawline.benchmarks.published import PUBLISHED as PUBLISHED_CODE
from flawline.benchmarks.studies.fusion_report import markdown
from flawline.cameras import CameraError
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.bundle import OUTPUTS, Calibration, Golden, Manifest, Spread, write_bundle
from flawline.runtime.console import log
from flawline.runtime.engines import ENGINES, EngineError, EngineOptions, missing
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.image import Geometry, prepare
from flawline.train.backbones import BACKBONES
from flawline.train.data.demo import render
from flawline.train.data.images import DataError, PreparedImages, open_data
from flawline.train.method import Method, resolve_method

BOUND = 1e-4  # of the literal map's range; float32 rounding alone gives a few 1e-6
IMAGES = 4
PUBLISHED, LITERAL, FUSED, BACKBONE = (
    "(a) as published",
    "(b) literal",
    "(c) fused",
    "backbone alone",
)
EAGER = "torch eager"
PRECISIONS = ("fp32", "bf16")  # of other engines, where they have them


def measure(
    method: Method,
    images: Any,
    rounds: int,
    threads: int | None,
    folder: Path,
    beside: Mapping[tuple[str, str], Call],
) -> dict[str, Any]:
    """Every form in every engine that is here: costs, errors against the literal form, and medians of one run.

    The calls of `beside` take turns with them. OpenVINO's default is timed of ours where it is of theirs.
    """
    # In eval mode, wrappers too: the exporter gives every module back the mode of the outermost.
    published, exportable = (kind(method).eval() for kind in PUBLISHED_CODE[method.name])
    fused: Any = method.fused()
    others = {form: make(method).eval() for form, make in ALTERNATIVES.get(method.name, {}).items()}
    modules = {PUBLISHED: published, LITERAL: exportable, FUSED: fused, **others}
    calls: Calls = {(BACKBONE, EAGER): _eager(lambda x: fused.backbone(fused.input(x)))}
    rows = {(form, EAGER): _cost(method, module, images[:1]) for form, module in modules.items()}
    calls |= {(form, EAGER): _eager(module) for form, module in modules.items()}
    heads: dict[str, list[Node]] = {}
    for form in (LITERAL, FUSED, *others):
        model = _exported(modules[form], method)
        backbone = _backbone(model)
        nodes, before = (profile(m, images[:1], threads) for m in (model, backbone))
        heads[form] = _head(nodes, before)
        calls[form, ORT] = session(model, threads)
        rows[form, ORT] = {
            "onnx_nodes": sum(node_types(model).values()),
            "head_bytes_written": sum(n.bytes_written for n in nodes)
            - sum(n.bytes_written for n in before),
        }
        engines = dict(_engines(method, model, images, folder / str(len(heads)), threads))
        if form == FUSED:
            calls[BACKBONE, ORT] = session(backbone, threads)
            if (AGAINST, OPENVINO) in beside:
                (folder / "plain.onnx").write_bytes(model)
                engines[OPENVINO] = openvino_session(folder / "plain.onnx", threads)
        calls |= {(form, name): call for name, call in engines.items()}
        rows |= {(form, name): {} for name in engines}
    reference = calls[LITERAL, EAGER](images)
    for key in rows:
        rows[key]["error"] = _error(calls[key](images), reference)
    turns = {key: partial(call, images[:1]) for key, call in {**calls, **beside}.items()}
    for key, milliseconds in alternate(turns, rounds, 5, settle_s=0.3).items():
        rows.setdefault(key, {})["ms"] = milliseconds
    return {
        "rows": [{"form": form, "engine": engine, **row} for (form, engine), row in rows.items()],
        "kinds": {form: _kinds(heads[form]) for form in (LITERAL, FUSED)},
        "left_in_the_head": _left(heads[FUSED]),
    }


@torch.inference_mode()
def _cost(method: Method, module: Any, image: Any) -> dict[str, Any]:
    """Of a form in torch, on one image: of the whole and of its head."""
    backbone: Any = method.backbone
    image = torch.from_numpy(image)
    head = partial(module.head, *backbone.extract(image))
    with sdpa_kernel(
        SDPBackend.MATH
    ):  # torch's counter does not see the products of its other attentions on a CPU
        macs, head_macs = meter(partial(module, image)).macs, meter(head).macs
    return {
        "macs": macs,
        "head_macs": head_macs,
        "head_bytes_written": meter(head).bytes_written,
        "parameters": sum(p.numel() for p in module.parameters()),
    }


def _exported(module: torch.nn.Module, method: Method) -> bytes:
    with warnings.catch_warnings():
        # Literal forms ask what they were built with, such as which score; that is a constant of the graph.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return onnx_from_module(module, method.geometry)


def _backbone(model: bytes) -> bytes:
    """The part of a form's graph up to the feature maps that its head reads."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    inside = [n for n in graph.graph.node if n.name.startswith(("/backbone/", "/input/"))]
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


def _engines(
    method: Method, model: bytes, images: Any, folder: Path, threads: int | None
) -> Iterator[tuple[str, Call]]:
    """Every other engine that can be used here, in PRECISIONS, through a bundle as users open it."""
    others = [name for name in ENGINES if name != "onnxruntime" and missing(name) is None]
    if not others:
        return
    score, heat = session(model, threads)(images)
    spread = Spread.of(score)
    tolerance = max(float(np.ptp(heat)), 1.0)
    manifest = Manifest(
        method.name,
        method.settings.backbone,
        method.geometry,
        spread,
        spread,
        tolerance,
        tolerance,
        (),
        OUTPUTS,
        {},
    )
    calibration = Calibration(float(score.max()) + 1, 0.5, (0.0, 1.0), 0.95, 1)
    bundle = write_bundle(
        folder, manifest, calibration, {"fp32": model}, Golden(images, score, heat)
    )
    for name in others:
        target = resolve_name(ENGINES[name])
        for precision in PRECISIONS:
            if precision not in target.precisions:
                continue
            try:
                yield f"{name} {precision}", target.open(bundle, EngineOptions(threads, precision))
            except EngineError as error:
                if precision == "fp32":
                    raise
                log(f"{name} {precision} is left out: {error}")


def _error(got: Any, reference: Any) -> float:
    """The largest difference of any score or map value, over the range of the literal map."""
    span = float(np.ptp(reference[1]))
    return (
        max(float(np.abs(np.asarray(g) - r).max()) for g, r in zip(got, reference, strict=True))
        / span
    )


def _head(nodes: list[Node], backbone: list[Node]) -> list[Node]:
    """What ONNX Runtime runs after the backbone."""
    known = {node.name for node in backbone}
    return [node for node in nodes if node.name not in known and "/backbone/" not in node.name]


def _kinds(head: list[Node]) -> list[dict[str, Any]]:
    """How many nodes of each kind, and their time, the slowest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for node in head:
        found[node.kind].append(node.milliseconds)
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))
    return [{"kind": kind, "nodes": len(times), "ms": sum(times)} for kind, times in ordered]


def _left(head: list[Node]) -> list[dict[str, Any]]:
    """The slowest first."""
    ordered = sorted(head, key=lambda node: -node.milliseconds)
    return [
        {"node": n.name, "kind": n.kind, "ms": n.milliseconds, "bytes_written": n.bytes_written}
        for n in ordered
    ]


def build_method(
    args: argparse.Namespace, count: int, settings: Sequence[str] = ()
) -> tuple[Method, Any]:
    """The network that the flags describe, and `count` prepared images, uint8 [count, H, W, 3], of --data or of the
    demo's generator. `settings` are NAME=JSON of the method's constructor. Raises TrainError, DataError."""
    if args.backbone not in BACKBONES:
        raise TrainError(f"backbone {args.backbone!r} is unknown; known: {', '.join(BACKBONES)}")
    if args.method not in PUBLISHED_CODE:
        raise TrainError(
            f"{args.method} has no published code to compare with; known: {', '.join(PUBLISHED_CODE)}"
        )
    kind = resolve_method(args.method)
    defaults = kind.settings_for(args.backbone)
    if args.size is not None:
        defaults = replace(defaults, geometry=Geometry("stretch", args.size, args.size))
    torch.manual_seed(args.seed)
    try:
        chosen = {
            name: json.loads(value)
            for name, value in (setting.split("=", 1) for setting in settings)
        }
        method = kind(replace(defaults, **chosen))
    except (TypeError, ValueError) as error:
        raise TrainError(
            f"--set {' '.join(settings)}: {error}; it is NAME=JSON of train/{args.method}.py"
        ) from error
    if args.data is None:
        images = [prepare(render("board", None, seed)[0], method.geometry) for seed in range(count)]
    else:
        images = list(PreparedImages(open_data(args.data).train_good[:count], method.geometry))
    method.load_weights(args.weights, args.seed, images)
    as_if_trained(method, images, args.seed)
    return method.eval(), np.stack(images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.fusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", default="simplenet", help=f"one of {', '.join(PUBLISHED_CODE)}")
    parser.add_argument("--backbone", default="resnet18", help=f"one of {', '.join(BACKBONES)}")
    parser.add_argument("--size", type=int, help="input height and width; default is the method's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a keyword of the method, as blocks=4",
    )
    parser.add_argument(
        "--weights",
        default="random",
        help="imagenet, random or a FILE; speed does not depend on it",
    )
    parser.add_argument("--data", type=Path, help="images to compare on; default the demo's board")
    parser.add_argument(
        "--rounds", type=int, default=10, help="turns of 5 calls each; default %(default)s"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OTHER.onnx",
        help="time it in ONNX Runtime in turns with ours",
    )
    parser.add_argument(
        "--against-openvino",
        type=Path,
        metavar="OTHER.xml",
        help="time it in OpenVINO, both at its defaults",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write fusion-METHOD-BACKBONE-SIZE.{json,md} there",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads_before)
    try:
        method, images = build_method(args, IMAGES, args.set)
        size = (method.geometry.height, method.geometry.width)
        beside = against(args.against, args.against_openvino, size, args.threads)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            found = measure(method, images, args.rounds, args.threads, Path(folder), beside)
    except (TrainError, DataError, CameraError, EngineError) as error:
        log(f"benchmarks.fusion: {error}")
        return 2
    finally:
        torch.set_num_threads(threads_before)
    about = {
        "method": method.name,
        "backbone": method.settings.backbone,
        "input": f"{size[1]}x{size[0]}",
        "settings": args.set,
        "against": [path.name for path in (args.against, args.against_openvino) if path],
        "device": cpu_name(),
        "threads": args.threads or "all",
        "versions": versions(),
    }
    table = markdown(about, found)
    print(table)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"fusion-{method.name}-{method.settings.backbone}-{size[0]}"
        stem.with_suffix(".md").write_text(table + "\n")
        stem.with_suffix(".json").write_text(json.dumps({**about, **found}, indent=2) + "\n")
    exact = [
        row for row in found["rows"] if row["engine"] == EAGER or row["engine"].endswith("fp32")
    ]
    wrong = [row for row in exact if not row.get("error", 0.0) <= BOUND]
    for row in wrong:
        log(
            f"{row['form']} in {row['engine']}: differs by {row['error']:.2e}, the bound is {BOUND:g}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
