"""The image galleries of the bundle report: the worst errors, then correct verdicts near them."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flawline.benchmarks.bundle_report.findings import Findings, JudgedImage
from flawline.cameras.decode import read_image
from flawline.runtime.detector import Detector
from flawline.runtime.image import Image, resize
from flawline.train.data import Sample
from flawline.train.data.masks import decode_mask, fit_mask

CARDS = 6  # of each gallery
THUMBNAIL_SIDE = 400  # pixels of the longer side
JPEG_QUALITY = 88
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Card:
    """One image with its verdict.

    `image` and `overlay` are data URIs; `overlay` is None if the bundle gives no anomaly map.
    """

    image: str
    overlay: str | None
    correct: bool
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
    """Return the galleries of false alarms and of missed defects."""
    # Without good test images, the held-out ones show where false alarms would come from.
    good = findings.good or findings.held_out
    good_name = "good test images" if findings.good else "held-out good images"
    highest_first = sorted(good, key=lambda image: -image.score)
    lowest_first = sorted(findings.defective, key=lambda image: image.score)
    painter = _Painter(findings, detector, bit_depth)
    return [
        painter.gallery("False alarms", "false alarm", good_name, highest_first),
        painter.gallery("Missed defects", "missed", "defective test images", lowest_first),
    ]


class _Painter:
    """Makes galleries: reads each image again, judges it and paints its anomaly map."""

    def __init__(self, findings: Findings, detector: Detector, bit_depth: int | None) -> None:
        self._findings = findings
        self._detector = detector
        self._bit_depth = bit_depth

    def gallery(
        self, title: str, error: str, group: str, worst_first: Sequence[JudgedImage]
    ) -> Gallery:
        """Return the gallery of one kind of `error` among the images of a `group`."""
        cards = []
        for judged in worst_first[:CARDS]:
            cards.append(self._card(judged, error))
        return Gallery(title, _summary(group, worst_first), cards)

    def _card(self, judged: JudgedImage, error: str) -> Card:
        sample = judged.sample
        image = read_image(sample.path, self._bit_depth)
        kind = "good part" if sample.defect is None else f"defect: {sample.defect}"
        return Card(
            image=_data_uri(image),
            overlay=self._overlay(image, sample),
            correct=judged.correct,
            verdict="correct, near the threshold" if judged.correct else error,
            name=relative_name(sample.path, self._findings.data),
            score=judged.score,
            kind=kind,
        )

    def _overlay(self, image: Image, sample: Sample) -> str | None:
        """Return the image under its anomaly map, with the outline of the marked defect."""
        if not self._detector.bundle.has_map:
            return None
        # The maps of all images would take much memory; the few that are shown are computed again.
        anomaly_map = self._detector(image).anomaly_map
        assert anomaly_map is not None
        painted = self._detector.paint(image, anomaly_map)
        _outline_defect(painted, sample)
        return _data_uri(painted)


def relative_name(path: Path, data: Path) -> str:
    return os.path.relpath(path, data)


def _summary(group: str, images: Sequence[JudgedImage]) -> str:
    total = len(images)
    wrong = total
    for judged in images:
        if judged.correct:
            wrong -= 1
    if not total:
        return f"Unknown: there are no {group}."
    if not wrong:
        return f"None: all {total} {group} are judged correctly. These are near the threshold."
    if wrong >= min(CARDS, total):
        return f"{wrong} of {total} {group}. These are the worst {min(CARDS, wrong)}."
    return f"{wrong} of {total} {group}, shown first; then correct ones near the threshold."


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
