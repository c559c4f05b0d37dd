"""What the studies that measure a running stream of a synthetic camera have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import printable
from flawline.runtime.cores import allowed_cores
from flawline.runtime.engines import add_engine_arguments
from flawline.runtime.environment import versions
from flawline.runtime.load import is_busy, read_cpu, share_of_others

# Width and height of the camera's frames.
SIZES = ((640, 480), (1920, 1080))

Result = Mapping[str, Any]


def stream_study_parser(study: str, description: str | None, out: str) -> Parser:
    """Return the parser of a study with --bundle, the flags of the engine and --out."""
    parser = study_parser(study, description)
    parser.add_argument("--bundle", type=path_argument, required=True)
    add_engine_arguments(parser)
    add_out_argument(parser, out)
    return parser


def measure_and_write(
    args: argparse.Namespace, measure: Callable[[Bundle], Result], report: Callable[[Result], str]
) -> None:
    """Measure the bundle of the flags, and write and print the page.

    The result is what `measure` returns, and facts of the bundle, the machine, its load and the
    versions.
    """
    bundle = read_bundle(args.bundle)
    start = read_cpu()
    measured = measure(bundle)
    others = share_of_others(start, read_cpu())
    result = {
        **measured,
        "bundle": printable(bundle.path.name),
        "cores": allowed_cores(),
        "machine": machine_facts(),
        "niceness": os.nice(0),
        "other_processes": None if others is None else round(others, 3),
    }
    page = report(result)
    write_results(args.out, {**result, "versions": versions()}, page)
    print(page)


def conditions(result: Result, engine: str) -> str:
    """Return the line of a page that says on what was measured, and what disturbed it."""
    about = [result["machine"]["cpu"], f"{result['cores']} cores", engine]
    if is_busy(result["other_processes"]):
        about.append(f"other processes used {result['other_processes']:.0%} of the CPU")
    if result["niceness"] != 0:
        about.append(f"niceness {result['niceness']}")
    return "; ".join(about)
