"""The protocol: rates with intervals, the threshold of maps, defects by area, tuning sets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_levels, write_tiny_bundle
from score_bundles import write_score_bundle

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks import interleaved, pixel_threshold
from flawline.benchmarks.evaluate import evaluate_bundles
from flawline.benchmarks.interleaved import EngineChoice
from flawline.benchmarks.pixel_threshold import PixelThreshold, held_out_images
from flawline.benchmarks.protocol import protocol_of, read_truth, recall_by_area
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.threshold import set_threshold
from flawline.train import METHODS
from flawline.train.data import DataError, hold_out, open_data
from flawline.train.data.reference_picture import fixture_of
from flawline.train.data.split import content_hashes
from flawline.train.method import resolve_method
from flawline.train.methods.patchcore import PatchCore
from flawline.train.metrics import f1
from flawline.train.tuning_sets import TUNING_SETS, was_tuned_on

pytestmark = pytest.mark.torch
# As many good images as a rate of 20 % takes, and their hold-out of 4.
GOOD = range(20, 40)
RATE = 0.2
SIDE = 64
ENGINE = [EngineChoice("onnxruntime", EngineOptions(threads=1))]


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "SETTLE_S", 0.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Uniform good images of 20 to 39 and test images: with the tiny model, scores are levels.

    Defective images have a spot of 200 in a grey of 30: of 4 pixels, of 100, and one without mask.
    """
    levels = {"train/good": GOOD, "test/good": (25, 30, 35, 150), "test/spot": (30, 31, 32)}
    root = write_levels(tmp_path / "parts", levels, SIDE)
    for name, side, value in (("30", 2, 200), ("31", 10, 200), ("32", 10, 90)):
        image = np.full((SIDE, SIDE, 3), 30, np.uint8)
        image[8 : 8 + side, 8 : 8 + side] = value
        cv2.imwrite(str(root / "test/spot" / f"{name}.png"), image)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[8 : 8 + side, 8 : 8 + side] = 255
        if name != "32":
            masks = root / "ground_truth/spot"
            masks.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(masks / f"{name}_mask.png"), mask)
    return root


def bundle_for(data: Path, path: Path, **changes: Any) -> Bundle:
    """The tiny bundle as if it was trained on the training side of these images."""
    training, _ = hold_out(open_data(data).train_good)
    hashes = tuple(sorted(content_hashes(training)))
    bundle = write_tiny_bundle(path, trained_images=hashes, **changes)
    return replace(bundle, calibration=replace(bundle.calibration, false_alarm_rate=RATE))


def pixel_of(bundle: Bundle, data: Path) -> PixelThreshold:
    with Detector(bundle, *ENGINE[0]) as detector:
        return pixel_threshold.pixel_threshold(detector, open_data(data))


# ---------------------------------------------------------------- the threshold of maps


def test_the_threshold_of_maps_is_the_quantile_of_the_held_out_peaks(
    data: Path, tmp_path: Path
) -> None:
    _, held_out = hold_out(open_data(data).train_good)
    levels = np.array([float(path.stem) for path in held_out])
    found = pixel_of(bundle_for(data, tmp_path / "b"), data)
    assert (found.images, found.rate, found.reason) == (4, RATE, None)
    assert found.value == pytest.approx(set_threshold(levels, RATE, 0.01).threshold)
    assert found.value > levels.max()


def test_a_held_out_image_without_a_verdict_is_named(data: Path, tmp_path: Path) -> None:
    still = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    fixture = fixture_of(still, (8, 8, 48, 48), turn=0, shift=1)
    with pytest.raises(EngineError, match=r"cannot judge .*\.png: the part was not found"):
        pixel_of(bundle_for(data, tmp_path / "b", fixture=fixture), data)


def test_no_test_image_is_read_for_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = pixel_threshold.read_image

    def remember(path: Path, bit_depth: int | None) -> Any:
        read.append(path)
        return original(path, bit_depth)

    monkeypatch.setattr(pixel_threshold, "read_image", remember)
    pixel_of(bundle_for(data, tmp_path / "b"), data)
    assert len(read) == 4
    assert {path.parent for path in read} == {data / "train/good"}


def test_without_held_out_images_the_reason_is_given(data: Path, tmp_path: Path) -> None:
    everything = tuple(sorted(content_hashes(open_data(data).train_good)))
    cases = {
        "folds": ({"folds": 5}, "trained on all good images"),
        "unknown": ({"trained_images": ()}, "does not state the images"),
        "others": ({"trained_images": everything}, "was trained on; give the data set"),
    }
    for name, (changes, reason) in cases.items():
        bundle = bundle_for(data, tmp_path / name)
        manifest = replace(bundle.manifest, **changes)
        with pytest.raises(DataError, match=reason):
            held_out_images(manifest, open_data(data))
        found = pixel_of(replace(bundle, manifest=manifest), data)
        assert found.value is None
        assert reason in str(found.reason)


def test_too_few_held_out_images_for_the_rate_set_no_threshold(data: Path, tmp_path: Path) -> None:
    bundle = bundle_for(data, tmp_path / "b")
    strict = replace(bundle, calibration=replace(bundle.calibration, false_alarm_rate=0.01))
    found = pixel_of(strict, data)
    assert found.value is None
    assert "needs 99" in str(found.reason)


# ---------------------------------------------------------------- the row


def test_a_row_states_the_decisions_of_the_bundle(data: Path, tmp_path: Path) -> None:
    bundle = bundle_for(data, tmp_path / "b")
    data_set = open_data(data)
    # Of the test images in their order: good 150, 25, 30, 35, then the spots.
    names = [sample.path.stem for sample in data_set.test]
    scores = np.array([{"25": 25.0, "35": 35.0, "150": 150.0}.get(name, 30.0) for name in names])
    labels = np.array([sample.defect is not None for sample in data_set.test])
    scores[labels] = (200, 200, 90)
    pixel = PixelThreshold(None, reason="because")
    row = protocol_of(read_truth(data_set), scores, bundle, pixel)
    assert (row["false_alarm_rate"], row["recall"]) == (0.25, 0.6667)
    # One of four and two of three, Clopper and Pearson.
    assert row["false_alarm_interval"] == pytest.approx([0.0063, 0.8059], abs=1e-4)
    assert row["recall_interval"] == pytest.approx([0.0943, 0.9916], abs=1e-4)
    assert row["asked_rate"] == RATE
    # No bad image may be missed: the lowest has 90; no good one rejected: the highest has 150.
    assert (row["pg2"], row["pb2"]) == (0.75, 0.6667)
    assert row["recall_by_area"] == [
        {"from_px": 0, "to_px": 16, "defects": 1, "found": 1},
        {"from_px": 64, "to_px": 256, "defects": 1, "found": 1},
    ]
    assert row["seg_f1"] is None
    assert row["reasons"] == {"seg_f1": "because", "pixel_threshold": "because"}
    assert row["tuning_set"] is False


def test_measured_rows_have_the_protocol_on_request(data: Path, tmp_path: Path) -> None:
    bundle = bundle_for(data, tmp_path / "b")
    (plain,) = evaluate_bundles([bundle.path], data, ENGINE, 1)
    (row,) = evaluate_bundles([bundle.path], data, ENGINE, 1, protocol=True)
    assert "pg2" not in plain
    assert plain["image_auroc"] == row["image_auroc"]
    assert row["false_alarm_rate"] == row["false_alarms"] / row["good_images"]
    assert row["seg_f1"] is None  # the bundle on disk states 1 %
    assert "needs 99" in row["reasons"]["seg_f1"]


def test_the_f1_of_pixels_leaves_out_images_of_unknown_truth(data: Path, tmp_path: Path) -> None:
    bundle = bundle_for(data, tmp_path / "b")
    truth = read_truth(open_data(data))
    rng = np.random.default_rng(0)
    maps = [rng.random((8, 8), np.float32) for _ in truth.labels]
    masks: list[Any] = [rng.random((8, 8)) < 0.4 for _ in truth.labels]
    masks[-1] = None
    scores = rng.random(len(maps))
    row = protocol_of(truth, scores, bundle, PixelThreshold(0.7, 4, RATE), masks, maps)
    expected = f1(np.array(masks[:-1]), np.array(maps[:-1]) > 0.7)
    assert (row["pixel_threshold"], row["seg_f1"]) == (0.7, pytest.approx(expected, abs=1e-4))


def test_without_masks_or_map_the_row_says_so(data: Path, tmp_path: Path) -> None:
    bundle = write_score_bundle(tmp_path / "score")
    (row,) = evaluate_bundles([bundle.path], data, ENGINE, 1, protocol=True)
    assert row["seg_f1"] is None
    assert row["reasons"]["seg_f1"] == "the bundle gives no anomaly map"
    assert row["recall_by_area"]  # the image's verdict needs no map
    (data / "ground_truth").rename(tmp_path / "elsewhere")
    bundle = bundle_for(data, tmp_path / "b")
    (row,) = evaluate_bundles([bundle.path], data, ENGINE, 1, protocol=True)
    assert (row["seg_f1"], row["recall_by_area"]) == (None, None)
    assert set(row["reasons"].values()) == {"the data set has no masks"}


def test_the_groups_of_areas_are_complete_and_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    areas = (2 ** rng.uniform(0, 16, 500)).astype(int)
    areas[:3] = (15, 16, 64)
    found = rng.random(500) < 0.5
    rows = recall_by_area(areas, found)
    assert sum(row["defects"] for row in rows) == 500
    assert sum(row["found"] for row in rows) == found.sum()
    for row in rows:
        inside = [row["from_px"] <= area < row["to_px"] for area in areas]
        assert row["defects"] == sum(inside)
        assert row["found"] == found[inside].sum()
    limits = [row["from_px"] for row in rows]
    assert limits[:4] == [0, 16, 64, 256]


# ---------------------------------------------------------------- tuning sets


def test_tuning_sets_are_known_by_their_folder(tmp_path: Path) -> None:
    for folder in ("elpv_mono", "ELPV_mono", "demo/metal"):
        assert was_tuned_on(PatchCore, tmp_path / folder)
    for folder in ("magnetic_tile", "elpv_mono/train"):
        assert not was_tuned_on(PatchCore, tmp_path / folder)


def test_the_magnetic_tiles_are_no_tuning_set_of_any_method() -> None:
    """docs/protocol.md says so."""
    for name in METHODS:
        assert not was_tuned_on(resolve_method(name), Path("magnetic_tile"))


def test_the_page_lists_the_sets_of_every_method() -> None:
    page = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
    for tuning_set in TUNING_SETS:
        (cell,) = re.findall(rf"^\| {tuning_set} \| (.*) \|$", page, re.MULTILINE)
        listed = set(re.findall("`([a-z0-9_]+)`", cell))
        if cell.startswith("all"):
            listed = set(METHODS) - listed
        tuned = {name for name in METHODS if tuning_set in resolve_method(name).tuned_on}
        assert listed == tuned, tuning_set
