"""Tests of finding a part that is turned and shifted, and of laying it back."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from flawline.runtime.find_part import halvings, small_copy
from flawline.runtime.fixture import (
    LOWEST_QUALITY,
    FixtureError,
    fixture_from_json,
    fixture_of,
)
from flawline.runtime.strict_json import SchemaError

HEIGHT, WIDTH = 240, 320
REGION = (80, 40, 160, 160)


def draw_part(turn=0.0, x=0.0, y=0.0, light=1.0, height=HEIGHT, width=WIDTH):
    """Draw a part without symmetry, uint8 [height, width, 3], turned about the region's centre."""
    large = np.full((4 * height, 4 * width, 3), 40, np.uint8)
    angle = math.radians(turn)
    centre = np.array([159.5 + x, 119.5 + y])

    def place(points):
        points = np.asarray(points, float)
        turned = points @ [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        return np.round(4 * (turned + centre + 0.5)).astype(np.int32)

    cv2.fillPoly(large, [place([(-60, -50), (60, -50), (60, 50), (-60, 50)])], (140, 150, 160))
    cv2.fillPoly(large, [place([(-45, -35), (0, -35), (0, -10), (-45, -10)])], (30, 20, 200))
    cv2.fillPoly(large, [place([(10, 5), (50, 5), (10, 40)])], (220, 220, 220))
    small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(small * light, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fixture():
    return fixture_of(draw_part(), REGION, turn=30, shift=20)


@pytest.mark.parametrize("pose", [(0, 0, 0), (30, -20, 0), (-17.3, 9.4, 12.7), (5, 0.5, -20)])
@pytest.mark.parametrize("light", [0.6, 1.4])
def test_a_turned_and_shifted_part_is_found(fixture, pose, light):
    found = fixture.require(draw_part(*pose, light))
    assert found.turn == pytest.approx(pose[0], abs=0.3)
    assert (found.shift_x, found.shift_y) == pytest.approx(pose[1:], abs=0.5)
    assert found.quality > 0.8


def test_a_part_in_any_turn_is_found():
    fixture = fixture_of(draw_part(), REGION, turn=180, shift=5)
    for turn in (-179, -130, 95, 180):
        found = fixture.require(draw_part(turn, 3, -2))
        difference = (found.turn - turn + 180) % 360 - 180
        assert difference == pytest.approx(0, abs=0.5)


def test_a_grey_frame_is_found_as_its_colours_are(fixture):
    frame = draw_part(12, 4, -3)
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    assert fixture.find(grey) == fixture.find(frame)
    assert fixture.align(grey, fixture.find(grey)).shape == (HEIGHT, WIDTH)


def test_a_large_frame_is_searched_on_small_copies():
    assert halvings(400, 400) == 2
    assert halvings(2000, 2000) == 4
    # A long and narrow region keeps enough pixels across.
    assert halvings(2000, 48) == 0
    image = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9)
    assert small_copy(image, 1).tolist() == (
        np.round(image[:6, :8].reshape(3, 2, 4, 2).mean((1, 3))).tolist()
    )


def test_an_aligned_frame_is_the_reference_picture(fixture):
    reference = draw_part()
    frame = draw_part(-21, 13, 8)
    aligned = fixture.align(frame, fixture.require(frame))
    inner = (slice(60, 180), slice(90, 230))
    before = np.abs(frame[inner].astype(int) - reference[inner]).mean()
    after = np.abs(aligned[inner].astype(int) - reference[inner]).mean()
    assert before > 20
    assert after < 2.5


def test_a_place_on_the_aligned_frame_goes_back_to_the_frame(fixture):
    frame = draw_part(-21, 13, 8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[150:170, 60:90] = 255
    pose = fixture.require(frame)
    aligned = fixture.align_mask(mask, pose)
    assert set(np.unique(aligned)) == {0, 1}
    back = fixture.to_frame(aligned.astype(np.float32), pose)
    assert np.isnan(back).any()
    overlap = np.logical_and(back > 0.5, mask > 0).sum() / np.logical_or(back > 0.5, mask > 0).sum()
    assert overlap > 0.95


def test_what_is_outside_of_the_frame_has_the_colour_of_its_edge(fixture):
    frame = draw_part(0, 20, 0)
    frame[:, -1] = (1, 2, 3)
    aligned = fixture.align(frame, fixture.require(frame))
    assert (aligned[:, -15:] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (np.full((HEIGHT, WIDTH, 3), 90, np.uint8), "not found"),
        (draw_part(41, 0, 0), "not found|turned by 4"),
        (draw_part(0, 26, 0), "shifted by 2[56]|not found"),
        (draw_part(0, 90, 0), "not found"),
    ],
    ids=["no part", "turned too far", "shifted too far", "far away"],
)
def test_a_part_that_is_absent_or_beyond_the_limits_is_refused(fixture, frame, reason):
    with pytest.raises(FixtureError, match=reason):
        fixture.with_quality_of([0.9, 0.95]).require(frame)


def test_another_part_is_refused(fixture):
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8), (0, 0), 3)
    with pytest.raises(FixtureError, match=r"match .* is 0\.\d\d, below 0\.30"):
        fixture.require(cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX))


def test_a_frame_of_another_size_is_refused(fixture):
    with pytest.raises(FixtureError, match=r"320x200, .* 320x240; set the camera to it"):
        fixture.find(np.zeros((200, WIDTH, 3), np.uint8))


@pytest.mark.parametrize(
    ("region", "turn", "shift", "reason"),
    [
        ((0, 0, 40, 200), 30, 20, "a side below 48"),
        ((200, 100, 160, 100), 30, 20, "not within 0 to 320"),
        (REGION, 181, 20, "turn=181 is not from 0 to 180"),
        (REGION, float("nan"), 20, "turn=nan"),
        (REGION, 30, -1, "shift=-1"),
        ((0, 0, 64, 64), 30, 20, "nothing to find"),
    ],
)
def test_a_fixture_that_cannot_work_is_refused(region, turn, shift, reason):
    with pytest.raises(FixtureError, match=reason):
        fixture_of(draw_part(), region, turn, shift)


def test_the_level_is_below_all_good_images(fixture):
    assert fixture.with_quality_of([0.7, 0.8, 0.9]).quality == pytest.approx(0.6)
    assert fixture.with_quality_of([0.9]).quality == pytest.approx(0.85)
    assert fixture.with_quality_of([0.35, 0.9]).quality == LOWEST_QUALITY
    with pytest.raises(ValueError, match=r"lowest match 0\.20"):
        fixture.with_quality_of([0.2, 0.9])


def test_the_fixture_survives_json(fixture):
    content = fixture.to_json()
    read = fixture_from_json(content)
    assert read == fixture
    frame = draw_part(7, 3, 3)
    assert read.find(frame).turn == pytest.approx(fixture.find(frame).turn, abs=1e-3)
    assert fixture_from_json(None) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("region", [80, 40, 160]),
        ("region", [80, 40, 160, 160.0]),
        ("region", [81, 40, 160, 160]),
        ("region", [240, 40, 160, 160]),
        ("region", [0, 0, 10**9, 10**9]),
        ("turn", 200.0),
        ("quality", 0.1),
        ("picture", "not base64!"),
        ("picture", "eJwDAAAAAAE="),
        ("width", 0),
        ("more", 1),
    ],
)
def test_a_damaged_fixture_is_refused(fixture, key, value):
    with pytest.raises(SchemaError, match=r"^fixture: "):
        fixture_from_json({**fixture.to_json(), key: value})


def test_a_fixture_is_equal_only_to_itself(fixture):
    assert dataclasses.replace(fixture, turn=29.0) != fixture
