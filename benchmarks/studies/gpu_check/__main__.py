"""python -m benchmarks.studies.gpu_check: one network on a GPU, from eager code to an FP16 plan.

    python -m benchmarks.studies.gpu_check --backbone wide_resnet50_2 --out benchmarks/results

One run of a few minutes with random weights, everything in alternating turns: the published
pipeline and the fused form in torch eager, the fused form compiled in FP16, and every GPU engine in
FP32 and FP16 with and without CUDA graph, at batch 1 and at growing batches. Each row holds the
drift from torch in FP32 and the time from the uint8 image on the host to score and map on the host.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence

from flawline.benchmarks.studies.options import (
    add_network_arguments,
    network_options,
    study_parser,
)
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command
from flawline.runtime.environment import versions

# Number of images that drift is measured on.
IMAGES = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("gpu_check", __doc__)
    add_network_arguments(parser, backbone="wide_resnet50_2", size=288)
    parser.add_argument(
        "--device", default="cuda", help="default %(default)s; cpu tries the command out"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit; default %(default)s"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="write DIR/DEVICE/gpu-METHOD-BACKBONE-SIZE.{json,md}",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.gpu_check.calls import device_name, open_device
    from flawline.benchmarks.studies.gpu_check.measure import measure_device
    from flawline.benchmarks.studies.gpu_check.report import gpu_report
    from flawline.benchmarks.studies.network import build_network

    # The time limit includes building the network and the engines.
    deadline = time.monotonic() + 60 * args.minutes
    device = open_device(args.device)
    method, images = build_network(network_options(args), IMAGES)
    rows = measure_device(method, images, device, deadline)
    name = device_name(device)
    height = method.geometry.height
    about = {
        "method": method.name,
        "backbone": method.settings.backbone,
        "input": f"{method.geometry.width}x{height}",
        "weights": args.weights,
        "device": name,
        "versions": versions(),
    }
    report = gpu_report(about, rows)
    print(report)
    if args.out is not None:
        folder = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        stem = f"gpu-{method.name}-{method.settings.backbone}-{height}"
        write_results(args.out / folder / stem, {**about, "rows": rows}, report)


if __name__ == "__main__":
    sys.exit(main())
