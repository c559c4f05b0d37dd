"""python -m benchmarks.studies.fusion: speed and exactness of the fused form of a method.

    python -m benchmarks.studies.fusion --backbone wide_resnet50_2 --size 288

Three forms of one network with one set of weights are timed in alternating turns in one run:
(a) what the authors' code computes, (b) the literal pipeline without its unused computation,
(c) the fused form, which `export.build` exports. Some methods have further forms, among which (c)
was chosen. The exit status is 1 when an FP32 result differs from the literal one by more than its
bound.

The ONNX model of another program can be timed in turns, on random input of its own
signature. For example anomalib's, made in an environment of its own:

    python -c "from anomalib.models import Fastflow;
    m = Fastflow(pre_trained=False, conv3x3_only=True); m.to_onnx('theirs', input_size=(256, 256))"
    python -m benchmarks.studies.fusion --method fastflow --against theirs/weights/onnx/model.onnx

Without conv3x3_only it has anomalib's default, alternating kernels; --set alternate=true selects
them for this study.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import (
    add_network_arguments,
    network_options,
    study_parser,
)
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.environment import cpu_name, versions


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> int:
        return _run(parser.prog, parser.parse_args(argv))

    return run_command(parser.prog, work)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("fusion", __doc__)
    add_network_arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method, such as blocks=4; may be repeated",
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="turns of 5 calls each; default %(default)s"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    parser.add_argument(
        "--against",
        type=path_argument,
        metavar="OTHER.onnx",
        help="another program's model, timed in turns in FP32, in ONNX Runtime and OpenVINO",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="also write fusion-METHOD-BACKBONE-SIZE.{json,md} there",
    )
    return parser


def _run(name: str, args: argparse.Namespace) -> int:
    from flawline.benchmarks.published import find_published
    from flawline.benchmarks.studies.fusion.measure import measure_forms
    from flawline.benchmarks.studies.fusion.report import fusion_report
    from flawline.benchmarks.studies.fusion.rows import BOUND, inexact_rows
    from flawline.benchmarks.studies.network import build_network, torch_threads

    with torch_threads(args.threads):
        method, images = build_network(network_options(args), count=4)
        result = measure_forms(method, images, args.rounds, args.threads, args.against)
    geometry = method.geometry
    about = {
        "method": method.name,
        "backbone": method.settings.backbone,
        "input": f"{geometry.width}x{geometry.height}",
        "settings": args.set,
        "against": [] if args.against is None else [args.against.name],
        "device": cpu_name(),
        "threads": args.threads or "all",
        "versions": versions(),
    }
    report = fusion_report(about, find_published(method.name).notes, result)
    print(report)
    if args.out is not None:
        stem = f"fusion-{method.name}-{method.settings.backbone}-{geometry.height}"
        write_results(args.out / stem, {**about, **result.as_json()}, report)
    inexact = inexact_rows(result.rows)
    for row in inexact:
        log(
            f"{name}: {row.form} in {row.engine} differs by {row.error:.2e}, the bound is {BOUND:g}"
        )
    return int(bool(inexact))


if __name__ == "__main__":
    sys.exit(main())
