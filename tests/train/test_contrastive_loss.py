"""How SSNF trains: which images, the loss against synthetic anomalies, the learning rate."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import random_images

from flawline.train.blocks.contrastive_loss import (
    CAP,
    KEPT_SHARE,
    LAST_RATE,
    MARGIN,
    PUSH,
    Contrast,
    contrast,
    cosine_rate,
    draw_images,
    half_period,
    note_kept_share,
    relative_contrast,
)
from flawline.train.method import Fit

pytestmark = pytest.mark.torch


def nats(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_only_likely_and_near_anomalies_count() -> None:
    """With a shape whose cap lies at 50 nats."""
    shape = (1, 1, round(50 / CAP))
    cap = CAP * shape[2]
    good, synthetic = nats(10, 60, 20), nats(5, 59, 61, cap - 1)
    loss, kept = contrast(good, synthetic, shape)
    assert kept == 2
    assert float(loss.detach()) == pytest.approx(0.5 * 30 - 0.5 * (5 + cap - 1) / 2)
    loss.backward()
    # The least likely good image is a limit, and a limit has no gradient.
    assert good.grad.tolist() == pytest.approx([1 / 6] * 3)
    assert synthetic.grad.tolist() == pytest.approx([-0.25, 0, 0, -0.25])


def test_the_least_likely_good_image_is_the_limit() -> None:
    good, synthetic = nats(1, 3), nats(2, 3, 4, 2.5)
    loss, kept = contrast(good, synthetic, (100, 10, 10))
    assert kept == 2
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
    loss, kept = contrast(likely, unlikely, shape)
    assert kept == 0
    assert float(loss.detach()) == float(likely.detach().mean())
    loss.backward()
    assert likely.grad.tolist() == [0.5, 0.5]
    assert unlikely.grad is None


def gain(behind: float, margin: float) -> float:
    """How much a synthetic anomaly lowers the loss that is so many nats behind the good ones."""
    return behind if behind < 0 else margin * math.log(1 + behind / margin)


def test_the_relative_limit_follows_the_good_images() -> None:
    """It keeps the same anomalies however likely the good images are."""
    shape = (2, 5, 10)
    margin = MARGIN * 100
    for level in (1e5, 0.0, -1e5):
        good = nats(level + 10, level + 60)
        synthetic = nats(level + 5, level + 60 + margin / 2, level + 60 + 2 * margin, level + 1e6)
        loss, kept = relative_contrast(good, synthetic, shape)
        assert kept == 2
        gains = gain(-55, margin) + gain(margin / 2, margin)
        expected = (1 - PUSH) * (level + 35) - PUSH * gains / 4
        assert float(loss.detach()) == pytest.approx(expected)
        loss.backward()
        # A limit has no gradient, and the weight of an anomaly does not depend on the others.
        assert good.grad.tolist() == pytest.approx([(1 - PUSH) / 2] * 2)
        assert synthetic.grad.tolist() == pytest.approx([-PUSH / 4, -PUSH / 6, 0, 0])


def test_the_likelier_half_counts_however_far_it_is() -> None:
    """Its gradient falls with the distance."""
    margin = MARGIN * 100
    far = nats(1 + 9 * margin, 1 + 19 * margin, 1e8, 1e9)
    loss, kept = relative_contrast(nats(1), far, (2, 5, 10))
    loss.backward()
    assert kept == 2
    assert far.grad.tolist() == pytest.approx([-PUSH / 40, -PUSH / 80, 0, 0])
    assert float(loss.detach()) == pytest.approx(
        (1 - PUSH) - PUSH * (gain(9 * margin, margin) + gain(19 * margin, margin)) / 4
    )


def test_the_relative_limit_without_an_anomaly() -> None:
    loss, kept = relative_contrast(nats(1, 2), nats(), (2, 5, 10))
    assert (float(loss.detach()), kept) == (1.5, 0)


def test_the_share_of_the_anomalies_that_count_is_that_of_the_last_half() -> None:
    remarks: list[str] = []
    fit = Fit([], 6, remark=remarks.append)
    loss = Contrast("near", (2, 5, 10), fit)
    far, mixed = nats(1e9, 2e9, 3e9, 4e9), nats(1, 1, 1, 1e9)
    for step, synthetic in enumerate((far, far, far, mixed, far, mixed)):
        loss.loss(step, nats(1, 2), synthetic)
        assert (KEPT_SHARE in fit.facts) == (step >= 3)
    assert fit.facts[KEPT_SHARE] == "0.667"
    assert remarks[2:4] == ["blended images that count: 50%", "blended images that count: 56%"]
    note_kept_share(fit)
    assert fit.notes == ["67% of the blended images counted in the last half of training"]


def test_the_share_continues_from_a_snapshot() -> None:
    whole, near, far = Fit([], 4), nats(1), nats(1e9, 2e9)
    first = Contrast("near", (2, 5, 10), whole)
    first.loss(2, nats(1, 2), far)
    resumed = Fit([], 4)
    second = Contrast("near", (2, 5, 10), resumed)
    second.load_state_dict(first.state_dict())
    second.loss(3, nats(1, 2), near)
    assert resumed.facts == {KEPT_SHARE: "0.667"}


def test_without_blended_images_nothing_is_counted() -> None:
    fit = Fit([], 2)
    loss = Contrast("none", (2, 5, 10), fit).loss(1, nats(1, 2), nats())
    assert float(loss.detach()) == 1.5
    note_kept_share(fit)
    assert not fit.facts
    assert not fit.notes


@pytest.mark.parametrize("negatives", ["limited", "near"])
def test_the_negatives_choose_the_limit(negatives: str) -> None:
    """Early in a training, good images are unlikely: the published limit counts nothing then."""
    fit = Fit([], 1)
    Contrast(negatives, (1, 10, 10), fit).loss(0, nats(100, 120), nats(90, 110))
    assert fit.facts[KEPT_SHARE] == {"limited": "0.000", "near": "1.000"}[negatives]


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
