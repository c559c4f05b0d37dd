"""The study of doubtful images among the good ones of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.studies.doubtful.__main__ import main
from flawline.benchmarks.studies.doubtful.measure import (
    ALL_IMAGES,
    NOT_CONFIRMED,
    NOT_LISTED,
    NOT_MOVED,
)
from flawline.benchmarks.studies.doubtful.report import page_of

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/good": 12, "test/good": 4, "test/square": 10}
    return write_squares(tmp_path_factory.mktemp("data") / "squares", counts)


def study(data: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["--data", str(data), "--weights", "texture", "--out", str(out), *words]) == 0
    rows: list[dict[str, Any]] = json.loads(out.with_suffix(".json").read_text())
    assert out.with_suffix(".md").read_text() == page_of(rows) + "\n"
    return rows


def test_what_was_moved_is_counted_in_the_list(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    study(data, out, "--share", "0")
    rows = study(data, out, "--share", "0.15", "--seeds", "0", "1")
    counts = [(row["seed"], row["moved"], row["training_images"]) for row in rows]
    assert counts == [(0, 0, 12), (0, 2, 14), (1, 2, 14)]
    # A white square is unlike the noise of the good images.
    assert all(row["found"] == row["moved"] <= row["listed"] for row in rows)
    page = out.with_suffix(".md").read_text()
    assert "| squares | 0, 1 | 2 of 14 (15%) | 2, 2 | 100% |" in page
    assert "| squares | – | 0 of 12 (0%) | 0 | – |" in page


@pytest.mark.slow
def test_trainings_leave_out_what_is_listed(data: Path, tmp_path: Path) -> None:
    flags = ["--methods", "padim", "--size", "64", "--engine", "none", "--precision", "fp32"]
    rows = study(data, tmp_path / "study", "--share", "0.15", "--seeds", "0", "1", *flags)
    trainings = {row["kind"]: row for row in rows if row["what"] == "training"}
    assert set(trainings) == {ALL_IMAGES, NOT_CONFIRMED, NOT_LISTED, NOT_MOVED}
    assert {row["seed"] for row in trainings.values()} == {0}
    assert len({row["test_images"] for row in trainings.values()}) == 1
    # Those that a person confirms are the two that were moved.
    assert trainings[NOT_CONFIRMED]["held_out"] == trainings[NOT_MOVED]["held_out"]
    assert trainings[NOT_CONFIRMED]["image_auroc"] == trainings[NOT_MOVED]["image_auroc"]
