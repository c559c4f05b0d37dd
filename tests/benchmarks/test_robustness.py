"""Perturbations of images, and the study of what they do to a detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import tiny_model, write_levels, write_tiny_bundle

pytest.importorskip("torch", reason="needs the train extra")

import onnx

from flawline.benchmarks.perturbations import PERTURBATIONS, perturb
from flawline.benchmarks.robustness import cases_of, robustness_of
from flawline.benchmarks.studies.robustness.__main__ import main
from flawline.cameras import CameraError
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.engines import EngineOptions
from flawline.train.data import open_data
from flawline.train.data.reference_picture import fixture_of

pytestmark = pytest.mark.torch
ENGINE = ("onnxruntime", EngineOptions(threads=1))
CASES = [(case.name, case.strength) for case in cases_of(list(PERTURBATIONS))[1:]]


def images() -> dict[str, tuple[Any, int]]:
    """An image of each kind with its bit depth: mono and BGR, 8 and 12 bits."""
    rng = np.random.default_rng(0)
    return {
        "mono": (rng.integers(0, 256, (31, 40), np.uint8), 8),
        "colour": (rng.integers(0, 256, (31, 40, 3), np.uint8), 8),
        "deep mono": (rng.integers(0, 4096, (31, 40), np.uint16), 12),
        "deep colour": (rng.integers(0, 4096, (31, 40, 3), np.uint16), 12),
    }


# ---------------------------------------------------------------- perturbations


@pytest.mark.parametrize(("name", "strength"), CASES)
def test_a_change_keeps_type_size_and_range_and_is_repeatable(name: str, strength: float) -> None:
    for kind, (image, depth) in images().items():
        before = image.copy()
        changed = perturb(image, name, strength, depth)
        assert (changed.dtype, changed.shape) == (image.dtype, image.shape)
        assert changed.max() < 2**depth
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(perturb(image, name, strength, depth), changed)
        if not (PERTURBATIONS[name].needs_colour and "mono" in kind):
            assert (changed != image).any()


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name != "JPEG"])
def test_the_neutral_strength_changes_nothing(name: str) -> None:
    neutral = PERTURBATIONS[name].neutral
    assert neutral is not None
    for image, depth in images().values():
        same = perturb(image, name, neutral, depth)
        np.testing.assert_array_equal(same, image)
        assert same is not image


def test_light_is_changed_as_stated() -> None:
    image = np.array([[0, 10, 100, 250]], np.uint8)
    np.testing.assert_array_equal(perturb(image, "gain", 1.4), [[0, 14, 140, 255]])
    np.testing.assert_array_equal(perturb(image, "gain", 0.7), [[0, 7, 70, 175]])
    expected = np.rint(255 * (image / 255) ** 0.8)
    np.testing.assert_array_equal(perturb(image, "gamma", 0.8), expected)
    colour = np.full((1, 1, 3), 100, np.uint8)
    np.testing.assert_array_equal(perturb(colour, "colour temperature", 1.1), [[[91, 100, 110]]])
    deep = np.full((2, 2), 4000, np.uint16)
    assert (perturb(deep, "gain", 1.4, 12) == 4095).all()


def test_a_vignette_darkens_the_corners_alone() -> None:
    flat = np.full((21, 31), 200, np.uint8)
    dark = perturb(flat, "vignette", 0.3)
    assert dark[10, 15] == 200
    assert dark[0, 0] == dark[-1, -1] == dark[0, -1] == 140
    assert (np.diff(dark[10, 15:].astype(int)) <= 0).all()


def test_a_shift_moves_the_part_and_repeats_the_edge() -> None:
    image = images()["colour"][0]
    moved = perturb(image, "shift", 3)
    np.testing.assert_array_equal(moved[3:, 3:], image[:-3, :-3])
    np.testing.assert_array_equal(moved[:3, 3:], np.repeat(image[:1, :-3], 3, 0))
    np.testing.assert_array_equal(moved[3:, :3], np.repeat(image[:-3, :1], 3, 1))


def test_blur_and_noise_have_the_stated_deviation() -> None:
    point = np.zeros((61, 61), np.uint16)
    point[30, 30] = 60000
    spread = perturb(point, "blur", 2, 16).astype(float)
    squares = (np.arange(61) - 30) ** 2
    assert np.sqrt((spread.sum(0) * squares).sum() / spread.sum()) == pytest.approx(2, abs=0.1)
    for depth, dtype in ((8, np.uint8), (12, np.uint16)):
        flat = np.full((200, 200), 2 ** (depth - 1), dtype)
        noise = perturb(flat, "noise", 5, depth).astype(float) - flat
        assert noise.std() * 256 / 2**depth == pytest.approx(5, rel=0.03)
        assert abs(noise.mean()) * 256 / 2**depth < 0.1


def test_two_images_get_different_noise() -> None:
    first = np.full((40, 40), 100, np.uint8)
    second = np.full((40, 40), 101, np.uint8)
    one = perturb(first, "noise", 5).astype(int) - 100
    other = perturb(second, "noise", 5).astype(int) - 101
    assert (one != other).mean() > 0.5


def test_jpeg_is_opencvs_and_drops_the_lower_bits_of_deep_images(photo: np.ndarray) -> None:
    _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 75])
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(perturb(photo, "JPEG", 75), expected)
    deep = photo.astype(np.uint16) * 16 + 7
    np.testing.assert_array_equal(perturb(deep, "JPEG", 75, 12), expected.astype(np.uint16) * 16)


# ---------------------------------------------------------------- the study


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Good images of 70 to 95, defective ones of 110 and 140: the tiny model's scores."""
    levels = {
        "train/good": (20, 21, 22, 23, 24),
        "test/good": (70, 80, 90, 95),
        "test/bright": (110, 140),
    }
    return write_levels(tmp_path / "parts", levels, 64)


def test_rows_state_what_changes_do_to_the_decisions(bundle: Bundle, data: Path) -> None:
    rows = robustness_of(bundle, open_data(data), *ENGINE, ["gain"], {"cell": "a"})
    assert [(row["perturbation"], row["strength"]) for row in rows] == [
        ("none", 0),
        ("gain", 0.7),
        ("gain", 0.85),
        ("gain", 1.2),
        ("gain", 1.4),
    ]
    assert all(row["cell"] == "a" and row["image_auroc"] == 1 for row in rows)
    # The threshold is 100: with a gain of 1.2, the good images of 90 and 95 are above it.
    assert [row["false_alarm_rate"] for row in rows] == [0, 0, 0, 0.5, 0.75]
    assert [row["recall"] for row in rows] == [1, 0, 0.5, 1, 1]
    assert rows[3]["false_alarm_interval"] == pytest.approx([0.0676, 0.9324], abs=1e-4)
    assert {row["engine_name"] for row in rows} == {"onnxruntime"}
    json.dumps(rows)


def test_a_change_of_colour_has_no_row_for_mono_images(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["colour temperature"]
    assert len(robustness_of(bundle, open_data(data), *ENGINE, names)) == 3
    for path in (data / "test").rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert len(robustness_of(bundle, open_data(data), *ENGINE, names)) == 1
    assert "colour temperature 0.9 is left out" in capsys.readouterr().err


def test_deep_images_are_changed_at_their_own_depth(tmp_path: Path, data: Path) -> None:
    path = data / "test/good/70.png"
    cv2.imwrite(str(path), np.full((64, 64), 16 * 70 + 15, np.uint16))
    shallow = write_tiny_bundle(tmp_path / "shallow")
    with pytest.raises(CameraError, match="16 bits"):
        robustness_of(shallow, open_data(data), *ENGINE, ["gain"])
    deep = write_tiny_bundle(tmp_path / "deep", bit_depth=12)
    rows = robustness_of(deep, open_data(data), *ENGINE, ["gain"])
    # 1135 of 4095, which is 70 of 255: with the gain of 1.4 it is 99.3, and not an alarm.
    assert rows[4]["false_alarm_rate"] == 0.75


def test_the_command_writes_a_table(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(bundle.path), "--data", str(data), "--out", str(tmp_path / "r")]
    assert main([*command, "--changes", "gain", "noise", "--threads", "1"]) == 0
    page = (tmp_path / "r.md").read_text()
    assert capsys.readouterr().out == page
    assert "| gain 1.2 | 1.0000 | 50.0% | 6.8% to 93.2% | 100.0% |" in page
    assert "noise: standard deviation" in page
    assert "blur" not in page
    assert str(tmp_path) not in page
    rows = json.loads((tmp_path / "r.json").read_text())
    assert len(rows) == 6
    figure = (tmp_path / "r.svg").read_text()
    assert all(f"<!-- {text} -->" in figure for text in ("no change", "gain 1.2", "noise 5"))
    assert (tmp_path / "r.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        main([*command, "--changes", "fog"])
    # A second measurement of the bundle replaces the first, and another bundle's rows stay.
    renamed = [{**row, "bundle_id": "other"} for row in rows]
    (tmp_path / "r.json").write_text(json.dumps([*renamed, *rows]))
    assert main([*command, "--changes", "gain", "--threads", "1"]) == 0
    again = json.loads((tmp_path / "r.json").read_text())
    assert again[:6] == renamed
    assert [row["bundle_id"] for row in again[6:]] == [bundle.short_id] * 5
    # Those of an earlier version do not have it.
    old = [{key: row[key] for key in row if key != "bundle_id"} for row in renamed]
    (tmp_path / "r.json").write_text(json.dumps(old))
    assert main([*command, "--changes", "gain", "--threads", "1"]) == 0
    assert len(json.loads((tmp_path / "r.json").read_text())) == 11
    (tmp_path / "r.json").write_text('[{"bundle": 3}]')
    assert main([*command, "--threads", "1"]) == 2
    assert "is not a result of this study" in capsys.readouterr().err


def renamed_model(name: str) -> bytes:
    """Return the tiny model with other bytes."""
    model = onnx.load_from_string(tiny_model())
    model.doc_string = name
    return model.SerializeToString()


def test_bundles_in_folders_of_the_same_name_stay_apart(data: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name / "part" for name in ("a", "b", "c")]
    write_tiny_bundle(paths[0])
    write_tiny_bundle(paths[1], renamed_model("second"))
    write_tiny_bundle(paths[2], renamed_model("third"), backbone="resnet34")
    out = tmp_path / "r"
    command = ["--data", str(data), "--out", str(out), "--changes", "shift", "--threads", "1"]
    for path in paths:
        assert main([*command, "--bundle", str(path)]) == 0
    ids = [read_bundle(path).short_id for path in paths]
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [row["bundle_id"] for row in rows] == [each for each in ids for _ in range(2)]
    page = (tmp_path / "r.md").read_text()
    figure = (tmp_path / "r.svg").read_text()
    for number, each in enumerate(ids):
        assert f"; bundle part {each}\n" in page
        engine = "parts, onnxruntime fp32"
        # Two labels would be the same without the bundle.
        label = f"simplenet resnet18, {engine}, part {each}"
        if number == 2:
            label = f"simplenet resnet34, {engine}"
        assert f"<!-- {label} -->" in figure


def test_the_current_folder_has_a_name(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.path)
    rows = robustness_of(read_bundle(Path()), open_data(data), *ENGINE, ["shift"])
    assert {row["bundle"] for row in rows} == {bundle.path.name}
    monkeypatch.chdir(data)
    rows = robustness_of(bundle, open_data(Path()), *ENGINE, ["shift"])
    assert {row["data"] for row in rows} == {"parts"}


def test_a_part_that_the_fixture_does_not_find_is_rejected(data: Path, tmp_path: Path) -> None:
    still = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    fixture = fixture_of(still, (8, 8, 48, 48), turn=0, shift=1)
    bundle = write_tiny_bundle(tmp_path / "laid", fixture=fixture)
    rows = robustness_of(bundle, open_data(data), *ENGINE, ["gain"])
    assert len(rows) > 1
    for row in rows:
        assert (row["false_alarm_rate"], row["recall"]) == (1, 1)
