"""Overlays: what is painted, what stays visible below the colour, and where the outline is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flawline.runtime.manifest import Spread
from flawline.runtime.painting import OUTLINE_BGR, overlay, pixel_threshold


@pytest.fixture
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(40, 200, (90, 120, 3), np.uint8)


def peak_at(y: int, x: int, height: float) -> np.ndarray:
    """A map that falls off from one point, as one that was smoothed does; 0 far from it."""
    rows, columns = np.mgrid[:90, :120]
    distance = (rows - y) ** 2 + (columns - x) ** 2
    return np.asarray(height * np.exp(-distance / 300) - 0.01, np.float32)


def brightness(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(int)


def test_nothing_is_painted_where_the_map_is_low_or_unknown(photo: np.ndarray) -> None:
    levels = np.zeros(photo.shape[:2], np.float32)
    levels[:, :60] = 0.9
    levels[:, 60:] = -3
    levels[0] = np.nan
    painted = overlay(photo, levels)
    assert (painted[1:, 60:] == photo[1:, 60:]).all()
    assert (painted[0] == photo[0]).all()
    assert np.abs(painted[1:, :60].astype(int) - photo[1:, :60]).mean() > 20


def test_the_image_is_not_changed_and_mono_is_accepted(photo: np.ndarray) -> None:
    mono = np.ascontiguousarray(photo[..., 0])
    before = mono.copy()
    assert overlay(mono, peak_at(45, 60, 3.0)).shape == (*mono.shape, 3)
    assert (mono == before).all()
    assert (overlay(mono, np.zeros(mono.shape, np.float32))[..., 1] == mono).all()


def test_a_defect_stays_visible_where_the_map_saturates() -> None:
    """A thin dark line in a region whose values are all far above the pixel threshold."""
    image = np.full((90, 120, 3), 150, np.uint8)
    image[45, 50:70] = 90
    painted = brightness(overlay(image, peak_at(45, 60, 60.0)))
    contrast = painted[43, 52:68] - painted[45, 52:68]
    # It was 60 before, and 15 below the colours that hid it.
    assert contrast.min() > 40


def test_the_core_of_a_saturated_region_has_another_colour_than_its_border() -> None:
    image = np.full((90, 120, 3), 150, np.uint8)
    painted = overlay(image, peak_at(45, 60, 60.0)).astype(int)
    core, border = painted[45, 60], painted[45, 60 + 27]
    # Red at the core, orange at the border: less green.
    assert border[1] - core[1] > 30


def test_the_outline_encloses_what_is_above_the_pixel_threshold() -> None:
    image = np.full((90, 120, 3), 150, np.uint8)
    levels = peak_at(45, 60, 5.0)
    painted = overlay(image, levels)
    line = np.abs(painted.astype(int) - OUTLINE_BGR).sum(-1) < 60
    assert line.any()
    # One pixel is the width of the line.
    near = cv2.dilate((levels > 1).astype(np.uint8), np.ones((3, 3), np.uint8))
    inside = cv2.erode((levels > 1).astype(np.uint8), np.ones((5, 5), np.uint8))
    assert near[line].all()
    assert not inside[line].any()


def test_a_part_below_the_pixel_threshold_has_no_outline(photo: np.ndarray) -> None:
    painted = overlay(photo, np.full(photo.shape[:2], 0.99, np.float32))
    assert not (np.abs(painted.astype(int) - OUTLINE_BGR).sum(-1) < 30).any()


@pytest.mark.parametrize("value", [np.inf, 3e38])
def test_extreme_values_are_painted(photo: np.ndarray, value: float) -> None:
    levels = np.zeros(photo.shape[:2], np.float32)
    levels[20:40, 20:40] = value
    painted = overlay(photo, levels)
    assert (painted[30, 30] != photo[30, 30]).any()
    assert (painted[60:] == photo[60:]).all()


def test_no_good_image_reaches_the_pixel_threshold() -> None:
    assert pixel_threshold(Spread(mean=3.0, std=0.1, min=2.8, max=3.9)) == 3.9
    # The largest of a few images may be low by chance.
    assert pixel_threshold(Spread(mean=3.0, std=0.5, min=2.8, max=3.9)) == 4.5
