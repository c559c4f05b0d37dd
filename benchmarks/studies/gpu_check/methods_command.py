"""The command of many methods: its flags, and its results, which are written after each method."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.studies.gpu_check.every_method import (
    Found,
    device_name,
    measure_methods,
)
from flawline.benchmarks.studies.gpu_check.one_method import Task
from flawline.benchmarks.studies.gpu_check.summary import add_expected, summary
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import printable
from flawline.runtime.engines import EngineError
from flawline.runtime.environment import versions
from flawline.runtime.files import make_writable
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.source_frame import parse_source
from flawline.train import METHODS, TrainError
from flawline.train.backbones import BACKBONES, DEFAULT_BACKBONE

ALL = "all"


def add_methods_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `--methods` takes."""
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        help=f"of every method that has one: {', '.join(BACKBONES)}; default %(default)s",
    )
    parser.add_argument(
        "--size", type=int, help="input height and width; default is that of each method"
    )
    parser.add_argument(
        "--frame",
        default="1920x1080",
        help="WIDTHxHEIGHT[:LAYOUT] of the camera's frames; default %(default)s",
    )
    parser.add_argument(
        "--networks",
        type=path_argument,
        metavar="DIR",
        help="keep networks and plans in DIR/METHOD; those that are there are not made again, and "
        "need no torch",
    )


def run_methods(args: argparse.Namespace) -> None:
    """Measure the methods that the flags name; print the page. Raises FlawlineError."""
    deadline = time.monotonic() + 60 * args.minutes
    methods = _methods(args.methods)
    try:
        frame = str(parse_source(args.frame))
    except ValueError as error:
        raise TrainError(f"--frame {error}") from error
    for folder in (args.out, args.networks):
        if folder is not None:
            # Before minutes of measuring.
            make_writable(folder)
    device = device_name(args.device)
    about = {
        "methods": methods,
        "backbone": args.backbone,
        "size": args.size,
        "frame": frame,
        "device": device,
        "versions": versions(),
    }
    start = read_cpu()
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        task = Task("", args.backbone, args.size, frame, args.device, "", "", 0.0)
        networks = args.networks or Path(folder) / "networks"
        networks.mkdir(parents=True, exist_ok=True)
        for found in measure_methods(methods, task, networks, Path(folder), deadline):
            # The clocks of the GPU are still those of the measurement.
            facts: dict[str, Any] = {"machine": machine_facts()}
            facts["other_processes"] = share_of_others(start, read_cpu())
            page = _write(args.out, {**about, **facts}, found)
    print(page)
    if not found.rows:
        raise EngineError("nothing was measured; the reasons are above")


def _methods(names: list[str]) -> list[str]:
    """Return the methods that the words of --methods name. Raises TrainError for an unknown one."""
    if names in ([], [ALL]):
        return list(METHODS)
    for name in names:
        if name not in METHODS:
            raise TrainError(f"--methods {name}: unknown; known: {ALL}, {', '.join(METHODS)}")
    return list(dict.fromkeys(names))


def _write(out: Path | None, about: Mapping[str, Any], found: Found) -> str:
    """Return the page of what was found so far, and write it with its JSON if `out` is given."""
    add_expected(found, about["device"], about["machine"])
    page = printable(summary(about, found))
    if out is not None:
        folder = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
        absent = {name: [entry._asdict() for entry in found.absent[name]] for name in found.absent}
        content = {**about, **asdict(found), "absent": absent}
        write_results(out / folder / _name(about), content, page)
    return page


def _name(about: Mapping[str, Any]) -> str:
    """Return the name of the results: of all methods, or of those that were asked for."""
    names = "methods" if about["methods"] == list(METHODS) else "-".join(about["methods"])
    size = "" if about["size"] is None else f"-{about['size']}"
    return f"gpu-{names}-{about['backbone']}{size}"
