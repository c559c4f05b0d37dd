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

# Stage -> its column, in frames per second.
COLUMNS = {
    "engine": "image on GPU",
    "source": "frame on GPU",
    "host": "host to host",
    "camera": "camera to verdict",
    "source_camera": "camera to verdict, graph prepares",
}
EXPLANATION = """\
Frames per second at batch 1, of medians. ms is the time of "image on GPU", or of "host to host" for
an engine without a memory of its own. Weights are random, and frames {frame}.

{stages}
- expected: an estimate for FP16 and "image on GPU", from the figures of the GPU, the
  multiply-accumulates and the number of kernels
- aim: that of the backbone at this size for "image on GPU", with a CUDA graph
- drift: the largest difference of a score in any stage from that of PyTorch in FP32, relative to
  the standard deviation of the scores of good images"""


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
    first, *others = COLUMNS.values()
    header = ("method", "input", "GMAC", "engine", "ms", first, "expected", "aim", *others, "drift")
    parts.append(markdown_table(header, lines))
    stages = "\n".join(f"- {column}: {STAGES[name]}" for name, column in COLUMNS.items())
    parts.append(EXPLANATION.format(frame=about["frame"], stages=stages))
    busy = busy_note([about])
    if busy is not None:
        parts.append(f"{busy[0].upper()}{busy[1:]}. Measure again on an idle machine.")
    parts.append(f"Machine, at the end of the measurement:\n\n{describe_machine(about['machine'])}")
    missing = _missing(found, count)
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
        alone = stages.get("engine")
        timed = alone or stages.get("host")
        line: list[object] = [method, f"{width}x{height}", f"{network['macs'] / 1e9:.2f}", engine]
        line += [None if timed is None else timed["p50_ms"], _fps(alone)]
        line += [_range(network["expected_fps"]), _aim(network["aim_fps"], alone)]
        line += [_fps(stages.get(name)) for name in COLUMNS if name != "engine"]
        line.append(_drift(list(stages.values())))
        lines.append(line)
    return lines


def _fps(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return None
    return f"{row['fps']:,.0f}" if row["fps"] >= 100 else f"{row['fps']:.1f}"


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


def _missing(found: Found, count: int) -> list[str]:
    """Return a line for each thing that was not measured and its reason, with its methods."""
    methods: dict[tuple[str, str], list[str]] = {}
    for method, entries in found.absent.items():
        for entry in entries:
            methods.setdefault((entry.name, entry.reason), []).append(method)
    lines = []
    for (name, reason), names in methods.items():
        owners = "every method" if len(names) == count > 1 else ", ".join(names)
        lines.append(f"- {owners}: {name}: {reason}")
    return lines
