"""The page of the bundle report: judges the images of a data set and fills in page.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flawline import FlawlineError
from flawline.benchmarks.bundle_report.charts import (
    NARROW,
    WIDE,
    Axis,
    HistogramRow,
    draw_histograms,
)
from flawline.benchmarks.bundle_report.confidence import (
    images_for_upper_bound,
    rate_interval,
    threshold_interval,
)
from flawline.benchmarks.bundle_report.cost import cost_of
from flawline.benchmarks.bundle_report.figures import AUROC, figures
from flawline.benchmarks.bundle_report.findings import (
    CLOSE_DEVIATIONS,
    Findings,
    count_anomalous,
    judge_images,
    scores_of,
)
from flawline.benchmarks.bundle_report.formatting import number, percent, percent_range
from flawline.benchmarks.bundle_report.gallery import Gallery, galleries, relative_name
from flawline.benchmarks.bundle_report.kinds import DefectKind, kinds_of
from flawline.benchmarks.bundle_report.notes import notes, set_from_good_test, set_from_held_out
from flawline.benchmarks.bundle_report.provenance import provenance
from flawline.benchmarks.bundle_report.roc import OperatingPoint, draw_roc
from flawline.benchmarks.bundle_report.templates import FOLDER, template
from flawline.benchmarks.bundle_report.thresholds import ThresholdTable, threshold_table
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import read_bundle
from flawline.runtime.conformal import CONFIDENCE
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.runtime.files import make_writable, write_file
from flawline.runtime.threshold import describe_needs
from flawline.train import metrics
from flawline.train.data import Sample, data_name, hold_out, open_data
from flawline.train.progress import Bars


class ReportError(FlawlineError):
    """The report cannot be written."""


def write_bundle_report(
    bundle_path: Path,
    data: Path,
    out: Path,
    engine: str = "auto",
    options: EngineOptions | None = None,
    bit_depth: int | None = None,
) -> None:
    """Judge the images of `data` with a bundle and write the report, one HTML file, to `out`.

    `bit_depth` is that of 16-bit images; None takes the one of the training images. Raises
    BundleError, EngineError and DataError, and ReportError when `out` cannot be written.
    """
    bundle = read_bundle(bundle_path)
    _require_writable(out)
    data_set = open_data(data, bundle.manifest.excluded_images)
    for line in data_set.describe():
        log(line)
    held_out: list[Sample] = []
    # With folds, the detector was trained on all good images: its scores of them say nothing.
    if not bundle.manifest.folds:
        _, held_out_paths = hold_out(data_set.train_good)
        # They are good images, so they have no defect.
        held_out = [Sample(path, None) for path in held_out_paths]
    # runtime.calibrate reads 16-bit images with the bit depth of the training.
    exact_scores = bit_depth in (None, bundle.manifest.file_bit_depth)
    if bit_depth is None:
        bit_depth = bundle.manifest.file_bit_depth
    with Detector(bundle, engine, options) as detector, Bars() as bars:
        findings = judge_images(detector, data, held_out, data_set.test, bit_depth, bars)
        findings.data_notes = list(data_set.notes)
        image_galleries = galleries(findings, detector, bit_depth)
    thresholds = threshold_table(findings, _engine_flags(engine, options), exact_scores)
    page = render(findings, image_galleries, thresholds)
    # A file name need not be valid Unicode, and cannot always be encoded.
    write_file(out, page.encode("utf-8", "backslashreplace"), ReportError, "--out")


def _require_writable(out: Path) -> None:
    """Raise ReportError if the page cannot be written, before all images are judged."""
    if out.is_dir():
        raise ReportError(f"{out} cannot be written (it is a folder); give a file with --out")
    try:
        make_writable(out.parent)
    except OSError as error:
        raise ReportError(
            f"{out} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error


def _engine_flags(engine: str, options: EngineOptions | None) -> list[str]:
    """Return the flags that choose the engine of this report, because scores depend on it."""
    flags = []
    if engine != "auto":
        flags += ["--engine", engine]
    if options is not None and options.precision != "auto":
        flags += ["--precision", options.precision]
    return flags


def render(
    findings: Findings, image_galleries: Sequence[Gallery], thresholds: ThresholdTable
) -> str:
    """Return the page as HTML."""
    made = datetime.now(timezone.utc)
    cost = cost_of(findings)
    faults = []
    for path, reason in findings.faults:
        name = relative_name(path, findings.data)
        faults.append((name, reason.removeprefix(f"{path}: ")))
    return template(FOLDER, "page.html").render(
        name=findings.bundle.path.resolve().name,
        data_name=data_name(findings.data),
        manifest=findings.bundle.manifest,
        calibration=findings.bundle.calibration,
        has_map=findings.bundle.has_map,
        findings=findings,
        made=made.strftime("%Y-%m-%d %H:%M UTC"),
        figures=figures(findings, _accuracies(findings), cost),
        cost=cost,
        thresholds=thresholds,
        needs=describe_needs(),
        close_deviations=CLOSE_DEVIATIONS,
        notes=notes(findings),
        faults=faults,
        histograms=_histograms(findings),
        realised=_realised(findings),
        threshold_range=_threshold_range(findings),
        roc=_roc(findings),
        galleries=image_galleries,
        kinds=_kinds(findings),
        detected=_rate(findings.detected, len(findings.defective)),
        provenance=provenance(findings, made.isoformat(timespec="seconds")),
    )


def _accuracies(findings: Findings) -> dict[str, float]:
    """Return the accuracies that could be measured, by name."""
    accuracies = {}
    if findings.good and findings.defective:
        accuracies[AUROC] = metrics.auroc(*findings.labels_and_scores())
    for name, value in findings.pixel_accuracy.items():
        if math.isfinite(value):
            accuracies[name] = value
    return accuracies


def _histograms(findings: Findings) -> list[str]:
    """Return the score histograms as SVG in every layout; none when no image has a score."""
    rows = []
    for css, name, outcome, images in (
        ("held-out", "held-out good", "above threshold", findings.held_out),
        ("good", "good test", "false alarms", findings.good),
        ("defective", "defective test", "detected", findings.defective),
    ):
        if images:
            count = count_anomalous(images)
            rows.append(HistogramRow(css, name, f"{outcome}: {count}", scores_of(images)))
    if not rows:
        return []
    good = findings.held_out + findings.good
    axis = Axis.covering(scores_of(good), scores_of(good + findings.defective), findings.threshold)
    band = _threshold_band(findings)
    return [draw_histograms(rows, axis, band, layout) for layout in (WIDE, NARROW)]


def _threshold_band(findings: Findings) -> tuple[float | None, float | None]:
    """Return the interval of the threshold of the stated rate; see `threshold_interval`."""
    # Other images say nothing about a threshold that was set from good parts elsewhere.
    if not set_from_held_out(findings):
        return None, None
    rate = findings.bundle.calibration.false_alarm_rate
    return threshold_interval(scores_of(findings.held_out), rate)


def _realised(findings: Findings) -> dict[str, Any] | None:
    """Return the measured rate of false alarms and whether the stated one is consistent with it."""
    if not findings.good:
        return None
    # Two intervals that overlap are consistent.
    low, high = rate_interval(findings.false_alarms, len(findings.good))
    stated_low, stated_high = findings.bundle.calibration.interval
    return {
        "rate": _rate(findings.false_alarms, len(findings.good)),
        "consistent": low <= stated_high and stated_low <= high,
        "independent": not set_from_good_test(findings),
    }


def _threshold_range(findings: Findings) -> dict[str, Any] | None:
    """Return between which values the threshold of the stated rate lies; None when unknown."""
    false_alarm_rate = findings.bundle.calibration.false_alarm_rate
    low, high = _threshold_band(findings)
    if low is None and high is None:
        return None
    ends = []
    if low is not None:
        ends.append(f"above {number(low)}")
    if high is not None:
        ends.append(f"below {number(high)}")
    return {
        "ends": " and ".join(ends),
        "images_missing": images_for_upper_bound(false_alarm_rate) if high is None else None,
        "confidence": CONFIDENCE,
    }


def _roc(findings: Findings) -> dict[str, Any] | None:
    """Return the ROC curve as SVG and its area; None unless there are both kinds of test images."""
    if not findings.good or not findings.defective:
        return None
    labels, scores = findings.labels_and_scores()
    calibration = findings.bundle.calibration
    point = OperatingPoint(
        calibration.threshold,
        findings.false_alarms / len(findings.good),
        findings.detected / len(findings.defective),
    )
    return {
        "curve": draw_roc(labels, scores, point, calibration.interval),
        "area": f"{metrics.auroc(labels, scores):.4f}",
    }


def _kinds(findings: Findings) -> list[DefectKind]:
    """Return the kinds of defect, the one with the smallest share of detections first."""
    kinds = kinds_of(findings.defective, findings.threshold)
    return sorted(kinds, key=lambda kind: (kind.share, kind.name))


def _rate(count: int, total: int) -> str | None:
    """Return a counted rate with its interval in words; None when nothing was counted."""
    if not total:
        return None
    interval = percent_range(rate_interval(count, total))
    share = percent(count / total)
    return f"{count} of {total}, {share} ({interval} with {percent(CONFIDENCE)} confidence)"
