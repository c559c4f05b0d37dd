"""The worst errors of the most accurate bundle of each data set, as pictures with their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline import FlawlineError
from flawline.benchmarks.bundle_report.findings import judge_images
from flawline.benchmarks.bundle_report.gallery import Gallery, galleries
from flawline.benchmarks.sweep.report.rows import Row, SweepFiles
from flawline.runtime.bundle import read_bundle
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import REFERENCE_ENGINE
from flawline.train.data import open_data
from flawline.train.progress import Bars

# The third gallery of a bundle report shows what it found.
ERRORS = 2


@dataclass(frozen=True)
class Pictures:
    """The galleries of one data set: missed defects and false alarms of one bundle."""

    data: str
    cell: str
    threshold: float
    galleries: Sequence[Gallery]


def pictures_of(sweep: SweepFiles) -> list[Pictures]:
    """Judge the test images of each data set with its most accurate bundle, and keep the worst.

    A data set or bundle that is not on this machine is left out, which is logged.
    """
    found = []
    for data in dict.fromkeys(row["data"] for row in sweep.measured):
        row = _most_accurate([row for row in sweep.measured if row["data"] == data])
        folder = _folder(sweep, row["cell"])
        if folder is None or not folder.exists():
            log(f"note: no pictures of {data}, because its images are not on this machine")
            continue
        try:
            found.append(_pictures(sweep.store.bundle(row["cell"]), folder, data))
        except FlawlineError as error:
            log(f"note: no pictures of {data}: {error}")
    return found


def _most_accurate(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: (row.get("image_auroc") or 0, row["cell"]))


def _folder(sweep: SweepFiles, cell: str) -> Path | None:
    """Return the folder of the data set of a cell, as the plan names it."""
    planned = sweep.plan.get("cells", {}).get(cell)
    return None if planned is None else Path(planned["data"])


def _pictures(bundle_path: Path, folder: Path, data: str) -> Pictures:
    bundle = read_bundle(bundle_path)
    data_set = open_data(folder)
    bit_depth = bundle.manifest.file_bit_depth
    with Detector(bundle, REFERENCE_ENGINE) as detector, Bars() as bars:
        findings = judge_images(detector, folder, [], data_set.test, bit_depth, bars)
        shown = galleries(findings, detector, bit_depth)[:ERRORS]
    return Pictures(data, bundle_path.name, findings.threshold, shown)
