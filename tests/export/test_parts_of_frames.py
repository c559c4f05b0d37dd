"""From images to a bundle that judges tiles, or a part of each frame: all steps, with a toy method.

The toy compares the colours of each cell with their mean over the good images. A part is grey, a
little brighter or darker than the next one. A defect is a white square of few pixels.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from toys.method import MeanImage, MeanImageSettings

from flawline.benchmarks.evaluate import evaluate_bundles
from flawline.benchmarks.interleaved import EngineChoice
from flawline.cameras.decode import read_image
from flawline.export import ExportError, build
from flawline.export.add_precision import add_graph
from flawline.export.assemble import ExportOptions, build_bundle
from flawline.export.own_threshold import set_own_threshold
from flawline.export.triton_config import config_text
from flawline.runtime.bundle import Bundle
from flawline.runtime.calibrate import main as calibrate
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.threshold import Rates
from flawline.runtime.tiles import JoinedTiles, Tiling
from flawline.train import METHODS, TrainError
from flawline.train.checkpoint import Checkpoint, load_checkpoint
from flawline.train.data import hold_out, open_data
from flawline.train.data.area import AreaDrawing, parse_shape
from flawline.train.data.split import content_hashes
from flawline.train.judging import evaluate
from flawline.train.recipe import Recipe
from flawline.train.training import train

pytestmark = pytest.mark.torch
SIZE = 64
TILING = Tiling(6, 5)
RATES = Rates(0.2)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", "toys.method:MeanImage")


def part(
    brighter: int, height: int, width: int, defect: int = 0, at: tuple[int, int] = (0, 0)
) -> Any:
    """A part, uint8 [height, width, 3], with a defect of so many pixels a side at (x, y)."""
    image = np.full((height, width, 3), 120 + brighter, np.uint8)
    x, y = at
    image[y : y + defect, x : x + defect] = 180
    return image


def write_parts(root: Path, height: int = 375, width: int = 500, defect: int = 3) -> Path:
    """Write 20 good parts, and 4 good and 4 defective ones to test."""
    place = (width * 7 // 10, height * 3 // 10)
    for folder, count in (("train/good", 20), ("test/good", 4), ("test/dot", 4)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            brighter = number % 13 - 6 if folder == "train/good" else 0
            size = defect if folder == "test/dot" else 0
            image = part(brighter, height, width, size, place)
            # Files of equal pixels would be copies.
            image[0, 0] = (120 + len(folder) % 3, 110 + number, 120)
            encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            (root / folder / f"{number:03d}.png").write_bytes(encoded.tobytes())
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts") / "parts")


def recipe(data: Path, **changes: Any) -> Recipe:
    settings = MeanImageSettings("", Geometry("stretch", SIZE, SIZE), cell=2)
    fields = {"folds": 0, "device": "cpu", **changes}
    return Recipe("toy", data, settings, **fields)


def trained(data: Path, out: Path, **changes: Any) -> Checkpoint:
    return load_checkpoint(train(recipe(data, **changes), out))


def built(data: Path, folder: Path, options: ExportOptions | None = None, **changes: Any) -> Bundle:
    checkpoint = trained(data, folder / "toy.pt", **changes)
    options = options or ExportOptions(false_alarm_rate=0.2)
    return build_bundle(checkpoint, data, folder / "bundle", options)


def verdicts(bundle: Bundle, files: Any) -> list[Any]:
    found = []
    with Detector(bundle, "onnxruntime") as detector:
        for file in files:
            found.append(detector(read_image(file)))
    return found


def files(data: Path, kind: str) -> list[Path]:
    return sorted((data / kind).iterdir())


# ---------------------------------------------------------------- tiles


def assert_only_tiles_find_the_defect(data: Path, folder: Path, defect: int) -> None:
    tiled = built(data, folder / "tiled", tiles=TILING)
    whole = built(data, folder / "whole")
    assert [verdict.name for verdict in verdicts(whole, files(data, "test/dot"))] == ["good"] * 4
    for file in files(data, "test/dot"):
        image = read_image(file)
        height, width = image.shape[:2]
        with Detector(tiled, "onnxruntime") as detector:
            verdict = detector(image)
            regions = detector.regions(image, verdict.anomaly_map)
        assert verdict.name == "anomalous"
        x, y, box_width, box_height = regions.listed[0].box
        # The box holds the defect, and is not much larger than a few cells.
        assert x <= width * 7 // 10
        assert y <= height * 3 // 10
        assert x + box_width >= width * 7 // 10 + defect
        assert y + box_height >= height * 3 // 10 + defect
        assert max(box_width / width, box_height / height) < 0.06
    assert [verdict.name for verdict in verdicts(tiled, files(data, "test/good"))] == ["good"] * 4


def test_a_small_defect_is_found_with_tiles_and_missed_without(data: Path, tmp_path: Path) -> None:
    assert_only_tiles_find_the_defect(data, tmp_path, 3)


@pytest.mark.slow
def test_a_defect_of_20_pixels_in_12_megapixels_is_found_with_tiles_and_missed_without(
    tmp_path: Path,
) -> None:
    data = write_parts(tmp_path / "parts", 3000, 4000, 20)
    assert_only_tiles_find_the_defect(data, tmp_path, 20)


def test_the_joined_map_is_that_of_the_network_on_the_whole_frame_away_from_seams(
    data: Path,
) -> None:
    # Interpolation between cells sees the edge of a tile in its outer half cell.
    cell = 8
    tile = Geometry("stretch", SIZE, SIZE)
    graph_input = GraphInput(tile, tiles=Tiling(4, 3))
    frame = graph_input.of_frame(read_image(files(data, "test/dot")[0]))
    frame[::3, ::5] = 20
    grid = graph_input.grid
    assert grid is not None
    joined = JoinedTiles(grid)
    near_seams = np.zeros(graph_input.map_size, bool)
    tiles = MeanImage(MeanImageSettings("", tile, cell=cell)).eval()
    for number in range(len(grid)):
        scores, maps = evaluate(tiles, [grid.tile(frame, number)])
        joined.add(number, float(scores[0]), maps[0])
        rows, columns = grid.place(number)
        for edge in (rows.start, rows.stop):
            near_seams[max(edge - cell // 2, 0) : edge + cell // 2, columns] = True
        for edge in (columns.start, columns.stop):
            near_seams[rows, max(edge - cell // 2, 0) : edge + cell // 2] = True
    whole = MeanImage(MeanImageSettings("", graph_input.frame_geometry, cell=cell)).eval()
    scores, maps = evaluate(whole, [frame])
    errors = np.abs(joined.anomaly_map - maps[0])
    assert errors[~near_seams].max() <= 1e-5
    assert near_seams.mean() < 0.5
    # Also there, the tile whose edge it is has a small weight.
    assert errors.max() < 0.25 * np.ptp(maps[0])
    assert joined.score == pytest.approx(scores[0], rel=0.01)


def test_the_threshold_is_that_of_images_and_not_of_tiles(data: Path, tmp_path: Path) -> None:
    bundle = built(data, tmp_path, tiles=TILING)
    manifest = bundle.manifest
    held_out = hold_out(open_data(data).train_good)[1]
    found = verdicts(bundle, held_out)
    scores = [verdict.score for verdict in found]
    assert manifest.score.max == pytest.approx(max(scores), rel=1e-5)
    assert manifest.score.mean == pytest.approx(np.mean(scores), rel=1e-5)
    peaks = [float(verdict.anomaly_map.max()) for verdict in found]
    assert manifest.map_peak.max == pytest.approx(max(peaks), rel=1e-5)
    assert bundle.calibration.good_images == len(held_out)
    # The self-test is of tiles, on both sides of the threshold.
    golden = bundle.golden()
    assert golden.images.shape[1:] == (SIZE, SIZE, 3)
    assert golden.scores.min() < bundle.calibration.threshold < golden.scores.max()


def test_folds_score_images_and_not_tiles(data: Path, tmp_path: Path) -> None:
    checkpoint = trained(data, tmp_path / "toy.pt", tiles=Tiling(2, 2), folds=2)
    record = checkpoint.out_of_fold
    assert record is not None
    assert len(record.scores()) == 20
    bundle = build_bundle(checkpoint, data, tmp_path / "b", ExportOptions(false_alarm_rate=0.1))
    assert bundle.manifest.tiles == Tiling(2, 2)
    assert bundle.calibration.good_images == 20
    # The mean image of half of the parts gives other scores than that of all, of the same size.
    scores = [verdict.score for verdict in verdicts(bundle, open_data(data).train_good)]
    assert np.median(record.scores()) == pytest.approx(np.median(scores), rel=0.5)


def test_a_bundle_for_the_score_alone_has_the_peaks_of_the_torch_module(
    data: Path, tmp_path: Path
) -> None:
    whole = built(data, tmp_path / "map", tiles=Tiling(2, 2))
    options = ExportOptions(false_alarm_rate=0.2, outputs=("score",))
    score = built(data, tmp_path / "score", options, tiles=Tiling(2, 2))
    assert score.manifest.map_peak.max == pytest.approx(whole.manifest.map_peak.max, rel=1e-5)
    assert score.manifest.score == whole.manifest.score


def test_further_graphs_thresholds_and_calibrations_are_those_of_whole_frames(
    data: Path, tmp_path: Path
) -> None:
    checkpoint = trained(data, tmp_path / "toy.pt", tiles=TILING)
    bundle = build_bundle(checkpoint, data, tmp_path / "b", ExportOptions(false_alarm_rate=0.2))
    before = bundle.calibration
    bundle = add_graph(bundle, "fp16", data)
    options = EngineOptions(threads=1, precision="fp32")
    bundle = set_own_threshold(bundle, checkpoint, data, "onnxruntime", options, RATES)
    assert bundle.calibration.threshold == pytest.approx(before.threshold, rel=1e-4)
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for path in hold_out(open_data(data).train_good)[1]:
        (held_out / path.name).write_bytes(path.read_bytes())
    words = ["--bundle", str(bundle.path), "--camera", str(held_out), "--engine", "onnxruntime"]
    assert calibrate([*words, "--false-alarm-rate", "0.2"]) == 0
    with Detector(bundle.path, "onnxruntime") as detector:
        assert detector.threshold == pytest.approx(before.threshold, rel=1e-4)
        pixels = detector.bundle.calibration.pixel_threshold
        assert pixels == pytest.approx(before.pixel_threshold, rel=1e-4)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_benchmark_measures_whole_frames(data: Path, tmp_path: Path, batch: int | None) -> None:
    bundle = built(data, tmp_path, tiles=TILING)
    masked = tmp_path / "masked"
    shutil.copytree(data, masked)
    mask = np.zeros((375, 500), np.uint8)
    mask[112:115, 350:353] = 255
    (masked / "ground_truth" / "dot").mkdir(parents=True)
    for file in files(data, "test/dot"):
        cv2.imwrite(str(masked / "ground_truth" / "dot" / f"{file.stem}_mask.png"), mask)
    choice = EngineChoice("onnxruntime", EngineOptions(threads=1), batch)
    (row,) = evaluate_bundles([bundle.path], masked, [choice], repeats=1)
    assert row["input"] == "64x64 stretch, 6x5 tiles, overlap 0.1"
    assert row["image_auroc"] == 1
    assert row["pixel_auroc"] > 0.999


def test_another_tiling_is_another_training(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.pt"
    first = trained(data, out, tiles=TILING)
    second = trained(data, out, tiles=Tiling(2, 2))
    assert (first.tiles, second.tiles) == (TILING, Tiling(2, 2))
    assert trained(data, out).tiles is None
    assert len(content_hashes(files(data, "train/good"))) == 20


def test_tiles_of_a_geometry_that_crops_are_refused_before_the_training(data: Path) -> None:
    settings = MeanImageSettings("", Geometry("shorter-crop", SIZE, SIZE, 72))
    with pytest.raises(TrainError, match="--tiles: tiles need all of the image"):
        Recipe("toy", data, settings, tiles=TILING)


# ---------------------------------------------------------------- the inspected area


# One of the two tiles has nothing to inspect. The toy knows a painted place by its position in a
# tile, which is another one in each of several tiles.
@pytest.mark.parametrize("tiles", [None, Tiling(2, 1, 0)])
def test_only_what_is_included_and_not_excluded_is_inspected(
    tmp_path: Path, tiles: Tiling | None
) -> None:
    data = write_parts(tmp_path / "parts", 150, 200, 8)
    shapes = (
        parse_shape("100,0 199,0 199,149 100,149"),
        parse_shape("160,80 199,80 199,149 160,149"),
    )
    area = AreaDrawing((shapes[0],), (shapes[1],))
    bundle = built(data, tmp_path, area=area, tiles=tiles)
    assert bundle.manifest.inspected_area == area.area(150, 200)
    assert bundle.manifest.provenance["train_inspected_area"].startswith("40.7% of 200x150")
    names = [verdict.name for verdict in verdicts(bundle, files(data, "test/dot"))]
    assert names == ["anomalous"] * 4
    with Detector(bundle, "onnxruntime") as detector:
        good = part(0, 150, 200)
        score = detector(good).score
        for place in ((20, 30), (170, 100)):
            outside = part(0, 150, 200, 12, place)
            assert detector(outside).score == score
        inside = part(0, 150, 200, 12, (120, 100))
        assert detector(inside).score > detector.threshold >= score
        peak = bundle.manifest.map_peak.max
        assert detector(good).anomaly_map.max() <= 2 * peak


def test_images_of_another_size_are_refused_with_their_path(tmp_path: Path) -> None:
    data = write_parts(tmp_path / "parts", 150, 200)
    other = data / "train" / "good" / "007.png"
    other.write_bytes(cv2.imencode(".png", part(7, 150, 199))[1].tobytes())
    area = AreaDrawing((parse_shape("100,0 199,0 199,149"),))
    with pytest.raises(ValueError, match=r"007\.png: the image is 199x150, and the inspected area"):
        train(recipe(data, area=area), tmp_path / "toy.pt")


# ---------------------------------------------------------------- what does not go together


def test_a_camera_frame_as_the_input_goes_with_neither(data: Path, tmp_path: Path) -> None:
    checkpoint = trained(data, tmp_path / "toy.pt", tiles=TILING)
    options = ExportOptions(false_alarm_rate=0.2, source=SourceFrame(375, 500))
    with pytest.raises(ExportError, match="--source: the graph prepares whole frames"):
        build_bundle(checkpoint, data, tmp_path / "b", options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tiles", "3x2", "--source", "500x375"], "--source: the graph prepares whole frames"),
        (["--exclude", "0,0 9,0 9,9", "--source", "500x375"], "--source: the graph prepares"),
        (["--tiles", "3by2"], "--tiles: '3by2' is not COLUMNSxROWS"),
        (["--overlap", "0.2"], "--overlap goes with --tiles"),
        (["--tiles", "3x2", "--overlap", "0.7"], "the overlap of tiles is not from 0 to 0.5"),
        (["--tiles", "3x2", "--geometry", "shorter-crop"], "choose --geometry stretch"),
    ],
)
def test_the_command_says_so_before_it_trains(
    data: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(data), "--method", "toy", "--out", str(tmp_path / "b"), *words]
    assert build.main(flags) == 2
    text = capsys.readouterr().err
    assert message in text
    assert "training toy on 1" not in text


def test_a_server_of_the_graph_is_told_about_both(data: Path, tmp_path: Path) -> None:
    area = AreaDrawing((parse_shape("250,0 499,0 499,374 250,374"),))
    bundle = built(data, tmp_path, tiles=Tiling(2, 1, 0), area=area)
    text = config_text(bundle, "toy", "onnxruntime", "fp32", 8, "fp32")
    assert '"tiles"' in text
    assert '"inspected_area"' in text
