"""The inspected part of a frame: what is outside has no influence, and is neither shown nor found.

The map of the tiny graph is the mean over the colours of each pixel.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_tiny_bundle

from flawline.cameras import Frame
from flawline.runtime.bundle import MANIFEST, Bundle, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import GEOMETRIES, PADDING_BGR, Geometry, prepare_area
from flawline.runtime.inspected_area import AreaError, InspectedArea, area_from_json
from flawline.runtime.manifest import manifest_from_json, manifest_to_json
from flawline.runtime.regions import RegionSettings, find_regions
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.strict_json import SchemaError
from flawline.runtime.tiles import Tiling

HEIGHT, WIDTH = 150, 201


def left_part() -> InspectedArea:
    """The left half, without a hole."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :103] = True
    mask[40:61, 20:47] = False
    return InspectedArea.of_mask(mask)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "b", inspected_area=left_part())


def random_frame(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("size", [64, 96, 448])
def test_no_pixel_outside_has_an_influence(kind: str, size: int) -> None:
    shorter = size if kind == "shorter-crop" else None
    graph_input = GraphInput(Geometry(kind, size, size, shorter), area=left_part())
    frame = random_frame()
    changed = frame.copy()
    changed[~left_part().mask] = 255 - frame[~left_part().mask]
    prepared = graph_input.of_frame(frame)
    assert np.array_equal(prepared, graph_input.of_frame(changed))
    cells = graph_input.inspected_cells
    assert cells is not None
    assert (prepared[~cells] == PADDING_BGR).all()
    assert 0.3 < cells.mean() < 0.55
    # What is inside stays as it was.
    untouched = GraphInput(graph_input.geometry).of_frame(frame)
    assert np.array_equal(prepared[cells], untouched[cells])


def test_of_a_fully_inspected_frame_every_cell_is_inspected() -> None:
    # A share of all pixels, summed in float32, is 0.99999875 for this size.
    cells = prepare_area(np.ones((2571, 2589), bool), Geometry("stretch", 33, 38))
    assert cells.all()


def test_tiles_without_an_inspected_pixel_are_left_out() -> None:
    graph_input = GraphInput(Geometry("stretch", 64, 64), None, Tiling(4, 2), left_part())
    assert graph_input.grid is not None
    # The area ends just behind the begin of the third of four columns.
    assert len(graph_input.grid) == 6
    total = np.zeros(graph_input.map_size, np.float32)
    for number in range(len(graph_input.grid)):
        total[graph_input.grid.place(number)] += graph_input.grid.weights(number)
    cells = graph_input.inspected_cells
    assert cells is not None
    assert np.abs(total[cells] - 1).max() < 1e-6


@pytest.mark.parametrize("tiles", [None, Tiling(4, 2)])
def test_what_is_outside_is_neither_judged_nor_shown(tmp_path: Path, tiles: Tiling | None) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", inspected_area=left_part(), tiles=tiles)
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    # In the right half, and in the hole.
    frame = black.copy()
    frame[60:100, 130:180] = 255
    frame[42:58, 25:40] = 255
    with Detector(bundle, "onnxruntime", threshold=200.0) as detector:
        verdict = detector(frame)
        assert verdict.name == "good"
        assert verdict.score == detector(black).score
        assert verdict.anomaly_map is not None
        # The painted places have a value, and a map has none there.
        assert verdict.anomaly_map.max() < 1
        inside = frame.copy()
        inside[100:130, 60:90] = 255
        verdict = detector(inside)
        assert verdict.name == "anomalous"
        painted = detector.paint(inside, verdict.anomaly_map)
        outside = ~left_part().mask
        outside[95:135, 55:95] = False  # where the outline is
        assert np.array_equal(painted[outside], inside[outside])
        assert (painted[100:130, 60:90] != inside[100:130, 60:90]).any()


def test_no_region_is_found_outside_even_if_all_of_the_map_is_above(bundle: Bundle) -> None:
    graph_input = bundle.manifest.graph_input
    everything = np.full(graph_input.map_size, 10.0, np.float32)
    regions = find_regions(
        everything,
        1.0,
        graph_input.frame_geometry,
        HEIGHT,
        WIDTH,
        RegionSettings(),
        graph_input.inspected_cells,
    )
    assert regions.total == 1
    x, _, width, _ = regions.listed[0].box
    assert x + width <= 104
    assert regions.listed[0].area == pytest.approx(left_part().mask.sum(), rel=0.1)


def test_a_frame_of_another_size_is_rejected_and_accept_size_changes_nothing(
    tmp_path: Path,
) -> None:
    sizes = SourceSizes.of([(HEIGHT, WIDTH)])
    bundle = write_tiny_bundle(tmp_path / "b", inspected_area=left_part(), source_sizes=sizes)
    # Not far from the size of the training.
    frame = np.zeros((HEIGHT + 1, WIDTH, 3), np.uint8)
    with Detector(bundle, "onnxruntime", accept_size=True) as detector:
        verdict = detector.judge(Frame("camera", 0, frame))
        assert not verdict.judged
        assert verdict.reason == (
            "the image is 201x151, and the inspected area was drawn for frames of 201x150; set the "
            "camera to them, or train again with the area drawn for 201x151"
        )
        with pytest.raises(AreaError, match="drawn for frames of 201x150"):
            detector(frame)


# ---------------------------------------------------------------- manifest


def test_an_area_is_written_and_read(bundle: Bundle) -> None:
    assert read_bundle(bundle.path).manifest.inspected_area == left_part()
    assert np.array_equal(left_part().mask_at(HEIGHT, WIDTH), left_part().mask)
    assert left_part().mask_at(2 * HEIGHT, 2 * WIDTH).mean() == left_part().share
    assert str(left_part()) == "49.4% of 201x150"
    content = json.loads((bundle.path / MANIFEST).read_bytes())["inspected_area"]
    assert set(content) == {"height", "width", "mask"}


def test_an_area_that_is_not_stated_is_not_written(tmp_path: Path) -> None:
    whole = write_tiny_bundle(tmp_path / "whole")
    assert "inspected_area" not in json.loads((whole.path / MANIFEST).read_bytes())


def packed(bits: bytes) -> str:
    return base64.b64encode(zlib.compress(bits)).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": packed(b"\xff" * 7)}, "7 bytes are no mask of 8x8"),
        ({"mask": packed(b"\xff" * 10**7)}, "does not end where it should"),
        ({"mask": packed(b"\0" * 8)}, "no pixel is inspected"),
        ({"mask": "no base64"}, "inspected_area: "),
        ({"mask": base64.b64encode(b"nothing").decode()}, "inspected_area: "),
        ({"width": 10**9}, "a side of 1000000000x8 is not from 1 to 16384"),
        ({"height": "8"}, "height is '8', not of type int"),
        ({"colour": 1}, "does not know colour"),
    ],
)
def test_a_damaged_area_is_refused(changes: dict[str, Any], message: str) -> None:
    content = {"height": 8, "width": 8, "mask": packed(b"\xff" * 8), **changes}
    with pytest.raises(SchemaError, match=message):
        area_from_json(content)


def test_an_area_without_place_for_a_pixel_of_the_input_is_refused(bundle: Bundle) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[70, 70] = True
    content = json.loads(manifest_to_json(bundle.manifest, bundle.sha256))
    del content["checksum"]
    content["inspected_area"] = InspectedArea.of_mask(mask).to_json()
    with pytest.raises(SchemaError, match="draw a larger one"):
        manifest_from_json(json.dumps(content).encode())
