"""Where a part is anomalous: regions of the map above the pixel threshold, in the source image."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_tiny_bundle

from flawline.runtime import Detector, infer_stream
from flawline.runtime.bundle import Bundle, BundleError, read_bundle, write_calibration
from flawline.runtime.calibrate import main as calibrate
from flawline.runtime.calibration import Level
from flawline.runtime.image import GEOMETRIES, Geometry, prepare, to_source
from flawline.runtime.painting import OUTLINE_BGR
from flawline.runtime.regions import MOST_REGIONS, Regions, RegionSettings, find_regions

LEVEL = Level(100.0, 0.01, (0.002, 0.03))
STRETCH = Geometry("stretch", SIZE, SIZE)


def geometry_of(kind: str) -> Geometry:
    return Geometry(kind, SIZE, SIZE, 80 if kind == "shorter-crop" else None)


def grid(*places: tuple[slice, slice, float]) -> np.ndarray:
    values = np.zeros((SIZE, SIZE), np.float32)
    for rows, columns, value in places:
        values[rows, columns] = value
    return values


def regions_of(values: np.ndarray, height: int, width: int, **settings: float) -> Regions:
    return find_regions(values, 1.0, STRETCH, height, width, RegionSettings(**settings))  # type: ignore[arg-type]


def square_image(grey: int = 200, height: int = 192, width: int = 256) -> np.ndarray:
    """Dark, with a bright rectangle at x 128, y 48 of 64 x 63 pixels, whole cells of the grid."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[48:111, 128:192] = grey
    return image


@pytest.fixture
def locating(bundle: Bundle) -> Bundle:
    """Values of the map above 100 are in a region."""
    write_calibration(bundle, replace(bundle.calibration, pixels=LEVEL))
    return read_bundle(bundle.path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A part with a bright square, one without, and a file that cannot be judged."""
    folder = tmp_path / "parts"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), square_image())
    cv2.imwrite(str(folder / "1.png"), square_image(30))
    (folder / "2.png").write_bytes(b"")
    return folder


def stream(bundle: Bundle, parts: Path, *flags: str) -> int:
    return infer_stream.main(["--bundle", str(bundle.path), "--camera", str(parts), *flags])


def test_a_box_is_in_pixels_of_the_source() -> None:
    values = grid((slice(16, 32), slice(8, 24), 5.0))
    values[20, 10] = 9
    (region,) = regions_of(values, 4 * SIZE, 10 * SIZE).listed
    assert region.box == (80, 64, 160, 64)
    assert region.area == 16 * 16 * 4 * 10
    assert region.peak == 9
    # The middle of the cell at row 20, column 10.
    assert region.peak_at == (105, 82)


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize(("height", "width"), [(192, 256), (301, 117), (64, 64), (90, 90)])
def test_a_box_covers_what_is_painted(kind: str, height: int, width: int) -> None:
    """The outline of the picture is computed from the map in the source image."""
    geometry = geometry_of(kind)
    source = np.zeros((height, width), np.uint8)
    top, left = height // 3, width // 3
    source[top : top + height // 3, left : left + width // 3] = 255
    values = prepare(source, geometry)[..., 0].astype(np.float32)
    found = find_regions(values, 127.0, geometry, height, width, RegionSettings())
    located = to_source(values, geometry, height, width)
    rows, columns = np.nonzero(np.nan_to_num(located, nan=0) > 127)
    (region,) = found.listed
    x, y, box_width, box_height = region.box
    # A cell of the grid, and its half of the interpolation.
    cell = 1.5 * max(height, width) / SIZE + 1
    assert abs(x - columns.min()) <= cell
    assert abs(y - rows.min()) <= cell
    assert abs(x + box_width - columns.max() - 1) <= cell
    assert abs(y + box_height - rows.max() - 1) <= cell
    assert region.area == pytest.approx(len(rows), rel=0.25)
    peak_x, peak_y = region.peak_at
    assert x <= peak_x < x + box_width
    assert y <= peak_y < y + box_height


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize(("height", "width"), [(192, 256), (256, 192), (37, 3000)])
def test_a_box_never_leaves_the_image_or_the_crop(kind: str, height: int, width: int) -> None:
    geometry = geometry_of(kind)
    values = np.full((SIZE, SIZE), 2, np.float32)
    found = find_regions(values, 1.0, geometry, height, width, RegionSettings())
    (region,) = found.listed
    located = ~np.isnan(to_source(values, geometry, height, width))
    rows, columns = np.nonzero(located)
    x, y, box_width, box_height = region.box
    assert min(x, y) >= 0
    assert x + box_width <= width
    assert y + box_height <= height
    # The crop begins at a rounded pixel in the picture.
    assert abs(x - columns.min()) <= 1
    assert abs(x + box_width - columns.max() - 1) <= 1
    assert abs(y - rows.min()) <= 1
    assert abs(y + box_height - rows.max() - 1) <= 1


def test_letterbox_bars_hold_no_region() -> None:
    geometry = Geometry("letterbox", SIZE, SIZE)
    values = np.full((SIZE, SIZE), 2, np.float32)
    # A wide image: its bars are above and below rows 16 to 47.
    values[16:48] = 0
    assert find_regions(values, 1.0, geometry, 128, 256, RegionSettings()).total == 0


def test_regions_are_sorted_by_their_peaks_and_all_are_counted() -> None:
    values = np.zeros((SIZE, SIZE), np.float32)
    # 16 x 16 regions of one cell, and the last one of nine.
    values[::4, ::4] = np.arange(2, 258).reshape(16, 16)
    values[61:64, 61:64] = 1.5
    values[60, 60] = 0
    found = regions_of(values, SIZE, SIZE)
    assert found.total == 256
    assert len(found.listed) == MOST_REGIONS
    peaks = [region.peak for region in found.listed]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == 256
    assert found.largest is not None
    assert (found.largest.area, found.largest.peak) == (9, 1.5)
    assert found.largest not in found.listed


def test_cells_that_touch_at_a_corner_are_one_region() -> None:
    values = np.eye(SIZE, dtype=np.float32) * 2
    assert regions_of(values, SIZE, SIZE).total == 1


def test_a_small_region_is_left_out() -> None:
    values = grid((slice(0, 2), slice(0, 2), 9.0), (slice(30, 40), slice(30, 40), 2.0))
    # A cell is 8 pixels of the source: the areas are 32 and 800.
    height, width = 2 * SIZE, 4 * SIZE
    assert regions_of(values, height, width, min_area=32).total == 2
    found = regions_of(values, height, width, min_area=33)
    assert (found.total, [region.area for region in found.listed]) == (1, [800])
    assert regions_of(values, height, width, min_area=801) == Regions()


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, -np.inf])
def test_nothing_above_the_threshold_is_no_region(value: float) -> None:
    values = np.full((SIZE, SIZE), value, np.float32)
    assert regions_of(values, 100, 100) == Regions()


@pytest.mark.parametrize(
    "change",
    [{"min_area": -1}, {"min_area": np.nan}, {"most": -1}, {"mm_per_pixel": 0}, {"most": 10**6}],
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"region|millimetres"):
        RegionSettings(**change)  # type: ignore[arg-type]


def test_the_line_says_where(
    locating: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stream(locating, parts, "--mm-per-pixel", "0.5") == 0
    found, nothing, unjudged, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert found["regions_total"] == 1
    (region,) = found["regions"]
    assert region["box"] == [128, 48, 64, 63]
    assert region["box_mm"] == [64.0, 24.0, 32.0, 31.5]
    assert region["area"] == 4032
    assert region["area_mm2"] == 1008.0
    assert region["peak"] == pytest.approx(200, abs=0.01)
    assert region["peak_at_mm"] == [0.5 * place for place in region["peak_at"]]
    assert (nothing["regions"], nothing["regions_total"]) == ([], 0)
    assert "regions" not in unjudged
    assert "regions_total" not in unjudged


def test_a_deep_image_has_the_regions_of_its_8_bits(
    locating: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), square_image().astype(np.uint16) << 8)
    cv2.imwrite(str(tmp_path / "1.png"), square_image())
    assert (
        infer_stream.main(["--bundle", str(locating.path), "--camera", f"{tmp_path}?bits=16"]) == 0
    )
    deep, plain, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert deep["regions_total"] == 1
    assert deep["regions"] == plain["regions"]


def test_the_table_has_the_number_and_the_largest(
    locating: Bundle, parts: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    assert stream(locating, parts, "--output", f"csv:{table}", "--min-region-area", "100") == 0
    with table.open(newline="") as file:
        found, nothing, unjudged = csv.DictReader(file)
    names = ("regions_total", "largest_x", "largest_y", "largest_width", "largest_height")
    assert [found[name] for name in names] == ["1", "128", "48", "64", "63"]
    assert found["largest_area"] == "4032"
    assert float(found["largest_peak"]) == pytest.approx(200, abs=0.01)
    assert [nothing[name] for name in names] == ["0", "", "", "", ""]
    assert unjudged["regions_total"] == ""


def test_the_smallest_area_is_in_pixels_of_the_source(
    locating: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stream(locating, parts, "--min-region-area", "4033") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["regions_total"] == 0


def test_a_part_has_the_regions_of_its_worst_view(
    locating: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, grey in (("left", 30), ("right", 200)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), square_image(grey))
    flags = ("--camera", str(tmp_path / "right"), "--same-part")
    assert stream(locating, tmp_path / "left", *flags) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["camera"] == "2"
    assert line["regions"][0]["box"] == [128, 48, 64, 63]


def test_regions_are_computed_only_for_an_output_that_uses_them(
    locating: Bundle, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = Detector.regions

    def counted(self: Detector, *arguments: object) -> Regions:
        calls.append(arguments)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "regions", counted)
    assert stream(locating, parts, "--output", f"overlays:{tmp_path / 'saved'}") == 0
    assert not calls
    both = ("--output", "jsonl", "--output", f"csv:{tmp_path / 'table.csv'}")
    assert stream(locating, parts, *both) == 0
    assert len(calls) == 2


def test_the_picture_outlines_the_regions(locating: Bundle) -> None:
    with Detector(locating) as detector:
        # Above the pixel threshold that the maps of the good images alone would give, 90.
        for grey, outlined in ((95, False), (105, True)):
            image = square_image(grey)
            verdict = detector(image)
            assert detector.regions(image, verdict.anomaly_map).total == int(outlined)
            painted = detector.paint(image, verdict.anomaly_map)
            yellow = (np.abs(painted.astype(int) - OUTLINE_BGR).max(axis=-1) < 60).any()
            assert yellow == outlined


def test_an_older_bundle_has_no_regions_and_says_how_to_get_them(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stream(bundle, parts) == 0
    printed = capsys.readouterr()
    assert "regions" not in json.loads(printed.out.splitlines()[0])
    assert "note: no anomalous regions are given" in printed.err
    assert f"calibrate --bundle {bundle.path} --images GOOD_PARTS" in printed.err
    assert stream(bundle, parts, "--mm-per-pixel", "0.1") == 2
    assert "--mm-per-pixel is about anomalous regions" in capsys.readouterr().err
    with Detector(bundle) as detector:
        verdict = detector(square_image())
        with pytest.raises(ValueError, match="no regions: the bundle has no pixel threshold"):
            detector.regions(square_image(), verdict.anomaly_map)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_a_size_that_is_none_is_refused(
    locating: Bundle, parts: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--mm-per-pixel", "--min-region-area"):
        with pytest.raises(SystemExit):
            stream(locating, parts, f"{flag}={value}")
        assert f"argument {flag}" in capsys.readouterr().err


def test_a_bundle_for_the_score_alone_has_none(
    tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = write_tiny_bundle(tmp_path / "score", outputs=("score",))
    assert stream(score, parts) == 0
    printed = capsys.readouterr()
    assert "regions" not in json.loads(printed.out.splitlines()[0])
    assert "regions" not in printed.err
    with pytest.raises(BundleError, match="the bundle gives no maps"):
        write_calibration(score, replace(score.calibration, pixels=LEVEL))


def test_calibrate_sets_the_pixel_threshold_from_the_peaks_of_the_maps(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for grey in range(20, 50):
        cv2.imwrite(str(good / f"{grey}.png"), np.full((32, 32), grey, np.uint8))
    words = ["--bundle", str(bundle.path), "--images", str(good), "--false-alarm-rate", "0.1"]
    assert calibrate(words) == 0
    calibration = read_bundle(bundle.path).calibration
    assert calibration.pixels is not None
    # With the tiny model, the largest value of a map is its score.
    assert calibration.pixels.threshold == pytest.approx(calibration.threshold)
    assert calibration.pixels.rate == 0.1
    assert calibration.pixels.interval == calibration.interval
    assert "regions above 47.5 in the anomaly map, for 10.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1e9}, "pixels: the threshold 1e.09 is implausible, as the map peaks"),
        ({"rate": 0}, "pixels: rate is not between 0 and 1"),
    ],
)
def test_an_edited_pixel_threshold_that_makes_no_sense_is_refused(
    locating: Bundle, change: dict[str, float], message: str
) -> None:
    path = locating.path / "calibration.json"
    content = json.loads(path.read_text())
    content["pixels"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        read_bundle(locating.path)
