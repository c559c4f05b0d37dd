"""The caption of a saved image: verdict, score and threshold below it, readable at every size."""

from __future__ import annotations

import math

import cv2
import numpy as np

from flawline.runtime.image import Image
from flawline.runtime.verdict import ANOMALOUS, GOOD, REVIEW, Verdict

# A caption in an image with a shorter side than this one would be too wide or too small to read.
SMALLEST_SIDE = 320  # pixels of the longer side
SMALLEST_LETTER = 10  # pixels, the height of a capital
LETTERS_PER_SIDE = 80  # the longer side is so many times the height of a capital
FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT = 21.0  # pixels of a capital at scale 1
BACKGROUND_BGR = (32, 32, 32)
TEXT_BGR = (225, 225, 225)
VERDICT_BGR = {GOOD: (120, 215, 120), REVIEW: (90, 205, 255), ANOMALOUS: (110, 110, 255)}
FEWEST_DIGITS = 3
MOST_DIGITS = 9


def magnified(image: Image) -> Image:
    """Return an image that is large enough for a caption.

    A small image is repeated by a whole factor, so that its pixels stay as they are.
    """
    factor = math.ceil(SMALLEST_SIDE / max(image.shape[:2]))
    if factor == 1:
        return image
    return np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def with_caption(image: Image, verdict: Verdict) -> Image:
    """Return an image with verdict, score and threshold in a strip below it: uint8 [h, w, 3] BGR.

    `image` is uint8 [h, w, 3] BGR and stays visible as a whole. The strip has several lines where
    the texts do not fit beside each other; an image that is narrower than one text gets a bar.
    """
    height, width = image.shape[:2]
    letter = max(SMALLEST_LETTER, max(height, width) // LETTERS_PER_SIDE)
    texts = _texts(verdict)
    sizes = [_width(text, letter) for text in texts]
    width = max(width, max(sizes) + 2 * letter)
    lines = _lines(sizes, width, letter)
    canvas = np.empty((height + 2 * letter * len(lines) + letter, width, 3), np.uint8)
    canvas[:] = BACKGROUND_BGR
    canvas[:height, : image.shape[1]] = image
    for number, line in enumerate(lines):
        left = letter
        bottom = height + 2 * letter * (number + 1)
        for index in line:
            colour = VERDICT_BGR.get(texts[index], TEXT_BGR)
            _write(canvas, texts[index], (left, bottom), letter, colour)
            left += sizes[index] + 2 * letter
    return canvas


def _texts(verdict: Verdict) -> list[str]:
    """Return the texts, with enough digits to show on which side of a threshold the score is."""
    thresholds = [verdict.threshold]
    if verdict.review_threshold is not None:
        thresholds.append(verdict.review_threshold)
    score = ""
    shown: list[str] = []
    for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
        score = f"{verdict.score:.{digits}g}"
        shown = [f"{threshold:.{digits}g}" for threshold in thresholds]
        if score not in shown:
            break
    texts = [verdict.name, f"score {score}", f"threshold {shown[0]}"]
    if len(shown) > 1:
        texts.append(f"review {shown[1]}")
    return texts


def _lines(sizes: list[int], width: int, letter: int) -> list[list[int]]:
    """Return the indices of the texts of each line, as many as fit beside each other."""
    lines: list[list[int]] = []
    free = 0
    for index, size in enumerate(sizes):
        needed = size + 2 * letter
        if not lines or needed > free:
            lines.append([])
            free = width
        lines[-1].append(index)
        free -= needed
    return lines


def _width(text: str, letter: int) -> int:
    (width, _), _ = cv2.getTextSize(text, FONT, letter / FONT_HEIGHT, _thickness(letter))
    return int(width)


def _write(
    canvas: Image, text: str, place: tuple[int, int], letter: int, colour: tuple[int, int, int]
) -> None:
    scale = letter / FONT_HEIGHT
    cv2.putText(canvas, text, place, FONT, scale, colour, _thickness(letter), cv2.LINE_AA)


def _thickness(letter: int) -> int:
    return max(1, round(letter / 9))
