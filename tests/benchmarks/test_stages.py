"""The study of what each step from the published code to an engine brings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.studies.stages.__main__ import main as stages
from flawline.benchmarks.studies.stages.measure import _chosen
from flawline.export.build import main as build
from flawline.train.fit import main as fit

pytestmark = pytest.mark.torch

SMALL = ["--weights", "random", "--size", "64", "--folds", "0"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    counts = {"train/good": 12, "test/good": 4, "test/square": 4}
    data = write_squares(folder / "squares", counts)
    command = ["--method", "simplenet", "--data", str(data), "--out", str(folder / "bundle")]
    command += ["--steps", "3", "--save-checkpoint", str(folder / "part.pt")]
    assert build([*command, *SMALL]) == 0
    return folder


def arguments(folder: Path, checkpoint: str = "part.pt") -> list[str]:
    return [
        *("--checkpoint", str(folder / checkpoint), "--bundle", str(folder / "bundle")),
        *("--data", str(folder / "squares"), "--threads", "1"),
    ]


def test_all_forms_judge_the_same_images_alike(
    built: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "stages"
    monkeypatch.chdir(built / "squares")
    assert stages([*arguments(built), "--data", ".", "--out", str(out)]) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["data"] == "squares"
    rows = result["rows"]
    assert result["images"] == 8
    assert [row["form"] for row in rows[:3]] == ["(a) as published", "(b) literal", "(c) fused"]
    assert rows[0]["speedup"] == 1.0
    exact = [row for row in rows if row["engine"].endswith(("fp32", "(cpu)"))]
    assert "onnxruntime fp32" in [row["engine"] for row in exact]
    assert {row["image_auroc"] for row in exact} == {rows[0]["image_auroc"]}
    assert {row["flips"] for row in exact} == {0}
    page = out.with_suffix(".md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert f"| (a) as published | {rows[0]['engine']} | {rows[0]['image_auroc']} | 0 |" in page


def test_a_subset_keeps_the_share_of_good_images() -> None:
    labels = np.array([False] * 30 + [True] * 10)
    chosen = _chosen(labels, 8)
    assert len(chosen) == 8
    assert labels[chosen].sum() == 2
    assert _chosen(labels, None) == list(range(40))


def test_the_bundle_must_be_the_checkpoints(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pt"
    command = ["--data", str(built / "squares"), "--steps", "1", "--out", str(other)]
    assert fit([*command, "--weights", "random", "--size", "96", "--folds", "0"]) == 0
    capsys.readouterr()
    assert stages([*arguments(built), "--checkpoint", str(other)]) == 2
    error = capsys.readouterr().err
    assert "build the bundle from the checkpoint" in error
    assert "Traceback" not in error
    with pytest.raises(SystemExit):
        stages([*arguments(built), "--images", "1"])
