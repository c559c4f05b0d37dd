"""GLASS: its settings, the choice between manifold and hypersphere, and its training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, fit_method, small_simplenet

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.quick_patches import QuickPatches
from flawline.train.method import Fit
from flawline.train.methods import glass
from flawline.train.methods.glass import DISTRIBUTIONS, Glass, GlassSettings

pytestmark = pytest.mark.torch
SEED = 3


@pytest.fixture(scope="module")
def images() -> list[Any]:
    return board_images(64, 10)


@pytest.fixture
def texture_folder(tmp_path: Path) -> str:
    """Noise, so that no test waits for procedural textures."""
    rng = np.random.default_rng(0)
    for number in range(3):
        noise = rng.integers(0, 256, (80, 80, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise)
    return str(tmp_path)


def small_settings(**changes: Any) -> GlassSettings:
    settings = GlassSettings("resnet18", Geometry("stretch", 64, 64), 48, 48, 32)
    light = {"noise": None, "ascent_steps": 5, "vectors": 64, "local_images": 2, "first_rate": 3.0}
    return dataclasses.replace(settings, **light, **changes)


def small_glass(**changes: Any) -> Glass:
    model = Glass(small_settings(**changes))
    model.load_weights("random", 0, board_images(64, 2))
    return model


def test_the_published_setting_is_the_published_one() -> None:
    settings = Glass.settings_for("wide_resnet50_2")
    assert (settings.level_dim, settings.target_dim, settings.hidden) == (1536, 1536, 1024)
    assert (settings.noise, settings.ascent_steps, settings.ascent_statistics) == (0.015, 20, True)
    assert (settings.vectors, settings.local_images, settings.local_vectors) == (None, 8, None)
    assert (settings.first_rate, settings.last_rate, settings.averaged_share) == (1, 1, 0)
    # An epoch ends after 50 batches of 8, unless the user sets the epochs.
    assert Glass.steps(settings, 200, None) == 640 * 25
    assert Glass.steps(settings, 1000, None) == 640 * 50
    assert Glass.steps(settings, 1000, 2) == 2 * 125


def test_the_graph_is_simplenets() -> None:
    """With the same weights, the two judge and export the same."""
    one = small_simplenet()
    other = Glass(small_settings())
    other.load_state_dict(one.state_dict())
    batch = torch.from_numpy(np.stack(board_images(64, 2)))
    with torch.inference_mode():
        for form, counterpart in ((one, other.eval()), (one.fused(), other.fused())):
            for left, right in zip(form(batch), counterpart(batch), strict=True):
                assert torch.equal(left, right)


@pytest.mark.parametrize(("level", "target"), [(48, 48), (100, 70), (64, 33)])
def test_quick_patches_are_the_features_of_the_literal_pipeline(level: int, target: int) -> None:
    model = small_simplenet(level=level, target=target)
    batch = torch.from_numpy(np.stack(board_images(64, 2)))
    with torch.inference_mode():
        expected = model.flat_features(batch)
    torch.testing.assert_close(QuickPatches(model)(batch), expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_distribution_is_an_error() -> None:
    with pytest.raises(TrainError, match="--distribution sphere is unknown; known: auto, mani"):
        small_settings(distribution="sphere")


def test_the_folder_of_textures_is_used(texture_folder: str, images: list[Any]) -> None:
    anomalies = Glass.anomalies(small_settings(textures=texture_folder), images, 0)
    assert texture_folder in anomalies.description
    assert "procedural" in Glass.anomalies(small_settings(), images, 0).description
    with pytest.raises(TrainError, match="--textures"):
        Glass.anomalies(small_settings(textures="/nowhere"), images, 0)


@pytest.mark.parametrize("better", DISTRIBUTIONS)
def test_auto_takes_what_judges_synthetic_anomalies_better(
    better: str, images: list[Any], texture_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def judged(method: Any, judged_images: Any, *_: Any) -> tuple[Any, Any]:
        """Scores that are right in the trial of the better distribution, and reversed before."""
        calls.append(len(judged_images))
        right = np.arange(len(judged_images)) % 2 == 1
        return np.where(right == (DISTRIBUTIONS[len(calls) - 1] == better), 1.0, 0.0), None

    monkeypatch.setattr(glass, "evaluate", judged)
    model = small_glass(textures=texture_folder)
    record = fit_method(model, images, 20, SEED)
    assert calls == [10, 10]  # the five images that are not trained on, and their partners
    assert record.facts[f"{better}_auroc"] == "1.0000"
    (note,) = record.notes
    assert note.startswith(f"distribution: {better} (AUROC on synthetic anomalies: manifold ")
    chosen = small_glass(textures=texture_folder, distribution=better)
    fit_method(chosen, images, 20, SEED)
    assert torch.equal(model.adapter.weight, chosen.adapter.weight)


def test_a_fixed_distribution_needs_no_trial(images: list[Any], texture_folder: str) -> None:
    weights = []
    for distribution in DISTRIBUTIONS:
        model = small_glass(textures=texture_folder, distribution=distribution)
        record = fit_method(model, images, 3, SEED)
        assert record.missing(Glass.phases) == ()
        assert not record.notes
        assert not record.facts
        weights.append(model.adapter.weight)
    assert not torch.equal(*weights)


def test_a_trial_that_time_cuts_short_is_no_training(
    images: list[Any], texture_folder: str
) -> None:
    model = small_glass(textures=texture_folder)
    saved: list[Any] = []
    record = Fit(images, 1000, SEED, deadline=0.0, save=saved.append)
    done = model.fit(record)
    assert done == 1
    assert saved[-1]["phase"] == DISTRIBUTIONS[0]
    assert record.missing(Glass.phases) == (DISTRIBUTIONS[1], "training")
