"""SimpleNet against the paper's formulas, its training, and its rewrites at unusual sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import fit_method, random_images, small_simplenet
from oracles import assert_equal_state, assert_fused_equals_literal
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flawline.runtime import large_array
from flawline.train import loop
from flawline.train.blocks.averaging import average_of_share
from flawline.train.blocks.feature_vectors import mean_deviation
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit
from flawline.train.methods.simplenet import SimpleNet

pytestmark = pytest.mark.torch
SEED = 3


def training_images() -> list[Any]:
    return list(random_images(count=12).numpy())


def fit(model: SimpleNet, steps: int) -> None:
    fit_method(model, training_images(), steps, SEED)


# ---------------------------------------------------------------- the literal pipeline


def patches_by_loops(level: Any) -> Any:
    """3x3 patches of [C, h, w] as [9 C, h, w], index 9c + 3ky + kx."""
    padded = F.pad(level, (1, 1, 1, 1))
    height, width = level.shape[1:]
    shifted = []
    for ky in range(3):
        for kx in range(3):
            shifted.append(padded[:, ky : ky + height, kx : kx + width])
    return torch.stack(shifted, 1).flatten(0, 1)


def pool_by_loops(values: Any, count: int) -> Any:
    """Adaptive average pooling of the first axis to `count` values."""
    n = len(values)
    pooled = []
    for i in range(count):
        pooled.append(values[i * n // count : -(-(i + 1) * n // count)].mean(0))
    return torch.stack(pooled)


def test_features_by_loops() -> None:
    """Unfold, per-plane resize and both poolings, written as loops over one image."""
    model = small_simplenet(level=40, target=36)
    image = random_images(count=1)
    with torch.inference_mode():
        level2, level3 = (level[0].double() for level in model.backbone.extract(image))
        got = model.features(image)[0].double()
    size = level2.shape[1:]
    planes3 = F.interpolate(patches_by_loops(level3)[None], size=size, mode="bilinear")[0]
    pooled2 = pool_by_loops(patches_by_loops(level2), 40)
    pooled3 = pool_by_loops(planes3, 40)
    expected = pool_by_loops(torch.cat([pooled2, pooled3]), 36)
    torch.testing.assert_close(got.permute(2, 0, 1), expected, rtol=1e-5, atol=1e-5)


def test_the_score_is_the_maximum_before_smoothing() -> None:
    model = small_simplenet()
    with torch.inference_mode():
        score, smoothed = model(random_images())
    assert score.shape == (2,)
    assert smoothed.shape == (2, 64, 64)
    assert (smoothed.amax((1, 2)) < score).all()


# ---------------------------------------------------------------- fused equals literal


@pytest.mark.parametrize(
    ("backbone", "size", "level", "target"),
    [
        ("resnet18", 64, 384, 384),
        ("resnet18", 64, 1536, 1536),
        ("resnet18", 64, 1024, 1536),
        ("resnet18", 96, 100, 70),
        ("resnet34", 64, 384, 384),
        ("wide_resnet50_2", 64, 1536, 1536),
        ("resnet18", 72, 384, 384),
        ("resnet18", 90, 384, 384),
    ],
)
def test_fused_equals_literal(backbone: str, size: int, level: int, target: int) -> None:
    """Poolings that divide and that do not, and sizes whose grids have no integer factor."""
    model = small_simplenet(backbone, size, level, target)
    assert_fused_equals_literal(model, random_images(size))


# ---------------------------------------------------------------- training


def test_training_lowers_the_loss_and_depends_on_the_seed() -> None:
    trained = small_simplenet()
    vectors = trained.features(random_images(count=12)).flatten(0, 2)
    untrained = small_simplenet()
    untrained.initialise(SEED)
    fit(trained, 150)
    losses = []
    for model in (untrained, trained):
        generator = torch.Generator().manual_seed(0)
        loss = model.train().loss(vectors, 0.015, generator)
        losses.append(float(loss.detach()))
    assert losses[1] < 0.9 * losses[0]
    other = small_simplenet()
    other.initialise(SEED + 1)
    assert not torch.equal(other.adapter.weight, untrained.adapter.weight)


def test_bfloat16_changes_loss_and_gradient_little(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_simplenet().train()
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(400, model.settings.target_dim, generator=generator)
    losses = []
    gradients = []
    for native in (False, True):
        monkeypatch.setattr(loop, "_multiplies_bfloat16", lambda native=native: native)
        model.zero_grad()
        loss = model.loss(vectors, 0.25, torch.Generator().manual_seed(0))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(model.adapter.weight.grad.flatten().clone())
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert float(F.cosine_similarity(gradients[0], gradients[1], 0)) > 0.98


def test_relative_noise_follows_the_scale_of_the_features() -> None:
    features = np.random.default_rng(0).normal(5, 2, (100, 30, 8)).astype(np.float32)
    assert mean_deviation(features) == pytest.approx(2, rel=0.05)
    assert mean_deviation(7 * features) == pytest.approx(7 * mean_deviation(features), rel=1e-5)


def light_simplenet(**settings: float) -> SimpleNet:
    """The small network with what the light setting changes in the training."""
    model = small_simplenet(vectors=64)
    light = {"first_rate": 4.0, "last_rate": 0.04, "averaged_share": 0.25, **settings}
    model.settings = dataclasses.replace(model.settings, **light)
    return model


def test_the_light_setting_averages_its_last_steps() -> None:
    """Over 30 steps with one learning rate, the mean lies between the last and earlier weights."""
    constant = {"first_rate": 1.0, "last_rate": 1.0}
    averaged = light_simplenet(**constant)
    fit(averaged, 30)
    last = light_simplenet(averaged_share=0.0, **constant)
    fit(last, 30)
    earlier = light_simplenet(averaged_share=0.0, **constant)
    fit(earlier, 20)
    mean = averaged.discriminator[0].weight
    distance = (mean - last.discriminator[0].weight).norm()
    spread = (earlier.discriminator[0].weight - last.discriminator[0].weight).norm()
    assert 0 < distance < spread


@pytest.mark.parametrize("steps", [12, 40, 200])
def test_the_average_forgets_the_first_weights(steps: int) -> None:
    """A decay fixed from the first step on keeps a part of them, and of their BatchNorm."""
    update = average_of_share(0.1)
    mean = [torch.tensor([1e6]), torch.tensor([0])]
    for count in range(1, steps):
        update(mean, [torch.tensor([float(count)]), torch.tensor([count])], torch.tensor(count))
    newest = steps - 1
    assert 0.8 * newest <= float(mean[0]) <= newest
    assert int(mean[1]) == newest


def test_the_learning_rates_decay_evenly() -> None:
    """From 4 times to 0.04 times the published rates; the second of two steps is half-way."""
    rates = []

    def record(optimiser: Any, *_: Any) -> None:
        rates.append(optimiser.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(record)
    try:
        fit(light_simplenet(), 2)
    finally:
        hook.remove()
    assert rates == pytest.approx([4e-4, 8e-4, 4e-5, 8e-5])


def test_the_published_setting_trains_as_published() -> None:
    """Constant learning rates, one noise, no average of weights."""
    settings = SimpleNet.settings_for("wide_resnet50_2")
    assert (settings.first_rate, settings.last_rate, settings.averaged_share) == (1, 1, 0)
    assert (settings.noise, settings.vectors) == (0.015, None)


def test_the_light_setting_resumes_exactly(tmp_path: Path) -> None:
    """With the vectors that a step draws, the average of weights and the learning rates."""
    steps = 30
    whole = light_simplenet()
    fit(whole, steps)
    part = light_simplenet()
    path = tmp_path / "c.pt"

    def stop(label: str, done: int, total: int) -> None:
        if label == "training" and done == 28:
            raise KeyboardInterrupt

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(path, part, {}, state)

    with pytest.raises(KeyboardInterrupt):
        part.fit(Fit(training_images(), steps, SEED, progress=stop, save=save))
    method, _, training, *_ = load_checkpoint(path)
    assert training is not None
    assert training["state"]["step"] == 28
    fit_method(method, training_images(), steps, SEED, state=training)
    assert_equal_state(method, whole)


def test_large_features_are_mapped_from_disk_and_train_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_memory = small_simplenet()
    on_disk = small_simplenet()
    fit(in_memory, 4)
    monkeypatch.setattr(large_array, "MEMORY_MAP_ABOVE", 0)
    fit(on_disk, 4)
    assert_equal_state(in_memory, on_disk)
