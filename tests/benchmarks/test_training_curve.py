"""The study of AUROC along the training: its bearings, curves, table and figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.studies.training_curve.figure import draw_curves
from flawline.benchmarks.studies.training_curve.measure import (
    MEASURED_AT,
    Features,
    collect,
    image_score,
    measure_curve,
    nearest_auroc,
    spread,
    standard_error,
)
from flawline.benchmarks.studies.training_curve.report import curve_report
from flawline.benchmarks.studies.training_curve.rotating import FIRST_SEED, render_rotating
from flawline.runtime.image import Geometry
from flawline.train.methods.simplenet import SimpleNet, SimpleNetSettings
from flawline.train.metrics import auroc

pytestmark = pytest.mark.torch
SETTINGS = SimpleNetSettings(
    "resnet18",
    Geometry("stretch", 64, 64),
    target_dim=24,
    hidden=16,
    noise=None,
    vectors=128,
    averaged_share=0.25,
)


def features() -> Features:
    """Noise, and test images of which the defective ones have ten unusual patches."""
    rng = np.random.default_rng(0)
    train = rng.normal(0, 1, (10, 64, 24)).astype(np.float32)
    test = rng.normal(0, 1, (12, 64, 24)).astype(np.float32)
    labels = np.arange(12) >= 6
    test[labels, :10] += 6
    return Features("set", train, test, labels, "none")


def curve(setting: str, seed: int, averaged: list[float], last: float) -> dict[str, Any]:
    points = []
    for step, value in zip((10, 50, 100), averaged, strict=True):
        points.append({"step": step, "last": last, "averaged": value})
    return {
        "data": "set",
        "defective": 80,
        "good": 50,
        "setting": setting,
        "seed": seed,
        "steps": 100,
        "seconds": 2.0,
        "weights": "none",
        "points": points,
    }


ROWS = [
    curve("first", 0, [0.2, 0.90, 0.95], 0.5),
    curve("first", 1, [0.3, 0.91, 0.97], 0.6),
    curve("light", 0, [0.9, 0.96, 0.96], 0.7),
]


def test_a_bearing_turns_and_moves_and_keeps_its_bytes() -> None:
    image = render_rotating(None, FIRST_SEED)
    assert image.shape == (320, 320, 3)
    assert np.array_equal(image, render_rotating(None, FIRST_SEED))
    other = render_rotating("missing_part", FIRST_SEED)
    changed = np.abs(image.astype(int) - other).max(2) > 20
    assert 0 < changed.mean() < 0.02


def test_a_head_that_is_measured_scores_as_the_method_does() -> None:
    model = SimpleNet(SETTINGS)
    model.initialise(0)
    model.eval()
    vectors = torch.from_numpy(features().test[0])
    head = torch.nn.Sequential(model.adapter, model.discriminator)
    with torch.inference_mode():
        score = float(model.judge(vectors.view(1, 8, 8, 24))[0])
        assert image_score(head, vectors) == pytest.approx(score, rel=0.02)


@pytest.mark.parametrize("fixed_decay", [False, True])
def test_a_curve_has_a_point_at_every_share(fixed_decay: bool) -> None:
    row = measure_curve(features(), SETTINGS, 80, 0, fixed_decay)
    assert [point["step"] for point in row["points"]] == [round(80 * at) for at in MEASURED_AT]
    for point in row["points"]:
        assert 0 <= point["averaged"] <= 1
    assert row == {**measure_curve(features(), SETTINGS, 80, 0, fixed_decay), "seconds": ANY}


class _Any:
    """Equal to everything: the time of a run is no part of its result."""

    def __eq__(self, other: object) -> bool:
        return True


ANY = _Any()


def test_the_nearest_patch_finds_the_unusual_ones() -> None:
    assert nearest_auroc(features()) == 1


def test_the_range_covers_seeds_and_the_last_half_alone() -> None:
    assert spread(ROWS[:2]) == pytest.approx(0.07)
    assert spread(ROWS[:2], "last") == pytest.approx(0.1)


def test_the_error_of_a_test_set_agrees_with_drawn_sets() -> None:
    """Normal scores, one unit apart, of 30 defective and 40 good images."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        labels = np.arange(70) < 30
        drawn.append(auroc(labels, rng.normal(labels, 1)))
    expected = standard_error(float(np.mean(drawn)), 30, 40)
    assert float(np.std(drawn)) == pytest.approx(expected, rel=0.06)


def test_the_table_has_a_line_per_setting_and_the_figure_its_lines(tmp_path: Path) -> None:
    page = curve_report(ROWS, {"set": 0.9123}, "command")
    lines = page.splitlines()
    assert "| set | first | 2 | 100 | 0.9600 ± 0.0141 | 0.016 | 0.0700 | 0.1000 |" in lines[2]
    assert "0.9123" in lines[3]
    for path in draw_curves(ROWS, {"set": 0.9123}, tmp_path / "curve"):
        assert path.stat().st_size > 1000


def test_stored_features_are_those_of_the_same_backbone_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_squares(tmp_path / "squares", {"train/good": 6, "test/good": 1, "test/square": 1})
    cache = tmp_path / "cache"

    def collected(folder: Path = root, **changes: Any) -> Features:
        return collect(folder, replace(SETTINGS, **changes), "random", cache, lambda *_: None)

    first = collected()
    assert first.train.shape == (5, 64, 24)
    monkeypatch.chdir(root)
    again = collected(Path())
    assert again.name == "squares"
    assert (again.train == first.train).all()
    assert len(list(cache.glob("*.npy"))) == 2
    assert collected(target_dim=16).train.shape == (5, 64, 16)
    (root / "test/good/001.png").write_bytes((root / "test/good/000.png").read_bytes())
    assert len(collected().test) == len(collected().labels) == 3
