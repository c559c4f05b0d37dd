"""How SSNF trains: which images, the loss against synthetic anomalies, the learning rate."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import random_images

from flawline.train.blocks.contrastive_loss import (
    CAP,
    LAST_RATE,
    contrast,
    cosine_rate,
    draw_images,
    half_period,
)

pytestmark = pytest.mark.torch


def nats(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_only_likely_and_near_anomalies_count() -> None:
    """With a shape whose cap lies at 50 nats."""
    shape = (1, 1, round(50 / CAP))
    cap = CAP * shape[2]
    good, synthetic = nats(10, 60, 20), nats(5, 59, 61, cap - 1)
    loss = contrast(good, synthetic, shape)
    assert float(loss.detach()) == pytest.approx(0.5 * 30 - 0.5 * (5 + cap - 1) / 2)
    loss.backward()
    # The least likely good image is a limit, and a limit has no gradient.
    assert good.grad.tolist() == pytest.approx([1 / 6] * 3)
    assert synthetic.grad.tolist() == pytest.approx([-0.25, 0, 0, -0.25])


def test_the_least_likely_good_image_is_the_limit() -> None:
    good, synthetic = nats(1, 3), nats(2, 3, 4, 2.5)
    loss = contrast(good, synthetic, (100, 10, 10))
    assert float(loss.detach()) == pytest.approx(0.5 * 2 - 0.5 * 2.25)


@pytest.mark.parametrize(
    ("good", "synthetic", "shape"),
    [
        ((1, 3), (3, 9), (100, 10, 10)),  # all less likely than the worst good image
        ((1e6, 3e6), (2e6, 2.5e6), (10, 10, 10)),  # all beyond the cap, as early in training
    ],
)
def test_without_a_counting_anomaly_the_loss_is_the_mean_of_the_good(
    good: Any, synthetic: Any, shape: Any
) -> None:
    likely, unlikely = nats(*good), nats(*synthetic)
    loss = contrast(likely, unlikely, shape)
    assert float(loss.detach()) == float(likely.detach().mean())
    loss.backward()
    assert likely.grad.tolist() == [0.5, 0.5]
    assert unlikely.grad is None


@pytest.mark.parametrize("steps", [1, 7, 300, 5000])
def test_the_learning_rate_ends_at_its_lowest(steps: int) -> None:
    half = half_period(steps, batch=8, images=100)
    assert cosine_rate(1e-3, 0) == pytest.approx(1e-3)
    assert cosine_rate(1e-3, steps / half) == pytest.approx(LAST_RATE)
    assert cosine_rate(1e-3, 0.5) == pytest.approx((1e-3 + LAST_RATE) / 2)
    if steps == 5000:  # 100 epochs take 1250 steps; of four halves, the odd number is three or five
        assert steps / half in (3, 5)


@pytest.mark.parametrize(
    ("count", "used", "held_out"), [(None, 18, 2), (10, 10, 0), (3, 3, 0), (50, 18, 2)]
)
def test_training_and_validation_images(count: int | None, used: int, held_out: int) -> None:
    """The score is chosen on other images than those of the training, if there are enough."""
    images = list(random_images(20, size=8))
    training, validation = draw_images(images, count, 0)
    trained = {image.tobytes() for image in training}
    chosen = {image.tobytes() for image in validation}
    assert len(training) == len(trained) == used
    assert trained | chosen <= {image.tobytes() for image in images}
    if held_out:
        assert len(validation) == held_out
        assert not trained & chosen
    else:
        assert chosen == trained


def test_no_more_images_choose_the_score_than_needed() -> None:
    images = list(random_images(400, size=4))
    training, validation = draw_images(images, None, 0)
    assert (len(training), len(validation)) == (368, 32)


def test_images_are_drawn_by_the_seed() -> None:
    images = list(random_images(20, size=8))
    first, again, other = (
        [image.tobytes() for image in draw_images(images, 3, seed)[0]] for seed in (0, 0, 1)
    )
    assert first == again
    assert set(first) != set(other)
