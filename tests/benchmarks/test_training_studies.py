"""The studies that train: accuracy over seeds, backbones, and the size of PatchCore's bank."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.labels import labelled_test_images
from flawline.benchmarks.studies.accuracy.__main__ import main as accuracy
from flawline.benchmarks.studies.backbones import measure as backbones_measure
from flawline.benchmarks.studies.backbones.__main__ import main as backbones
from flawline.benchmarks.studies.backbones.report import backbones_report
from flawline.benchmarks.studies.bank_size.__main__ import main as bank_size
from flawline.benchmarks.studies.cutswap.__main__ import main as cutswap
from flawline.benchmarks.studies.results import read_rows
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import open_data
from flawline.train.data.demo import write_demo
from flawline.train.judging import evaluate
from flawline.train.metrics import auroc
from flawline.train.recipe import plan
from flawline.train.training import train

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/good": 12, "test/good": 4, "test/square": 4}
    return write_squares(tmp_path_factory.mktemp("data") / "squares", counts)


# ---------------------------------------------------------------- accuracy


def test_accuracy_over_seeds(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(data), "--out", str(tmp_path / "r"), "--weights", "random"]
    command += ["--size", "64", "--steps", "3"]
    assert accuracy([*command, "--seeds", "0", "1"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    mean = statistics.mean(row["image_auroc"] for row in rows)
    page = (tmp_path / "r.md").read_text()
    assert f"| squares | 8 | 2 | {mean:.4f} ± " in page
    assert "--data squares --seeds 0 1 --weights random" in page
    assert str(data.parent) not in page
    assert "simplenet, resnet18, weights random, seed 0 (squares seed 0)" in page
    capsys.readouterr()
    for flag in ("--seed", "--bundle", "--checkpoint", "--save-checkpoint"):
        assert accuracy([*command, flag, "3"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{flag} is set by this command; leave it out")
    assert accuracy([*command, "--seeds", "0", "--weights", "/nowhere.pth"]) == 2
    errors = capsys.readouterr().err
    assert "cannot be read" in errors
    assert "squares seed 0: no bundle was built" in errors.splitlines()[-1]


# ---------------------------------------------------------------- backbones


def test_backbones_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_demo(tmp_path / "demo", ["metal"], train_good=6, test_good=2, per_defect=1, size=64)
    monkeypatch.setattr(backbones_measure, "SIZE", 64)
    command = ["--data", str(tmp_path / "demo" / "metal"), "--methods", "nearest"]
    command += ["--weights", "random", "--seeds", "0", "1", "--out", str(tmp_path / "result")]
    assert backbones(command) == 0
    rows = json.loads((tmp_path / "result.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(0 <= row["image_auroc"] <= 1 for row in rows)
    monkeypatch.setattr(backbones_measure, "nearest_auroc", None)
    assert backbones(command) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == rows
    assert "| nearest | random | 0 1 |" in (tmp_path / "result.md").read_text()


def test_simplenet_reads_the_same_backbone(data: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--methods", "simplenet", "--weights", "random"]
    command += ["--seeds", "3", "--steps", "2", "--out", str(tmp_path / "result")]
    assert backbones(command) == 0
    (row,) = read_rows(tmp_path / "result")
    assert (row["method"], row["budget"], row["seed"]) == ("simplenet", "2 steps", 3)


def test_every_method_is_a_detector_of_the_study(data: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--methods", "padim", "--weights", "random"]
    assert backbones([*command, "--seeds", "0", "--out", str(tmp_path / "result")]) == 0
    (row,) = read_rows(tmp_path / "result")
    assert (row["method"], row["budget"]) == ("padim", "default steps")


def test_data_of_one_kind_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(data / "train"), "--methods", "nearest", "--weights", "random"]
    assert backbones([*command, "--seeds", "0", "--out", str(tmp_path / "result")]) == 2
    assert "accuracy needs good and defective test images" in capsys.readouterr().err


def test_data_sets_of_one_kind_get_a_column_for_their_mean() -> None:
    def row(data: str, weights: str, auroc: float) -> dict[str, Any]:
        common = {"method": "nearest", "backbone": "resnet18", "budget": "bank of 8000"}
        images = {"good_images": 5, "test_images": 6, "seed": 0, "torch": "2"}
        return {**common, **images, "data": data, "weights": weights, "image_auroc": auroc}

    rows = [row("a", "random", 0.5), row("b", "random", 0.7), row("a", "texture sha256:1", 0.9)]
    page = backbones_report(rows, "command")
    assert "| scoring | weights | seeds | a | b | real mean |" in page
    assert "| nearest | random | 0 | 0.5000 | 0.7000 | 0.6000 |" in page
    assert "| nearest | texture | 0 | 0.9000 | – | – |" in page
    assert "Good/test images: a 5/6, b 5/6." in page


def test_a_result_file_of_another_kind_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(data), "--methods", "nearest", "--weights", "random"]
    for content in ("no rows", '[{"data": 3}]', "[{}]"):
        (tmp_path / "r.json").write_text(content)
        assert backbones([*command, "--out", str(tmp_path / "r")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("; delete it or give another --out")


def test_changed_test_images_are_measured_again(tmp_path: Path) -> None:
    root = write_squares(tmp_path / "squares", {"train/good": 8, "test/good": 2, "test/square": 2})
    image = root / "test/square/000.png"
    common = ["--data", str(root), "--weights", "random", "--seeds", "0"]
    for study, flags, measured in (
        (backbones, ["--methods", "padim"], 1),
        (cutswap, ["--variants", "untuned", "--size", "64"], 2),
    ):
        out = tmp_path / study.__module__
        words = [*common, *flags, "--out", str(out)]
        assert study(words) == 0
        before = read_rows(out)
        # Its pixels stay the same.
        image.write_bytes(image.read_bytes() + b"1")
        assert study(words) == 0
        after = read_rows(out)[:measured]
        assert len(before) == len(after) == measured
        for old, new in zip(before, after, strict=True):
            assert new["test_sha256"] != old["test_sha256"]
            assert new["image_auroc"] == old["image_auroc"]


def test_the_current_folder_has_a_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    common = ["--data", ".", "--weights", "random"]
    for study, flags in (
        (backbones, ["--methods", "padim", "--seeds", "0"]),
        (cutswap, ["--variants", "untuned", "--size", "64", "--seeds", "0"]),
    ):
        out = tmp_path / study.__module__
        assert study([*common, *flags, "--out", str(out)]) == 0
        assert {row["data"] for row in read_rows(out)} == {"squares"}


# ---------------------------------------------------------------- CutSwap


def test_variants_are_measured_once_with_two_banks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--data", str(data), "--weights", "random", "--size", "64", "--steps", "2"]
    command += ["--variants", "untuned", "cutswap-self", "--out", str(tmp_path / "r")]
    assert cutswap([*command, "--seeds", "0", "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())
    found = [(row["variant"], row["coreset"], row["steps"]) for row in rows]
    expected = [("untuned", 0.01, None), ("untuned", 0.001, None)]
    assert found == [*expected, ("cutswap-self", 0.01, 2), ("cutswap-self", 0.001, 2)]
    assert all(0 <= row["image_auroc"] <= 1 for row in rows)
    assert rows[0]["rows"] > rows[1]["rows"] >= 1
    page = (tmp_path / "r.md").read_text()
    assert f"| untuned | 0.01 | {rows[0]['image_auroc']:.4f} (1 seed) | 0.981 |" in page
    assert "| cutswap-vgg16 | 0.001 | not measured | 0.955 |" in page
    assert "squares 10/8" in page
    assert str(data.parent) not in page
    # Rows of another length of training stay in the file, but are not averaged with these.
    assert cutswap([*command, "--seeds", "0", "--steps", "1"]) == 0
    assert len(json.loads((tmp_path / "r.json").read_text())) == 6
    assert "(2 seeds)" not in (tmp_path / "r.md").read_text()
    rows = json.loads((tmp_path / "r.json").read_text())
    monkeypatch.setattr("flawline.benchmarks.studies.cutswap.measure.train", None)
    assert cutswap([*command, "--seeds", "0"]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == rows


def test_a_bank_of_the_study_is_that_of_a_training_of_its_own(data: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--weights", "random", "--size", "64", "--seeds", "3"]
    assert cutswap([*command, "--variants", "untuned", "--out", str(tmp_path / "r")]) == 0
    (_, row) = json.loads((tmp_path / "r.json").read_text())
    recipe = plan(
        "patchcore", data, weights="random", size=64, seed=3, folds=0, options={"coreset": 0.001}
    )
    model = load_checkpoint(train(recipe, tmp_path / "small.pt")).method
    images, labels = labelled_test_images(open_data(data), model.geometry)
    scores, _ = evaluate(model, images)
    assert len(model.bank.vectors) == row["rows"]
    assert row["image_auroc"] == pytest.approx(auroc(labels, scores), abs=1e-4)


def test_a_file_of_another_study_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text("[{}]")
    assert cutswap(["--data", str(data), "--out", str(tmp_path / "r")]) == 2
    assert "is not a result of this study" in capsys.readouterr().err


# ---------------------------------------------------------------- bank size


def test_bank_sizes_are_compared_and_drawn(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(data), "--weights", "random", "--size", "64", "--seed", "1"]
    assert bank_size([*command, "--sizes", "8", "16", "--out", str(tmp_path / "bank")]) == 0
    rows = json.loads((tmp_path / "bank.json").read_text())
    kinds = [(row["rows"], row["bank"]) for row in rows]
    assert kinds == [(8, "coreset"), (8, "random"), (16, "coreset"), (16, "random")]
    for row in rows:
        assert 0 <= row["image_auroc"] <= 1
        assert row["data"] == "squares"
    page = (tmp_path / "bank.md").read_text()
    assert page == capsys.readouterr().out
    assert page.startswith("| rows | coreset I-AUROC | random I-AUROC |")
    for name in ("bank", "bank-selection"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / f"{name}.svg").exists()


def test_bank_sizes_below_two_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bank_size(["--data", str(data), "--sizes", "1"])
    assert "--sizes counts rows: at least 2" in capsys.readouterr().err
