"""A frame is valid or carries a fault: no camera can put an image into the stream that ends it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from flawline.cameras import Frame
from flawline.cameras.pixels import to_8_bit


def frame(image: Any, **fields: Any) -> Frame:
    return Frame("test://", 0, image, **fields)


@pytest.mark.parametrize(
    ("image", "fields", "pixel_format", "bit_depth"),
    [
        (np.zeros((4, 5), np.uint8), {}, "mono", 8),
        (np.zeros((4, 5, 3), np.uint8), {}, "bgr", 8),
        (np.zeros((4, 5), np.uint16), {}, "mono", None),
        (np.full((4, 5), 4095, np.uint16), {"bit_depth": 12}, "mono", 12),
        (np.zeros((4, 5, 3), np.uint16), {"pixel_format": "bgr", "bit_depth": 16}, "bgr", 16),
    ],
)
def test_valid_images_are_described(
    image: np.ndarray, fields: dict[str, Any], pixel_format: str, bit_depth: int | None
) -> None:
    valid = frame(image, **fields)
    assert valid.image is image
    assert valid.fault is None
    assert valid.pixel_format == pixel_format
    assert valid.bit_depth == bit_depth


@pytest.mark.parametrize(
    ("image", "fields", "fault"),
    [
        (None, {}, "the source gave no image"),
        ([[1, 2]], {}, r"the image is a list, not an array; supported are uint8"),
        (np.zeros((4, 5), np.float32), {}, r"the pixels are float32 \[4, 5\]; supported are uint8"),
        (np.zeros((4, 5), np.int16), {}, "the pixels are int16"),
        (np.zeros((4, 5, 4), np.uint8), {}, r"the shape uint8 \[4, 5, 4\]"),
        (np.zeros(5, np.uint8), {}, r"the shape uint8 \[5\]"),
        (np.zeros((0, 5, 3), np.uint8), {}, r"the image is empty: \[0, 5, 3\]"),
        (np.zeros((4, 5), np.uint8), {"pixel_format": "bgr"}, "'bgr' does not fit"),
        (np.zeros((4, 5), np.uint8), {"pixel_format": "bayer_rg8"}, "'bayer_rg8' does not fit"),
        (np.zeros((4, 5), np.uint8), {"bit_depth": 12}, "bit depth of 12 does not fit uint8"),
        (np.zeros((4, 5), np.uint16), {"bit_depth": 17}, "bit depth of 17 does not fit uint16"),
        (np.full((4, 5), 4096, np.uint16), {"bit_depth": 12}, "4096 does not fit in 12 bits"),
    ],
)
def test_other_images_become_a_fault_that_says_what_is_supported(
    image: Any, fields: dict[str, Any], fault: str
) -> None:
    faulty = frame(image, **fields)
    assert faulty.image is None
    assert re.search(fault, faulty.fault or "")


def test_a_fault_that_the_camera_reports_is_stored_and_its_image_is_not() -> None:
    torn = frame(np.zeros((4, 5), np.uint8), fault="incomplete buffer")
    assert torn.image is None
    assert torn.fault == "incomplete buffer"


def test_the_lowest_bits_are_dropped() -> None:
    deep = np.array([[0, 15, 16, 4095]], np.uint16)
    assert to_8_bit(deep, 12).tolist() == [[0, 0, 1, 255]]
    assert to_8_bit(deep, 12).dtype == np.uint8
    shallow = np.array([[7]], np.uint8)
    assert to_8_bit(shallow, 12) is shallow
    with pytest.raises(ValueError, match="4095 does not fit in 11 bits"):
        to_8_bit(deep, 11)
    with pytest.raises(ValueError, match="expected uint8 or uint16, got float32"):
        to_8_bit(np.zeros((1, 1), np.float32), 12)
