"""python -m benchmarks.studies.gpu_check: how fast this machine runs a bundle, or networks.

    python -m benchmarks.studies.gpu_check --bundle bundles/part --out results
    python -m benchmarks.studies.gpu_check --backbone wide_resnet50_2 --out benchmarks/results
    python -m benchmarks.studies.gpu_check --methods all --out benchmarks/results

With --bundle, every usable engine runs every precision of the bundle on the images of its
self-test, at batch 1 and at growing batches. This needs neither torch nor a data set. --checkpoint
adds the published pipeline and the fused form in torch.

Without --bundle, a network with random weights is built, and measured in torch and in every GPU
engine. Everything is measured in alternating turns, in one run of a few minutes. Each row holds the
drift from torch in FP32 and the time from the uint8 image on the host to score and map on the host.

With --methods, a network of each method is measured at batch 1, one after the other and each in a
process of its own: in torch, and in the default precision of every engine of the GPU, from the
image on the GPU to a camera's frame. Each gets an equal share of the time that is left, building
its plans included; what does not fit is named. Results are written after every method. --networks
keeps the networks, so that an interpreter without torch can measure them, and a later call has its
plans.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.studies.gpu_check.measure import measure_calls
from flawline.benchmarks.studies.gpu_check.methods_command import (
    add_methods_arguments,
    run_methods,
)
from flawline.benchmarks.studies.gpu_check.report import gpu_report
from flawline.benchmarks.studies.gpu_check.subject import (
    Subject,
    bundle_subject,
    network_subject,
)
from flawline.benchmarks.studies.options import (
    add_network_arguments,
    network_options,
    study_parser,
)
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import printable, run_command
from flawline.runtime.environment import versions
from flawline.runtime.files import make_writable
from flawline.runtime.load import read_cpu, share_of_others

STUDY = "gpu_check"


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command(study_parser(STUDY, None).prog, lambda: _run(_parse(words)))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a network cannot be described next to a bundle, which holds one."""
    first = Parser(add_help=False)
    first.add_argument("--bundle")
    first.add_argument("--methods", nargs="*")
    given, _ = first.parse_known_args(words)
    parser = study_parser(STUDY, __doc__)
    _add_common_arguments(parser)
    if given.methods is not None:
        add_methods_arguments(parser)
        return parser.parse_args(words)
    parser.add_argument("--bundle", type=path_argument, help="measure this bundle")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        help="the checkpoint of the bundle, to measure its forms in torch too",
    )
    parser.add_argument(
        "--engine-cache",
        type=path_argument,
        metavar="DIR",
        help="folder for compiled plans; default BUNDLE/engines",
    )
    if given.bundle is None:
        add_network_arguments(parser, backbone="wide_resnet50_2", size=288)
    args = parser.parse_args(words)
    if args.bundle is None and args.checkpoint is not None:
        parser.error("--checkpoint needs the --bundle that was built from it")
    return args


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        nargs="*",
        metavar="NAME",
        help="measure a network of each of these methods, or of all; --methods all --help lists "
        "its flags",
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda; default %(default)s; cpu tries the command out"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit; default %(default)s"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="DIR",
        help="write DIR/DEVICE/gpu-NAME.{json,md}; NAME is that of the bundle, "
        "METHOD-BACKBONE-SIZE, or methods-BACKBONE",
    )


def _run(args: argparse.Namespace) -> None:
    if args.methods is not None:
        run_methods(args)
        return
    # The time limit includes building the network and the engines.
    deadline = time.monotonic() + 60 * args.minutes
    if args.out is not None:
        # Before minutes of measuring.
        make_writable(args.out)
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
        subject = _subject(args, Path(folder), stack)
        bundle = subject.bundle
        start = read_cpu()
        spread = bundle.manifest.score.std
        rows, absent = measure_calls(subject.calls, bundle.golden(), spread, deadline)
        others = share_of_others(start, read_cpu())
        # The clocks of the GPU are still those of the measurement.
        about = {**_about(subject), "machine": machine_facts(), "other_processes": others}
    absent = subject.absent + absent
    report = printable(gpu_report(about, rows, absent))
    print(report)
    if args.out is not None:
        folder_name = re.sub(r"[^a-z0-9]+", "-", subject.device.lower()).strip("-")
        missing = [entry._asdict() for entry in absent]
        content = {**about, "rows": rows, "not_measured": missing}
        write_results(args.out / folder_name / f"gpu-{subject.name}", content, report)


def _subject(args: argparse.Namespace, folder: Path, stack: ExitStack) -> Subject:
    cache = args.engine_cache
    if args.bundle is not None:
        return bundle_subject(args.bundle, args.checkpoint, args.device, cache, stack)
    return network_subject(network_options(args), args.device, cache, folder / "bundle", stack)


def _about(subject: Subject) -> dict[str, Any]:
    manifest = subject.bundle.manifest
    network_input = f"{manifest.geometry.width}x{manifest.geometry.height}"
    if manifest.source is not None:
        network_input = f"{manifest.source} to {network_input}"
    return {
        "name": subject.name,
        "method": manifest.method,
        "backbone": manifest.backbone,
        "input": network_input,
        "weights": subject.weights,
        "model": subject.bundle.short_id,
        "device": subject.device,
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
