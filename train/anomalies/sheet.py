"""A contact sheet of synthetic anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from flawline.runtime.files import write_file
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.anomalies import Mask

Colour = tuple[int, int, int]

# Pixels between the images, and above, left of and below all of them.
GAP = 6
TITLE_HEIGHT = 40
LABEL_WIDTH = 92
NAME_HEIGHT = 22
# BGR.
PAPER: Colour = (250, 250, 250)
BLACK: Colour = (40, 40, 40)
GREY: Colour = (120, 120, 120)
RED: Colour = (60, 60, 255)
ROWS = ("normal", "synthetic", "blended")


def contact_sheet(
    samples: Sequence[tuple[Image, Image, Mask]], names: Sequence[str], title: str
) -> Image:
    """Draw one column per sample: the normal image, the synthetic one, and that one with outlines.

    samples: as `SyntheticAnomalies.sample` returns them, all of one size. names: the text below
    each column. Returns uint8 [h, w, 3] BGR.
    """
    columns = []
    labels = []
    for (normal, synthetic, mask), name in zip(samples, names, strict=True):
        tiles = (normal, synthetic, outlined(synthetic, mask))
        columns.append(dict(zip(ROWS, tiles, strict=True)))
        labels.append(name if mask.any() else f"{name}: no patch placed")
    return stage_sheet(columns, labels, title)


def stage_sheet(columns: Sequence[Mapping[str, Image]], names: Sequence[str], title: str) -> Image:
    """Draw one column per draw, with one picture per row; see `StagedAnomalies.stages`.

    All columns have the same rows, and all pictures have one size. names: the text below each
    column. Returns uint8 [h, w, 3] BGR.
    """
    rows = list(columns[0])
    height, width = columns[0][rows[0]].shape[:2]
    sheet_height = TITLE_HEIGHT + len(rows) * (height + GAP) + NAME_HEIGHT
    sheet_width = LABEL_WIDTH + len(columns) * (width + GAP)
    sheet = np.empty((sheet_height, sheet_width, 3), np.uint8)
    sheet[:] = PAPER
    write_line(sheet, title, GAP, 26, 0.55, BLACK)
    for row, label in enumerate(rows):
        top = TITLE_HEIGHT + row * (height + GAP)
        write_line(sheet, label, GAP, top + height // 2, 0.45, BLACK)
        for column, pictures in enumerate(columns):
            left = LABEL_WIDTH + column * (width + GAP)
            sheet[top : top + height, left : left + width] = pictures[label]
    for column, name in enumerate(names):
        left = LABEL_WIDTH + column * (width + GAP)
        write_line(sheet, name, left, sheet_height - 8, 0.4, GREY, width)
    return sheet


def write_png(path: Path, image: Image) -> None:
    """Write an image, uint8 [h, w, 3] BGR, as a PNG. Raises TrainError if that is impossible."""
    _, png = cv2.imencode(".png", image)
    write_file(path, png.tobytes(), TrainError, "--out")


def outlined(image: Image, mask: Mask) -> Image:
    """Return a copy of an image, uint8 [H, W, 3] BGR, with red lines around a bool [H, W] mask."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    thickness = max(1, len(image) // 128)
    drawn = cv2.drawContours(image.copy(), contours, -1, RED, thickness)
    return np.asarray(drawn, np.uint8)


def write_line(
    sheet: Image,
    text: str,
    x: int,
    y: int,
    scale: float,
    colour: Colour,
    width: int | None = None,
) -> None:
    """Write one line of text, cut off at `width`; "?" stands for what OpenCV cannot draw."""
    if width is None:
        width = sheet.shape[1] - x
    font = cv2.FONT_HERSHEY_SIMPLEX
    text = text.encode("ascii", "replace").decode()
    while text and cv2.getTextSize(text, font, scale, 1)[0][0] > width:
        text = text[:-1]
    cv2.putText(sheet, text, (x, y), font, scale, colour, 1, cv2.LINE_AA)
