"""The picture of the doubtful images: with outlines of what is unlike the others."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from flawline.runtime.image import Image, Map
from flawline.runtime.painting import draw_outline
from flawline.train.anomalies.sheet import (
    BLACK,
    GAP,
    GREY,
    NAME_HEIGHT,
    PAPER,
    TITLE_HEIGHT,
    write_line,
)

# Pixels of an image in the picture, and images side by side.
CELL_WIDTH = 256
COLUMNS = 6


def marked(frame: Image, levels: Map) -> Image:
    """Return a frame, uint8 [h, w, 3] BGR, as wide as a cell, with outlines.

    levels: float32 [h, w]; an outline encloses what is above 1. Nothing is tinted, because a person
    judges the part by this picture.
    """
    height = max(1, round(frame.shape[0] * CELL_WIDTH / frame.shape[1]))
    size = (CELL_WIDTH, height)
    small = np.array(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    draw_outline(small, np.asarray(cv2.resize(levels, size), np.float32))
    return small


def doubtful_sheet(pictures: Sequence[Image], names: Sequence[str], title: str) -> Image:
    """Draw marked images, uint8 [h, CELL_WIDTH, 3] BGR of one size, in rows, each with its name.

    Returns uint8 [h, w, 3] BGR.
    """
    height = pictures[0].shape[0]
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    cell_height = height + NAME_HEIGHT + GAP
    # The title is as wide as a few images at least.
    width = GAP + max(columns, 4) * (CELL_WIDTH + GAP)
    sheet = np.empty((TITLE_HEIGHT + rows * cell_height, width, 3), np.uint8)
    sheet[:] = PAPER
    write_line(sheet, title, GAP, 26, 0.55, BLACK)
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        row, column = divmod(number, columns)
        top = TITLE_HEIGHT + row * cell_height
        left = GAP + column * (CELL_WIDTH + GAP)
        sheet[top : top + height, left : left + CELL_WIDTH] = picture
        write_line(sheet, name, left, top + height + 15, 0.4, GREY, CELL_WIDTH)
    return sheet
