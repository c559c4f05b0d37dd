"""The page of many methods: one table, with what is expected beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.measure.machine import describe_machine, machine_lines
from flawline.benchmarks.run_table import busy_note
from flawline.benchmarks.studies.gpu_check.every_method import Found
from flawline.benchmarks.studies.gpu_check.expected import (
    Hardware,
    expected_fps,
    find_aim,
    find_hardware,
)
from flawline.benchmarks.studies.gpu_check.stages import STAGES
from flawline.benchmarks.tables import markdown_table

HEADER = (
    "method", "input", "GMAC", "engine", "ms", "FPS, image on the GPU", "expected", "aim",
    "FPS, frame on the GPU", "FPS, host to host", "FPS, camera to verdict",
    "FPS, camera to verdict, graph prepares", "drift",
)  # fmt: skip
EXPLANATION = """\
Batch 1, medians, random weights. ms is the time with the image on the GPU, or on the host where an
engine has no memory of its own. Drift is the largest difference of a score in any of these stages
from that of PyTorch in FP32, relative to the standard deviation of the scores of good images.
Expected is an estimate from the figures of the GPU, the multiply-accumulates and the number of
convolutions and matrix products; the aim is that of the backbone at this size, with a CUDA graph.
Frames are {frame}. Stages:"""


def add_expected(found: Found, device: str, machine: Mapping[str, Any]) -> None:
    """Add the expected FPS and the aim to each network, None where there is none."""
    hardware = find_hardware(" ".join((device, *machine_lines(machine))))
    for name, network in found.networks.items():
        found.networks[name] = {**network, **_expected(hardware, network)}


def _expected(hardware: Hardware | None, network: Mapping[str, Any]) -> dict[str, Any]:
    expected = None
    if hardware is not None:
        sizes = (network["macs"], network["kernels"], network["weight_bytes"])
        expected = expected_fps(hardware, *sizes)
    return {"expected_fps": expected, "aim_fps": find_aim(hardware, network)}


def summary(about: Mapping[str, Any], found: Found) -> str:
    """Return the page in Markdown: the table, what it means, the machine, and what is missing."""
    size = f"{about['size']}x{about['size']}" if about["size"] else "the size of each method"
    count = len(about["methods"])
    noun = "method" if count == 1 else "methods"
    parts = [f"{count} {noun}, {about['backbone']}, {size}; {about['device']}"]
    lines = []
    for method, network in found.networks.items():
        lines += _lines(method, network, found.rows)
    parts.append(markdown_table(HEADER, lines))
    stages = "\n".join(f"- {name}: {text}" for name, text in STAGES.items())
    parts += [EXPLANATION.format(frame=about["frame"]), stages]
    busy = busy_note([about])
    if busy is not None:
        parts.append(f"{busy[0].upper()}{busy[1:]}. Measure again on an idle machine.")
    parts.append(f"Machine, at the end of the measurement:\n\n{describe_machine(about['machine'])}")
    missing = _missing(found)
    if missing:
        parts.append("\n".join(["Not measured:", "", *missing]))
    return "\n\n".join(parts)


def _lines(
    method: str, network: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[list[object]]:
    """Return a line of the table for each engine that has run a method."""
    engines: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["method"] == method:
            engines.setdefault(row["engine"], {})[row["stage"]] = row
    height, width = network["size"]
    lines = []
    for engine, stages in engines.items():
        alone = stages.get("engine") or stages.get("host")
        on_gpu = stages.get("engine")
        line: list[object] = [method, f"{width}x{height}", f"{network['macs'] / 1e9:.2f}", engine]
        line.append(None if alone is None else alone["p50_ms"])
        line += [_fps(on_gpu), _range(network["expected_fps"]), _aim(network["aim_fps"], on_gpu)]
        for stage in ("source", "host", "camera", "source_camera"):
            line.append(_fps(stages.get(stage)))
        line.append(_drift(list(stages.values())))
        lines.append(line)
    return lines


def _fps(row: Mapping[str, Any] | None) -> str | None:
    return None if row is None else f"{row['fps']:,.0f}" if row["fps"] >= 100 else f"{row['fps']}"


def _range(expected: Sequence[int] | None) -> str | None:
    return None if expected is None else f"{expected[0]:,} to {expected[1]:,}"


def _aim(aim: int | None, row: Mapping[str, Any] | None) -> str | None:
    """Return the aim, and whether it is reached where it was measured."""
    if aim is None or row is None:
        return None if aim is None else f"{aim:,}"
    return f"{aim:,}, {'reached' if row['fps'] >= aim else 'missed'}"


def _drift(stages: Sequence[Mapping[str, Any]]) -> str:
    if not all(row["finite"] for row in stages):
        return "not finite"
    return f"{max(row['drift'] for row in stages):.1e}"


def _missing(found: Found) -> list[str]:
    """Return a line for each thing that was not measured and its reason, with its methods."""
    methods: dict[tuple[str, str], list[str]] = {}
    for method, entries in found.absent.items():
        for entry in entries:
            methods.setdefault((entry.name, entry.reason), []).append(method)
    lines = []
    for (name, reason), names in methods.items():
        lines.append(f"- {', '.join(names)}: {name}: {reason}")
    return lines
