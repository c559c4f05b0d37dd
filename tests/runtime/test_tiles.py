"""Large images in overlapping tiles: places, weights, joined results, and bundles that state them.

The map of the tiny graph is the mean over the colours of each pixel, and its score is the largest
value of the map. So the untiled map of a prepared frame is known.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_tiny_bundle

from flawline.cameras import Frame
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import MANIFEST, Bundle, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, missing
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, prepare
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.manifest import Manifest, manifest_from_json, manifest_to_json
from flawline.runtime.regions import RegionSettings, find_regions
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.strict_json import SchemaError
from flawline.runtime.throughput import judge_in_flight
from flawline.runtime.tile_runner import MOST_PER_CALL, TileRunner
from flawline.runtime.tiles import JoinedTiles, TileGrid, Tiling, parse_tiles

TILING = Tiling(3, 2, 0.1)
SQUARE = Geometry("stretch", SIZE, SIZE)


@pytest.fixture
def tiled(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiled", tiles=TILING)


def random_frame(seed: int = 0, height: int = 300, width: int = 410) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def untiled_map(frame: Any, bundle: Bundle) -> Any:
    prepared = prepare(frame, bundle.manifest.graph_input.frame_geometry)
    return prepared.astype(np.float32).mean(-1)


# ---------------------------------------------------------------- places and weights


def test_the_number_of_tiles_is_read() -> None:
    assert parse_tiles("3x2") == Tiling(3, 2, 0.1)
    assert parse_tiles("8x6", 0.25) == Tiling(columns=8, rows=6, overlap=0.25)


@pytest.mark.parametrize(
    ("text", "overlap", "message"),
    [
        ("3", 0.1, "'3' is not COLUMNSxROWS, such as 3x2"),
        ("0x2", 0.1, "0x2 tiles are not from 2 to 256 in all"),
        ("1x1", 0.1, "1x1 tiles are not from 2"),
        ("17x16", 0.1, "17x16 tiles are not from 2"),
        ("3x2", 0.6, r"the overlap of tiles is not from 0 to 0\.5"),
        ("3x2", math.nan, "the overlap of tiles"),
    ],
)
def test_what_is_no_tiling_is_refused(text: str, overlap: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tiles(text, overlap)


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize(("columns", "rows"), [(3, 2), (1, 4), (2, 1)])
def test_the_weights_of_all_tiles_add_up_to_1(columns: int, rows: int, overlap: float) -> None:
    grid = TileGrid(Tiling(columns, rows, overlap), Geometry("letterbox", 96, 64))
    assert len(grid) == columns * rows
    total = np.zeros((grid.geometry.height, grid.geometry.width), np.float32)
    for number in range(len(grid)):
        total[grid.place(number)] += grid.weights(number)
    assert np.abs(total - 1).max() < 1e-6


def test_tiles_begin_at_multiples_of_16_and_overlap_by_at_least_what_was_asked_for() -> None:
    grid = TileGrid(Tiling(3, 2, 0.1), Geometry("stretch", 256, 256))
    # A tenth of 256 pixels is rounded up to 32.
    assert (grid.geometry.width, grid.geometry.height) == (256 + 2 * 224, 256 + 224)
    assert grid.place(5) == (slice(224, 480), slice(448, 704))


def test_a_geometry_that_crops_and_a_grid_that_is_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="choose --geometry stretch or letterbox"):
        GraphInput(Geometry("shorter-crop", 64, 64, 73), tiles=TILING)
    with pytest.raises(ValueError, match="a side has at most 16384; give fewer tiles"):
        GraphInput(Geometry("stretch", 1024, 1024), tiles=Tiling(20, 1))
    with pytest.raises(ValueError, match="untiled"):
        GraphInput(SQUARE, SourceFrame(480, 640), TILING)


# ---------------------------------------------------------------- joined results


@pytest.mark.parametrize("overlap", [0, 0.1, 0.5])
def test_the_map_of_a_local_network_is_that_of_the_untiled_frame(
    tmp_path: Path, overlap: float
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", tiles=Tiling(3, 2, overlap))
    frame = random_frame()
    expected = untiled_map(frame, bundle)
    with Detector(bundle, "onnxruntime") as detector:
        verdict = detector(frame)
    assert verdict.anomaly_map is not None
    assert verdict.anomaly_map.dtype == np.float32
    assert verdict.anomaly_map.shape == expected.shape
    assert np.abs(verdict.anomaly_map - expected).max() < 1e-4  # of 255
    assert verdict.score == pytest.approx(expected.max(), abs=1e-4)


def test_a_score_that_is_not_a_number_is_never_lost() -> None:
    joined = JoinedTiles(TileGrid(TILING, SQUARE))
    nothing = np.zeros((0, 0), np.float32)
    for number, score in enumerate([1.0, math.nan, 2.0]):
        joined.add(number, score, nothing)
    assert math.isnan(joined.score)
    assert joined.anomaly_map.shape == (0, 0)


def test_a_bundle_without_maps_has_the_largest_score(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", tiles=TILING, outputs=("score",))
    frame = random_frame()
    with Detector(bundle, "onnxruntime") as detector:
        verdict = detector(frame)
    assert verdict.anomaly_map is not None
    assert verdict.anomaly_map.size == 0
    assert verdict.score == pytest.approx(untiled_map(frame, bundle).max(), abs=1e-4)


class Counting(OnnxRuntime):
    """Notes the size of each batch, and can fail."""

    gains_from_batches = True

    def __call__(self, image: Any) -> Any:
        if self.fails:
            raise EngineError("the device is gone")
        self.sizes.append(len(image))
        return super().__call__(image)


def counting(bundle: Bundle, largest_batch: int | None = None) -> Counting:
    engine = Counting(bundle.model(), bundle.map_size)
    engine.sizes = []
    engine.fails = False
    engine.largest_batch = largest_batch
    return engine


@pytest.mark.parametrize(
    ("gains", "largest", "frames", "sizes"),
    [
        (True, None, 1, [6]),
        (True, None, 3, [MOST_PER_CALL, 2]),
        (True, 4, 1, [4, 2]),
        (False, None, 1, [1] * 6),
        (False, None, 2, [2] * 6),
        (False, 1, 2, [1] * 12),
    ],
)
def test_the_tiles_of_a_batch_share_calls_where_the_engine_gains(
    tiled: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    gains: bool,
    largest: int | None,
    frames: int,
    sizes: list[int],
) -> None:
    monkeypatch.setattr(Counting, "gains_from_batches", gains)
    engine = counting(tiled, largest)
    grid = tiled.manifest.graph_input.grid
    assert grid is not None
    batch = np.stack([tiled.manifest.graph_input.of_frame(random_frame(n)) for n in range(frames)])
    scores, maps = TileRunner(engine, grid)(batch)
    assert engine.sizes == sizes
    for number in range(frames):
        expected = untiled_map(random_frame(number), tiled)
        assert np.abs(maps[number] - expected).max() < 1e-4
        assert scores[number] == pytest.approx(expected.max(), abs=1e-4)


def test_an_engine_that_fails_once_judges_the_next_frame(tiled: Bundle) -> None:
    engine = counting(tiled, 4)
    graph_input = tiled.manifest.graph_input
    assert graph_input.grid is not None
    runner = TileRunner(engine, graph_input.grid)
    frame = graph_input.of_frame(random_frame())[None]
    engine.fails = True
    with pytest.raises(EngineError, match="the device is gone"):
        runner(frame)
    engine.fails = False
    scores, _ = runner(frame)
    assert scores[0] == pytest.approx(untiled_map(random_frame(), tiled).max(), abs=1e-4)


def test_after_an_error_no_more_tiles_of_the_frame_are_computed(
    tiled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an engine that waits for a server, each call may last until a time-out."""
    asked = []

    def result(engine: Counting) -> Any:
        asked.append(engine)
        raise EngineError("the device is gone")

    monkeypatch.setattr(Counting, "submit", lambda engine, image: None)
    monkeypatch.setattr(Counting, "result", result)
    graph_input = tiled.manifest.graph_input
    assert graph_input.grid is not None
    runner = TileRunner(counting(tiled, 1), graph_input.grid)
    with pytest.raises(EngineError, match="the device is gone"):
        runner(graph_input.of_frame(random_frame())[None])
    assert len(asked) == 1


# ---------------------------------------------------------------- bundles and detectors


def test_a_manifest_states_the_tiles_and_only_where_there_are_any(
    bundle: Bundle, tiled: Bundle
) -> None:
    written = json.loads((tiled.path / MANIFEST).read_bytes())
    assert written["tiles"] == {"columns": 3, "rows": 2, "overlap": 0.1}
    assert read_bundle(tiled.path).manifest.tiles == TILING
    assert "tiles" not in json.loads((bundle.path / MANIFEST).read_bytes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": 0}, "tiles: 0x2 tiles are not from 2"),
        ({"rows": 2.5}, "tiles: rows is 2.5, not of type int"),
        ({"overlap": 0.9}, "tiles: the overlap"),
        ({"gap": 1}, "tiles: this version does not know gap"),
    ],
)
def test_tiles_that_cannot_be_are_refused(
    tiled: Bundle, changes: dict[str, Any], message: str
) -> None:
    content = json.loads(manifest_to_json(tiled.manifest, tiled.sha256))
    del content["checksum"]
    content["tiles"].update(changes)
    with pytest.raises(SchemaError, match=message):
        manifest_from_json(json.dumps(content).encode())


def test_a_manifest_whose_geometry_cannot_be_tiled_is_refused(tiled: Bundle) -> None:
    content = json.loads(manifest_to_json(tiled.manifest, tiled.sha256))
    del content["checksum"]
    content["geometry"] = {"kind": "shorter-crop", "height": 64, "width": 64, "shorter": 70}
    with pytest.raises(SchemaError, match="tiles need all of the image"):
        manifest_from_json(json.dumps(content).encode())


def test_every_way_to_judge_gives_the_same(tiled: Bundle) -> None:
    frames = [Frame("camera", number, random_frame(number)) for number in range(3)]
    with Detector(tiled, "onnxruntime") as detector:
        detector.warm_up(3)
        single = [detector.judge(frame) for frame in frames]
        maps = [np.array(verdict.anomaly_map) for verdict in single]
        batch = detector.judge_batch(frames)
        for number, verdict in enumerate(batch):
            assert verdict.score == single[number].score
            assert np.array_equal(np.array(verdict.anomaly_map), maps[number])
        prepared = [Prepared.of(frame, detector.prepare) for frame in frames]
        for frame, verdict in judge_in_flight(detector, prepared, 2):
            assert verdict.score == single[frame.index].score
            assert np.array_equal(np.array(verdict.anomaly_map), maps[frame.index])


def test_regions_and_paintings_are_in_the_source_image(tiled: Bundle) -> None:
    # Across the seam between the tiles.
    frame = np.zeros((600, 800, 3), np.uint8)
    frame[280:320, 250:300] = 255
    graph_input = tiled.manifest.graph_input
    with Detector(tiled, "onnxruntime", threshold=128.0) as detector:
        verdict = detector(frame)
        assert verdict.anomalous
        painted = detector.paint(frame, verdict.anomaly_map)
    assert painted.shape == frame.shape
    assert verdict.anomaly_map is not None
    geometry = graph_input.frame_geometry
    found = find_regions(verdict.anomaly_map, 128.0, geometry, 600, 800, RegionSettings())
    assert found.total == 1
    x, y, width, height = found.listed[0].box
    cell = 800 / geometry.width
    expected = (250, 280, 50, 40)
    assert np.abs(np.subtract((x, y, width, height), expected)).max() <= 2 * cell


@pytest.mark.parametrize("flags", [[], ["--batch", "2"], ["--streams", "2"]])
def test_a_stream_judges_as_the_detector_does(
    tiled: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), random_frame(number))
    engine = "openvino" if "--streams" in flags else "onnxruntime"
    if missing(engine) is not None:
        pytest.skip(str(missing(engine)))
    words = ["--bundle", str(tiled.path), "--camera", str(folder), "--engine", engine]
    saved = tmp_path / "saved"
    assert stream([*words, "--precision", "fp32", "--save", str(saved), *flags]) == 0
    out, err = capsys.readouterr()
    assert "each frame is judged in 6 of 3x2 tiles" in err
    lines = [json.loads(line) for line in out.splitlines()]
    for number, line in enumerate(lines[:3]):
        expected = untiled_map(random_frame(number), tiled).max()
        assert line["score"] == pytest.approx(expected, abs=1e-3)
    assert len(list(saved.iterdir())) == 3


def test_an_odd_map_is_refused_with_the_size_of_the_grid(tiled: Bundle) -> None:
    with Detector(tiled, "onnxruntime") as detector:
        shape = list(detector.graph_input.map_size)
        with pytest.raises(ValueError, match=f"expected an anomaly map \\{shape}"):
            detector.paint(random_frame(), np.zeros((SIZE, SIZE), np.float32))


def test_the_manifest_says_what_the_graph_takes(tiled: Bundle) -> None:
    manifest: Manifest = tiled.manifest
    assert manifest.graph_input.shape == (SIZE, SIZE, 3)
    assert str(manifest.graph_input) == "64x64 stretch, 3x2 tiles, overlap 0.1"
    untiled = dataclasses.replace(manifest, tiles=None)
    assert untiled.graph_input.frame_shape == untiled.graph_input.shape
