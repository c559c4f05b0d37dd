"""python -m benchmarks.bundle_report: one HTML page on which somebody decides whether to trust a bundle.

    python -m benchmarks.bundle_report --bundle bundles/part --data DATA

Every number comes from what `Detector` says, here and now, about DATA's test images and its held-out good images. The
page is one file without scripts; it loads nothing, so it can be mailed, archived beside the bundle and printed.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from flawline.benchmarks.bundle_report.charts import (
    STYLE,
    Axis,
    Row,
    histograms,
    number,
    percent,
    roc,
)
from flawline.benchmarks.bundle_report.findings import (
    TAIL,
    Findings,
    Judged,
    doubts,
    interval,
    judge,
    labelled,
    provenance,
    rate_of,
    scores_of,
    threshold_interval,
    uninspected,
)
from flawline.cameras import CameraError
from flawline.cameras.decode import read_image
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import ENGINES, EngineError
from flawline.runtime.files import write_atomically
from flawline.runtime.image import Image, resize
from flawline.train import metrics
from flawline.train.data.images import DataError, Sample, hold_out, open_data

SHOWN, THUMB = 6, 400  # pictures of each kind; pixels of the longer side


def write_bundle_report(
    bundle_path: Path, data: Path, out: Path, engine: str = "auto", bits: int | None = None
) -> Path:
    """Judge the images of `data` and write the page; `bits` None means as in training. Raises the known errors."""
    bundle, data_set = read_bundle(bundle_path), open_data(data)
    held = [Sample(path, None) for path in hold_out(data_set.train_good)[1]]
    trained = str(bundle.manifest.provenance.get("train_bits", "8"))
    if bits is None and trained.isdecimal() and trained != "8":
        bits = int(trained)
    with Detector(bundle, engine) as detector:
        findings = judge(detector, data, held, data_set.test, bits)
        page = _page(findings, _galleries(findings, detector, bits))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A file name need not be valid Unicode.
        write_atomically(out, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise BundleError(
            f"{out} cannot be written ({error.strerror}); free the disk or choose another --out"
        ) from error
    return out


def _page(f: Findings, galleries: str) -> str:
    manifest, name = f.bundle.manifest, f.bundle.path.resolve().name
    weights = manifest.provenance.get("train_weights", "unknown weights")
    about = f"{manifest.method} on {manifest.backbone} ({weights}), judged on the images of {f.data.resolve().name}"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        # The browser itself is told to load nothing and to run nothing.
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; ",
        f"style-src 'unsafe-inline'\"><title>{escape(name)}: detector report</title><style>{STYLE}</style></head>",
        f"<body><main><h1>{escape(name)}</h1><p class='soft'>{escape(about)}</p>",
        f"<p class='verdict'>{_verdict(f)}</p>{_notes(f)}{_faults(f)}",
        f"<section><h2>How far apart good and defective parts score</h2>{_scores_section(f)}</section>",
        f"<section><h2>What another threshold would do</h2>{_roc_section(f)}</section>{galleries}",
        f"<section><h2>Detection per kind of defect</h2>{_kinds(f)}</section>",
        f"<h2>Where all this comes from</h2>{_provenance(f)}</main></body></html>\n",
    ]
    return "\n".join(parts)


def _verdict(f: Findings) -> str:
    alarms = f"<b>false alarms {f.alarms} of {len(f.good)}</b> good test images"
    misses = f"<b>misses {f.misses} of {len(f.bad)}</b> defective ones"
    accuracy = {"image AUROC": metrics.auroc(*labelled(f))} if f.good and f.bad else {}
    areas = [
        f"<span>{name} {value:.4f}</span>"
        for name, value in {**accuracy, **f.pixel}.items()
        if math.isfinite(value)
    ]
    known = [
        alarms if f.good else "false alarms unknown, there are no good test images",
        misses if f.bad else "misses unknown, there are no defective test images",
        ", ".join(areas),
        f"<b>{len(f.faults)} rejected</b> unread" if f.faults else "",
    ]
    return f"At the bundle’s threshold of {number(f.bundle.calibration.threshold)}: {'; '.join(filter(None, known))}."


def _notes(f: Findings) -> str:
    """What must be known before the numbers are believed, a line each."""
    notes = [f"{text[0].upper()}{text[1:]}." for text in uninspected(f)]
    if f.bad and not f.pixel:
        notes.append("There are no masks: whether the map marks the right place is not measured.")
    notes += doubts(f)
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""


def _faults(f: Findings) -> str:
    if not f.faults:
        return ""
    lines = "".join(
        f"<li><b>{_name(f, path)}</b>: {escape(why.removeprefix(f'{path}: '))}</li>"
        for path, why in f.faults
    )
    return (
        f"<h2>Rejected without a score: {len(f.faults)}</h2><p>The line rejects a part whose picture cannot be judged. "
        f"These count as rejected, and neither as false alarms nor as found.</p><ul>{lines}</ul>"
    )


def _promise(f: Findings) -> str:
    """The calibration in words: what it promises, what came true, and where the threshold might lie instead."""
    c, lines = f.bundle.calibration, []
    rate, sure = percent(c.false_alarm_rate), percent(c.confidence)
    lines.append(
        f"The calibration promises <b>{rate} false alarms</b>. It rests on {c.good_images} held-out good images: with "
        f"{sure} confidence the true rate is between {percent(c.interval[0])} and {percent(c.interval[1])}."
    )
    if f.good:
        low, high = interval(f.alarms, len(f.good))
        agree = low <= c.interval[1] and c.interval[0] <= high
        meaning = "that agrees with the promise" if agree else "that contradicts the promise"
        lines.append(
            f"Realised on the good test images: <b>{rate_of(f.alarms, len(f.good))}</b>; {meaning}."
        )
    start, end = threshold_interval(scores_of(f.held), c.false_alarm_rate)
    if start is not None or end is not None:
        ends = [
            f"{word} {number(x)}" for word, x in (("above", start), ("below", end)) if x is not None
        ]
        needed = math.ceil(math.log(TAIL) / math.log1p(-c.false_alarm_rate))
        limit = (
            ""
            if end is not None
            else f"; to bound it from above takes {needed} held-out good images"
        )
        lines.append(
            f"<span class='swatch'></span> Shaded is what the threshold could be: with {sure} confidence, the one that "
            f"gives exactly {rate} false alarms lies {' and '.join(ends)}{limit}."
        )
    return "".join(f"<p>{line}</p>" for line in lines)


def _scores_section(f: Findings) -> str:
    outcomes = (
        ("held", "held-out good", "above threshold", f.held),
        ("good", "good test", "false alarms", f.good),
        ("bad", "defective test", "found", f.bad),
    )
    rows: list[Row] = [
        (
            css,
            name,
            (f"{len(group)} images", f"{outcome}: {sum(j.anomalous for j in group)}"),
            scores_of(group),
        )
        for css, name, outcome, group in outcomes
        if group
    ]
    if not rows:
        return "<p>Unknown: no image could be judged.</p>"
    calibration, held = f.bundle.calibration, scores_of(f.held)
    axis = Axis.of(
        scores_of(f.held + f.good), scores_of(f.held + f.good + f.bad), calibration.threshold
    )
    return histograms(
        rows, axis, threshold_interval(held, calibration.false_alarm_rate)
    ) + _promise(f)


def _roc_section(f: Findings) -> str:
    if not f.good or not f.bad:
        return "<p>Unknown: a ROC curve takes good and defective test images.</p>"
    labels, scores = labelled(f)
    point = f.alarms / len(f.good), 1 - f.misses / len(f.bad)
    name = f"threshold {number(f.bundle.calibration.threshold)}"
    return (
        f"<div class='roc'>{roc(labels, scores, point, f.bundle.calibration.interval, name)}"
        f"<div><p>Every threshold is a point on the curve: a lower one finds more and raises more false alarms.</p>"
        f"<p>The area under the curve is the image AUROC, <b>{metrics.auroc(labels, scores):.4f}</b>. The dashed line "
        f"is guessing.</p><p><span class='swatch'></span> Shaded are the false-alarm rates that the calibration "
        f"promises with {percent(f.bundle.calibration.confidence)} confidence.</p></div></div>"
    )


def _galleries(f: Findings, detector: Detector, bits: int | None) -> str:
    """The worst errors first; where there are fewer than SHOWN, the decisions that were nearly wrong follow."""
    good, good_name = (f.good, "good test images") if f.good else (f.held, "held-out good images")
    outlined = "; outlined is the marked defect" if f.pixel else ""
    legend = f"Left the picture, right with what the detector finds unusual{outlined}."
    parts = []
    for error, group, wrong, what in (
        (
            "false alarm",
            sorted(good, key=lambda j: -j.score),
            sum(j.anomalous for j in good),
            good_name,
        ),
        ("missed", sorted(f.bad, key=lambda j: j.score), f.misses, "defective test images"),
    ):
        name = {"false alarm": "False alarms", "missed": "Missed defects"}[error]
        if not group:
            parts.append(f"<h2>{name}</h2><p>Unknown: there are no {what}.</p>")
            continue
        if not wrong:
            text = f"None: all {len(group)} {what} are judged right. Here are the closest calls."
        elif wrong >= min(SHOWN, len(group)):
            text = f"{wrong} of {len(group)} {what}. Here are the worst {min(SHOWN, wrong)}."
        else:
            text = f"{wrong} of {len(group)} {what}. Here they are, then the closest calls among the correct ones."
        cards = "".join(_card(f, j, error, detector, bits) for j in group[:SHOWN])
        parts.append(
            f"<section><h2>{name}</h2><p>{text} <span class='soft'>{legend}</span></p>"
            f"<div class='cards'>{cards}</div></section>"
        )
    return "".join(parts)


def _card(f: Findings, judged: Judged, error: str, detector: Detector, bits: int | None) -> str:
    sample = judged.sample
    image = read_image(sample.path, bits)
    anomaly_map = detector(image).anomaly_map
    assert anomaly_map is not None
    painted = _outlined(detector.paint(image, anomaly_map), sample)
    wrong = judged.anomalous != (sample.defect is not None)
    label = error if wrong else "correct, a close call"
    kind = "good part" if sample.defect is None else f"defect: {sample.defect}"
    return (
        f"<figure class='{'wrong' if wrong else 'right'}'><div>{_picture(image, 'input')}{_picture(painted, 'overlay')}"
        f"</div><figcaption><b>{label}</b> · {_name(f, sample.path)}<br>score {number(judged.score)} / threshold "
        f"{number(f.bundle.calibration.threshold)}<br>{escape(kind)}</figcaption></figure>"
    )


def _outlined(painted: Image, sample: Sample) -> Image:
    mask = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE) if sample.mask else None
    if mask is not None and mask.shape == painted.shape[:2]:
        contours, _ = cv2.findContours(
            (mask > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        thin = max(1, max(mask.shape) // 200)
        for colour, width in (((0, 0, 0), 3 * thin), ((255, 255, 255), thin)):
            cv2.drawContours(painted, contours, -1, colour, width)
    return painted


def _picture(image: Image, what: str) -> str:
    height, width = image.shape[:2]
    scale = min(1, THUMB / max(height, width))
    small = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return f"<img alt='{what}' src='data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}'>"


def _kinds(f: Findings) -> str:
    if not f.bad:
        return "<p>Unknown: there are no defective test images.</p>"
    groups: dict[str, list[Judged]] = {}
    for judged in f.bad:
        groups.setdefault(str(judged.sample.defect), []).append(judged)
    found = {kind: sum(j.anomalous for j in group) for kind, group in groups.items()}
    rows = ""
    for kind, group in sorted(
        groups.items(), key=lambda item: (found[item[0]] / len(item[1]), item[0])
    ):
        share, median = found[kind] / len(group), float(np.median(scores_of(group)))
        rows += (
            f"<tr><td>{escape(kind)}</td><td class='n'>{len(group)}</td><td class='n'>{found[kind]}</td>"
            f"<td class='bar'><span style='width:{70 * share:.0f}%'></span> {percent(share)}</td>"
            f"<td class='n'>{number(median)}</td></tr>"
        )
    return (
        f"<p>Found in all: {rate_of(len(f.bad) - f.misses, len(f.bad))}. The threshold is "
        f"{number(f.bundle.calibration.threshold)}.</p><table><tr><th>kind of defect</th><th class='n'>images</th>"
        f"<th class='n'>found</th><th>share found</th><th class='n'>median score</th></tr>{rows}</table>"
    )


def _provenance(f: Findings) -> str:
    return "".join(
        f"<h3>{title}</h3><table class='facts'>"
        + "".join(
            f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in table.items()
        )
        + "</table>"
        for title, table in provenance(f).items()
    )


def _name(f: Findings, path: Path) -> str:
    return escape(os.path.relpath(path, f.data))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="flawline-report", description="One HTML page about a bundle's decisions."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="as for training, with test images"
    )
    parser.add_argument("--out", type=Path, help="default BUNDLE/report.html")
    parser.add_argument("--engine", default="auto", help=f"auto, {', '.join(ENGINES)}")
    parser.add_argument(
        "--bits",
        type=int,
        choices=range(8, 17),
        metavar="N",
        help="bits that carry the picture in 16-bit images; default as in training",
    )
    args = parser.parse_args(argv)
    try:
        out = write_bundle_report(
            args.bundle, args.data, args.out or args.bundle / "report.html", args.engine, args.bits
        )
    except (BundleError, EngineError, CameraError, DataError) as error:
        print(f"flawline-report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
