"""Speed and size of a bundle, as the bundle report states them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flawline.benchmarks.bundle_report.findings import Findings
from flawline.benchmarks.bundle_report.formatting import megabytes, milliseconds
from flawline.benchmarks.measure.timing import percentiles
from flawline.runtime.bundle import CALIBRATION, MANIFEST
from flawline.runtime.environment import cpu_name

# The engine alone uses each core once. A load above this multiple of the cores comes from others.
BUSY = 1.25


@dataclass(frozen=True)
class Cost:
    """What a verdict takes, in words.

    `graph` is the size of the ONNX graph that the engine ran or compiled, `bundle` that of the
    files that a machine needs. `load` says how busy the machine was, if it was.
    """

    median: str
    slowest: str
    per_second: str
    images: int
    engine: str
    precision: str
    machine: str
    graph: str
    bundle: str
    load: str | None


def cost_of(findings: Findings) -> Cost | None:
    """Return the speed while the images of the report were judged, and the sizes of the files.

    None when no image was judged.
    """
    if not findings.times_ms:
        return None
    measured = percentiles(findings.times_ms)
    bundle = findings.bundle
    size = 0
    for name in (*bundle.sha256, MANIFEST, CALIBRATION):
        size += (bundle.path / name).stat().st_size
    return Cost(
        median=milliseconds(measured["p50_ms"]),
        slowest=milliseconds(measured["p95_ms"]),
        per_second=f"{measured['fps']:.3g}",
        images=len(findings.times_ms),
        engine=findings.engine,
        precision=findings.precision,
        machine=cpu_name(),
        graph=megabytes(bundle.model(findings.precision).stat().st_size),
        bundle=megabytes(size),
        load=_load(),
    )


def _load() -> str | None:
    """Describe the load of a machine whose processes have to wait for its cores; None otherwise."""
    # Windows has no load average.
    if not hasattr(os, "getloadavg"):
        return None
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load <= BUSY * cores:
        return None
    return f"with a load of {load:.1f} on {cores} cores"
