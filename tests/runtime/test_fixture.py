"""A part that does not lie still: it is found, laid back before all else, and shown where it is.

The map of the tiny graph is the mean over the colours of each pixel.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle
from moved_part import HEIGHT, REGION, WIDTH, draw_part, spotted

from flawline.cameras import Frame
from flawline.runtime.bundle import MANIFEST, Bundle, read_bundle
from flawline.runtime.calibration import Level
from flawline.runtime.detector import Detector
from flawline.runtime.find_part import Pose, halvings, small_copy
from flawline.runtime.fixture import (
    LOWEST_QUALITY,
    Fixture,
    FixtureError,
    PartNotFoundError,
    fixture_from_json,
)
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import GEOMETRIES, PADDING_BGR, Geometry
from flawline.runtime.inspected_area import AreaError, InspectedArea
from flawline.runtime.manifest import Spread, manifest_from_json, manifest_to_json
from flawline.runtime.regions import RegionSettings, find_regions
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.strict_json import SchemaError
from flawline.runtime.tiles import Tiling
from flawline.train.data.reference_picture import fixture_of


@pytest.fixture(scope="module")
def fixture() -> Fixture:
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


def test_a_pose_has_no_digits_that_depend_on_the_memory(fixture):
    # OpenCV gives the same match for the same frame to about six digits.
    for frame in (draw_part(12, 4, -3), draw_part(-17.3, 9.4, 12.7)):
        found = fixture.find(frame)
        assert found.turn == round(found.turn, 3)
        assert (found.shift_x, found.shift_y) == (round(found.shift_x, 2), round(found.shift_y, 2))
        assert found.quality == round(found.quality, 4)


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


@pytest.mark.parametrize(("turn", "shift"), [(0, 0), (30, 20), (90, 5), (180, 30)])
def test_what_may_come_from_outside_of_the_frame_is_not_inspected(
    turn: float, shift: float
) -> None:
    fixture = fixture_of(draw_part(), (64, 32, 160, 160), turn, shift)
    white = np.full((HEIGHT, WIDTH), 255, np.uint8)
    always = np.ones((HEIGHT, WIDTH), bool)
    for angle in np.linspace(-turn, turn, 61):
        for direction in range(0, 360, 15):
            across = shift * math.cos(math.radians(direction))
            down = shift * math.sin(math.radians(direction))
            always &= fixture.align(white, Pose(angle, across, down, 1.0)) == 255
    inspected = fixture.inspected
    assert not (inspected & ~always).any()
    # A few pixels more are left out, as a pose is not known exactly.
    grown = cv2.dilate(inspected.astype(np.uint8), np.ones((21, 21))) > 0
    assert (grown[12:-12, 12:-12] | ~always[12:-12, 12:-12]).all()
    assert inspected[110:120, 140:150].all()


def test_no_input_has_a_pixel_from_outside_of_the_frame(fixture: Fixture) -> None:
    graph_input = GraphInput(Geometry("stretch", 64, 64), fixture=fixture)
    cells = graph_input.inspected_cells
    assert cells is not None
    assert 0.4 < cells.mean() < 0.8
    for pose in ((30, 20, 0), (-30, 0, 20), (0, -14, -14)):
        # What is outside of the frame is black; nothing in this frame is.
        prepared = graph_input.of_frame(np.maximum(draw_part(*pose), 30))
        assert prepared[cells].min() >= 30
        assert (prepared[~cells] == PADDING_BGR).all()


def test_limits_that_leave_nothing_to_inspect_are_refused() -> None:
    fixture = fixture_of(draw_part(), REGION, 180, 119)
    with pytest.raises(AreaError, match="resized to; allow the fixture less turn and shift"):
        _ = GraphInput(Geometry("stretch", 64, 64), fixture=fixture).inspected_cells


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


@pytest.fixture
def bundle(tmp_path: Path, fixture: Fixture) -> Bundle:
    return write_tiny_bundle(tmp_path / "b", fixture=fixture)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_a_moved_part_becomes_the_input_of_the_still_one(fixture: Fixture, kind: str) -> None:
    shorter = 80 if kind == "shorter-crop" else None
    graph_input = GraphInput(Geometry(kind, 64, 64, shorter), fixture=fixture)
    still = graph_input.of_frame(draw_part())
    moved = graph_input.of_frame(draw_part(25, -14, 12))
    plain = GraphInput(graph_input.geometry).of_frame(draw_part(25, -14, 12))
    assert np.abs(moved.astype(int) - still).mean() < 2
    assert np.abs(plain.astype(int) - still).mean() > 5


def test_training_and_camera_prepare_a_part_alike(fixture: Fixture) -> None:
    graph_input = GraphInput(Geometry("stretch", 64, 64), fixture=fixture)
    frame = draw_part(-11, 3, 4)
    on_camera = graph_input.of_frame(frame)
    assert np.array_equal(graph_input.of_image(frame), on_camera)
    assert np.array_equal(graph_input.prepared(frame), on_camera)
    # A data set may have parts that no camera's frame is judged with: graphs are compared on them.
    absent = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert graph_input.of_image(absent).shape == (64, 64, 3)
    with pytest.raises(PartNotFoundError):
        graph_input.of_frame(absent)


def test_the_part_is_laid_before_its_area_is_cut_out(fixture: Fixture) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[70:170, 100:220] = True
    area = InspectedArea.of_mask(mask)
    graph_input = GraphInput(Geometry("stretch", 64, 64), None, Tiling(2, 1), area, fixture)
    cells = graph_input.inspected_cells
    assert cells is not None
    still = graph_input.of_frame(draw_part())
    moved = graph_input.of_frame(draw_part(20, 10, -6))
    assert (moved[~cells] == PADDING_BGR).all()
    assert np.abs(moved[cells].astype(int) - still[cells]).mean() < 5


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_regions_are_where_they_are_in_the_frame(
    tmp_path: Path, fixture: Fixture, kind: str
) -> None:
    shorter = 120 if kind == "shorter-crop" else None
    geometry = Geometry(kind, 96, 96, shorter)
    graph_input = GraphInput(geometry, fixture=fixture)
    frame, (x, y) = spotted(-28, 12, 9)
    values = graph_input.of_frame(frame).astype(np.float32).mean(-1)
    moved = graph_input.map_of_frame(values, frame)
    # Almost as the map of the frame as it lies.
    plain = GraphInput(geometry).of_frame(frame).astype(np.float32).mean(-1)
    known = ~np.isnan(moved)
    if kind == "letterbox":
        # Its bars are no places in the frame.
        known[:12] = False
        known[-12:] = False
    assert 0.3 < known.mean() < 0.8
    assert np.abs(moved[known] - plain[known]).mean() < 6
    found = find_regions(moved, 225.0, geometry, HEIGHT, WIDTH, RegionSettings())
    assert found.total == 1
    left, top, width, height = found.listed[0].box
    assert left - 1 <= x <= left + width
    assert top - 1 <= y <= top + height
    assert max(width, height) < 24
    assert np.hypot(*(np.subtract(found.listed[0].peak_at, (x, y)))) < 8


def test_a_verdict_gives_regions_and_pictures_in_the_frame(
    tmp_path: Path, fixture: Fixture
) -> None:
    peaks = Spread(225, 2, 220, 230)
    bundle = write_tiny_bundle(tmp_path / "b", fixture=fixture, map_peak=peaks)
    calibration = dataclasses.replace(bundle.calibration, pixels=Level(235.0, 0.01, (0.002, 0.02)))
    bundle = dataclasses.replace(bundle, calibration=calibration)
    frame, (x, y) = spotted(17, -12, 14)
    with Detector(bundle, "onnxruntime", threshold=235.0) as detector:
        verdict = detector(frame)
        assert verdict.name == "anomalous"
        regions = detector.regions(frame, verdict.anomaly_map)
        assert regions.total == 1
        left, top, width, height = regions.listed[0].box
        assert left - 1 <= x <= left + width
        assert top - 1 <= y <= top + height
        painted = detector.paint(frame, verdict.anomaly_map)
        changed = np.argwhere((painted != frame).any(-1))
        assert np.hypot(*(changed.mean(0) - (y, x))) < 5
        good = draw_part(-5, 0, 7)
        assert detector(good).name == "good"
        assert detector.regions(good, detector(good).anomaly_map).total == 0


def test_a_part_that_is_not_found_is_rejected_with_the_reason(bundle: Bundle) -> None:
    absent = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    with Detector(bundle, "onnxruntime", threshold=1e6) as detector:
        for verdict in (detector(absent), detector.judge(Frame("camera", 0, absent))):
            assert (verdict.name, verdict.anomalous) == ("unjudged", True)
            assert "the part was not found" in str(verdict.reason)
        assert detector.judge(Frame("camera", 1, draw_part(9, 1, 1))).name == "good"


def test_a_frame_of_another_size_is_unjudged(bundle: Bundle) -> None:
    wrong = draw_part()[:200]
    with Detector(bundle, "onnxruntime", accept_size=True) as detector:
        verdict = detector.judge(Frame("camera", 0, wrong))
        assert verdict.name == "unjudged"
        assert "the reference picture of the fixture is 320x240" in str(verdict.reason)
        with pytest.raises(FixtureError, match="320x200"):
            detector(wrong)


def test_the_manifest_states_the_fixture(bundle: Bundle, fixture: Fixture) -> None:
    manifest = read_bundle(bundle.path).manifest
    assert manifest.fixture == fixture
    assert manifest.graph_input.frame_size == (HEIGHT, WIDTH)
    assert str(manifest.graph_input) == "64x64 stretch, fixture"
    # Versions that do not know it refuse the key; bundles without it do not have it.
    content = json.loads((bundle.path / MANIFEST).read_text())
    assert content["fixture"]["region"] == list(REGION)
    without = dataclasses.replace(manifest, fixture=None)
    assert "fixture" not in json.loads(manifest_to_json(without, {}))


def test_a_fixture_does_not_go_with_frames_that_the_graph_takes(fixture: Fixture) -> None:
    source = SourceFrame(HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="takes them as they lie"):
        GraphInput(Geometry("stretch", 64, 64), source, fixture=fixture)


def test_a_fixture_does_not_go_with_an_area_of_another_size(
    bundle: Bundle, fixture: Fixture
) -> None:
    area = InspectedArea.of_mask(np.ones((HEIGHT, WIDTH + 1), bool))
    with pytest.raises(AreaError, match="320x240"):
        GraphInput(Geometry("stretch", 64, 64), area=area, fixture=fixture)
    changed = dataclasses.replace(bundle.manifest, inspected_area=area)
    with pytest.raises(SchemaError, match="320x240"):
        manifest_from_json(manifest_to_json(changed, _hashes(bundle)))


def _hashes(bundle: Bundle) -> dict[str, str]:
    content = json.loads((bundle.path / MANIFEST).read_text())
    hashes: dict[str, str] = content["files"]
    return hashes
