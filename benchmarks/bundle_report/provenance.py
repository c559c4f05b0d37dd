"""The provenance of the numbers of the bundle report, as tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from flawline.benchmarks.bundle_report.findings import Findings
from flawline.benchmarks.bundle_report.formatting import number, percent, percent_range
from flawline.runtime.bundle import CALIBRATION, MANIFEST, Bundle
from flawline.runtime.environment import versions
from flawline.runtime.manifest import Spread
from flawline.train.data import data_name

Facts = Mapping[str, object]
SIZES_LISTED = 4


def provenance(findings: Findings, made: str) -> dict[str, Facts]:
    """Return the tables by title; a table maps a name to its value.

    `made` is the time of the report.
    """
    manifest = findings.bundle.manifest
    return {
        "Built": manifest.provenance,
        "Geometry": _geometry(findings),
        "Calibration": _calibration(findings.bundle),
        "Tolerances of an engine, checked at every load": {
            "score": f"{manifest.score_tolerance:.3g}",
            "map": f"{manifest.map_tolerance:.3g}",
        },
        "Files (SHA-256)": _hashes(findings.bundle),
        "This report": {
            "made": made,
            # The page may be mailed, so it names no private folder.
            "bundle": findings.bundle.path.resolve().name,
            "data": data_name(findings.data),
            "engine": findings.engine,
            # Of this machine; those of the training are in the table "Built".
            **versions(),
        },
    }


def _geometry(findings: Findings) -> Facts:
    geometry = findings.bundle.manifest.geometry
    sizes = []
    for height, width in sorted(findings.sizes):
        sizes.append(f"{width}x{height}")
    images = ", ".join(sizes[:SIZES_LISTED])
    if len(sizes) > SIZES_LISTED:
        images += f" and {len(sizes) - SIZES_LISTED} other sizes"
    model_input = f"{geometry.width}x{geometry.height}, {geometry.kind}"
    if geometry.shorter:
        model_input += f", shorter side to {geometry.shorter} first"
    trained = "not recorded"
    source_sizes = findings.bundle.manifest.source_sizes
    if source_sizes is not None:
        trained = source_sizes.describe()
    graph_input = "prepared images"
    source = findings.bundle.manifest.source
    tiles = findings.bundle.manifest.tiles
    if tiles is not None:
        graph_input = f"{tiles} of prepared images"
    if source is not None:
        graph_input = f"frames of {source}, which the graph prepares"
    return {
        "images": images,
        "graph takes": graph_input,
        "model input": model_input,
        "inspected area": str(findings.bundle.manifest.inspected_area or "all of each image"),
        "fixture": str(findings.bundle.manifest.fixture or "none: parts as they lie"),
        "left uninspected": "; ".join(findings.uninspected) or "nothing",
        "images in training": trained,
    }


def _calibration(bundle: Bundle) -> Facts:
    calibration = bundle.calibration
    facts: dict[str, object] = {
        "threshold": repr(calibration.threshold),
        "stated false-alarm rate": percent(calibration.false_alarm_rate),
        f"with {percent(calibration.confidence)} confidence": percent_range(calibration.interval),
        "good images": calibration.good_images,
    }
    if calibration.review is not None:
        facts["review threshold"] = repr(calibration.review.threshold)
        facts["stated rate of review or rejection"] = percent(calibration.review.rate)
    if calibration.pixels is not None:
        facts["pixel threshold"] = repr(calibration.pixels.threshold)
    facts["scores of good images at export"] = _spread(bundle.manifest.score)
    if bundle.has_map:
        facts["largest values of their maps"] = _spread(bundle.manifest.map_peak)
    return facts


def _hashes(bundle: Bundle) -> Facts:
    hashes = {}
    # The manifest does not state its own hash, nor that of the editable calibration.
    for name in (*bundle.sha256, MANIFEST, CALIBRATION):
        content = (bundle.path / name).read_bytes()
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


def _spread(spread: Spread) -> str:
    return (
        f"mean {number(spread.mean)}, standard deviation {number(spread.std)}, "
        f"{number(spread.min)} to {number(spread.max)}"
    )
