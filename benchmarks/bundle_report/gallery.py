"""The image galleries of the bundle report: missed defects, false alarms and found defects."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flawline.benchmarks.bundle_report.findings import Findings, JudgedImage, scores_of
from flawline.benchmarks.bundle_report.kinds import images_by_kind
from flawline.cameras.decode import read_image
from flawline.runtime.detector import Detector
from flawline.runtime.image import Image, resize
from flawline.train.data import Sample
from flawline.train.data.masks import decode_mask, fit_mask

CARDS = 6  # of each gallery at most
CORRECT_CARDS = 4  # shown in place of errors where there are none
THUMBNAIL_SIDE = 360  # pixels of the longer side
JPEG_QUALITY = 85
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Card:
    """One image with its verdict.

    `image` and `overlay` are data URIs; `overlay` is None if the bundle gives no anomaly map. The
    verdict is `close` if its score is close to the threshold.
    """

    image: str
    overlay: str | None
    correct: bool
    close: bool
    verdict: str
    name: str
    score: float
    kind: str


@dataclass(frozen=True)
class Gallery:
    """A title, what is shown in words, and the cards."""

    title: str
    summary: str
    cards: list[Card]


def galleries(findings: Findings, detector: Detector, bit_depth: int | None) -> list[Gallery]:
    """Return the galleries of missed defects, of false alarms and of found defects."""
    # Without good test images, the held-out ones show where false alarms would come from.
    good = findings.good or findings.held_out
    good_name = "good test images" if findings.good else "held-out good images"
    highest_first = sorted(good, key=lambda image: -image.score)
    lowest_first = sorted(findings.defective, key=lambda image: image.score)
    painter = _Painter(findings, detector, bit_depth)
    return [
        painter.errors("Missed defects", "defective test images", "lowest", lowest_first),
        painter.errors("False alarms", good_name, "highest", highest_first),
        painter.found(),
    ]


class _Painter:
    """Makes galleries: reads each image again, judges it and paints its anomaly map."""

    def __init__(self, findings: Findings, detector: Detector, bit_depth: int | None) -> None:
        self._findings = findings
        self._detector = detector
        self._bit_depth = bit_depth

    def errors(
        self, title: str, group: str, worst: str, worst_first: Sequence[JudgedImage]
    ) -> Gallery:
        """Return the gallery of the errors among the images of a `group`.

        Without any error it shows the images whose scores come nearest to one, the `worst`.
        """
        wrong = [image for image in worst_first if not image.correct]
        shown = wrong[:CARDS] or worst_first[:CORRECT_CARDS]
        summary = _summary(group, len(wrong), len(worst_first), worst)
        return Gallery(title, summary, self._cards(shown))

    def found(self) -> Gallery:
        """Return the gallery of detected defects, of as many kinds as there is room for."""
        title = "Found defects"
        total = len(self._findings.defective)
        if not total:
            return Gallery(title, "Unknown: there are no defective test images.", [])
        detected = [image for image in self._findings.defective if image.correct]
        if not detected:
            return Gallery(title, f"None of {total} defective test images.", [])
        shown = _typical_of_each_kind(detected)
        summary = (
            f"{len(detected)} of {total} defective test images. Of each kind of defect, these have "
            "the scores in the middle."
        )
        return Gallery(title, summary, self._cards(shown))

    def _cards(self, images: Sequence[JudgedImage]) -> list[Card]:
        return [self._card(judged) for judged in images]

    def _card(self, judged: JudgedImage) -> Card:
        sample = judged.sample
        image = read_image(sample.path, self._bit_depth)
        kind = "good part" if sample.defect is None else f"defect: {sample.defect}"
        return Card(
            image=_data_uri(image),
            overlay=self._overlay(image, sample),
            correct=judged.correct,
            close=self._findings.is_close(judged),
            verdict=_verdict(judged),
            name=relative_name(sample.path, self._findings.data),
            score=judged.score,
            kind=kind,
        )

    def _overlay(self, image: Image, sample: Sample) -> str | None:
        """Return the image under its anomaly map, with the outline of the marked defect."""
        if not self._detector.bundle.has_map:
            return None
        # The maps of all images would take much memory; the few that are shown are computed again.
        painted = self._detector.paint(image, self._detector(image).anomaly_map)
        _outline_defect(painted, sample)
        return _data_uri(painted)


def _verdict(judged: JudgedImage) -> str:
    if judged.sample.defect is None:
        return "false alarm" if judged.anomalous else "judged good"
    return "found" if judged.anomalous else "missed"


def _typical_of_each_kind(detected: Sequence[JudgedImage]) -> list[JudgedImage]:
    """Return up to CARDS images, the kinds in turn, of each kind those nearest to its median."""
    queues = []
    for images in images_by_kind(detected).values():
        median = float(np.median(scores_of(images)))
        queues.append(sorted(images, key=lambda image: abs(image.score - median)))
    shown: list[JudgedImage] = []
    for place in range(CARDS):
        for queue in queues:
            if place < len(queue) and len(shown) < CARDS:
                shown.append(queue[place])
    return shown


def relative_name(path: Path, data: Path) -> str:
    return os.path.relpath(path, data)


def _summary(group: str, wrong: int, total: int, worst: str) -> str:
    if not total:
        return f"Unknown: there are no {group}."
    if not wrong:
        return f"None: all {total} {group} are judged correctly. These have the {worst} scores."
    if wrong > CARDS:
        return f"{wrong} of {total} {group}. These {CARDS} have the {worst} scores."
    return f"{wrong} of {total} {group}."


def _outline_defect(painted: Image, sample: Sample) -> None:
    """Draw the outline of the marked defect into an image [h, w, 3], where there is a mask."""
    if sample.mask is None:
        return
    height, width = painted.shape[:2]
    mask = fit_mask(decode_mask(sample.mask), (height, width), sample.mask)
    binary = mask.astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, max(mask.shape) // 200)
    # White within black is visible on every background.
    cv2.drawContours(painted, contours, -1, BLACK, 3 * thickness)
    cv2.drawContours(painted, contours, -1, WHITE, thickness)


def _data_uri(image: Image) -> str:
    """Return a thumbnail of an image [h, w] or [h, w, 3] as the URI of a JPEG."""
    height, width = image.shape[:2]
    # Small images are not enlarged.
    scale = min(1, THUMBNAIL_SIDE / max(height, width))
    small = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
