"""Exempted patches in graphs of tiles, inspected areas, camera frames and scores alone.

What a bundle gives is compared with the formulas of the documentation, evaluated in numpy on what
the graph before computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import fit_method, small_simplenet
from test_exempting import SIZE, append
from test_teach import bundle_of, noise

from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.image import Image
from flawline.runtime.inspected_area import InspectedArea
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.teaching.bank_of_patches import INNER
from flawline.runtime.teaching.exempting_graph import exempting_graph
from flawline.runtime.teaching.positions import find_levels
from flawline.runtime.teaching.resampling import REACH
from flawline.runtime.tiles import Tiling
from flawline.train.methods.simplenet import SimpleNet

pytestmark = pytest.mark.torch

Doubles = Any


@pytest.fixture(scope="module")
def method() -> SimpleNet:
    """Trained on grey noise around 120."""
    fitted = small_simplenet()
    fit_method(fitted, frames(6, 1, (SIZE, SIZE)), steps=60)
    return fitted


def area() -> InspectedArea:
    mask = np.ones((80, 200), bool)
    mask[:16] = False
    return InspectedArea.of_mask(mask)


# Name -> height and width of the frames, and fields of the bundle.
VARIANTS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "tiles and an inspected area": (
        (80, 200),
        {"tiles": Tiling(2, 1), "inspected_area": area()},
    ),
    "a camera's frames": ((SIZE, SIZE), {"source": SourceFrame(SIZE, SIZE, "mono")}),
    "the score alone, one image per call": ((SIZE, SIZE), {"outputs": ("score",), "batch": 1}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_like_a_false_reject_gets_the_score_of_the_formulas(
    method: SimpleNet, tmp_path: Path, name: str
) -> None:
    size, fields = VARIANTS[name]
    before = bundle_of(method, frames(6, 2, (SIZE, SIZE)), tmp_path / "old", **fields)
    good = [*frames(4, 4, size), *frames(4, 5, size, marked=True)]
    assert append(before, tmp_path, frames(3, 3, size, marked=True), good) == 0
    after = read_bundle(tmp_path / "new")
    exempted = int(after.manifest.provenance["exempted_patches"])
    assert exempted >= 2
    lowered = 0
    formulas = Formulas(before, after)
    with Detector(before, "onnxruntime") as old, Detector(after, "onnxruntime") as new:
        for image in (*frames(2, 6, size, marked=True), *frames(1, 7, size)):
            frame = before.manifest.graph_input.of_camera(image)
            assert isinstance(frame, np.ndarray)
            expected = formulas(frame)
            assert new(image).score == pytest.approx(expected, abs=1e-3)
            lowered += old(image).score - expected > 0.5
    assert lowered == 2


def frames(count: int, seed: int, size: tuple[int, int], marked: bool = False) -> list[Image]:
    """Grey noise, with a dark line at the left where it is marked."""
    height, width = size
    images = []
    for image in noise(count * 3, seed)[::3]:
        rows = np.tile(image, (2, 4, 1))[:height, :width].copy()
        rows[..., 1:] = rows[..., :1]
        if marked:
            rows[:, 8:48] = 0
        images.append(rows)
    return images


# ---------------------------------------------------------------- the formulas, in numpy


class Formulas:
    """The score of a frame by what the graph before computes, and the bank after."""

    def __init__(self, before: Bundle, after: Bundle) -> None:
        model = onnx.load_model_from_string(before.read_model())
        found = find_levels(model, "image", SIZE)
        graph = exempting_graph(after.read_model(), SIZE)
        assert found is not None
        assert graph is not None
        self._tiles = before.manifest.graph_input.grid
        self._grid, self._bank = found.grid, graph.bank
        extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
        front = extractor.extract_model(["image"], [*found.levels, found.value])
        self._front = open_session(front.SerializeToString())
        rest = extractor.extract_model([found.value], ["score"])
        self._rest = open_session(rest.SerializeToString())

    def __call__(self, frame: Image) -> float:
        if self._tiles is None:
            return self._score(frame)
        return max(self._score(np.ascontiguousarray(tile)) for tile in self._tiles.cut(frame))

    def _score(self, image: Image) -> float:
        found = self._front.run(None, {"image": image[None]})
        *levels, values = (value[0].astype(np.float64) for value in found)
        features = np.concatenate([_resized(_means(level), self._grid) for level in levels])
        lowered = _lowered(features, values, self._bank).astype(np.float32)
        (score,) = self._rest.run(None, {self._rest.get_inputs()[0].name: lowered[None]})
        return float(score[0])


def _lowered(features: Doubles, values: Doubles, bank: Any) -> Doubles:
    """Return values [h, w] that the bank lowers by features [d, h, w]."""
    lowered = values.copy()
    assert values.shape == features.shape[1:]
    for place in np.ndindex(values.shape):
        patch = features[(slice(None), *place)] - bank.mean
        distances = np.square(patch - bank.rows).sum(1)
        share = np.clip((1 - distances / bank.radii) / (1 - INNER), 0, 1).max()
        lowered[place] -= share * max(values[place] - bank.cap, 0)
    return lowered


def _means(level: Doubles) -> Doubles:
    """Return the means over the neighbours of each position that are there."""
    means = np.empty_like(level)
    for row, column in np.ndindex(level.shape[1:]):
        rows = slice(max(row - REACH, 0), row + REACH + 1)
        columns = slice(max(column - REACH, 0), column + REACH + 1)
        means[:, row, column] = level[:, rows, columns].mean((1, 2))
    return means


def _resized(level: Doubles, grid: tuple[int, int]) -> Doubles:
    larger = grid[0] >= level.shape[1]
    way = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
    return np.stack([cv2.resize(plane, grid[::-1], interpolation=way) for plane in level])
