"""The regions that get noise, and the loss of the map that must show them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks.noisy_regions import draw_regions, segmentation_loss

pytestmark = pytest.mark.torch


def test_half_of_the_regions_are_empty_and_others_cover_a_part() -> None:
    rng = np.random.default_rng(0)
    shares = draw_regions(400, (64, 48), 0.2, rng).mean((1, 2))
    empty = float((shares == 0).mean())
    assert 0.45 < empty < 0.6
    assert 0.1 < shares[shares > 0].mean() < 0.5
    assert shares.max() < 1
    assert draw_regions(400, (64, 48), 0.6, rng).mean() < 0.5 * shares.mean()


def test_a_region_is_contiguous_and_follows_the_seed() -> None:
    """Neighbours agree more often than independent positions, which do so in p^2 + (1 - p)^2."""
    excess = []
    for region in draw_regions(200, (64, 64), 0.2, np.random.default_rng(1)):
        share = region.mean()
        if share > 0:
            agree = (region[1:] == region[:-1]).mean()
            excess.append(agree - share**2 - (1 - share) ** 2)
    assert np.mean(excess) > 0.2
    first = [draw_regions(6, (8, 8), 0.2, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(first[0], first[1])


def test_the_loss_by_hand() -> None:
    logits = np.array([-2.0, -0.3, 0.1, 0.4, 0.9])
    anomalous = np.array([False, False, True, False, True])
    p = 1 / (1 + np.exp(-logits))
    truncated = np.mean([0, 0.2, 0.9]) + np.mean([0.4, 0])
    right = np.where(anomalous, p, 1 - p)
    focal = np.mean((1 - right) ** 4 * -np.log(right))
    got = segmentation_loss(torch.from_numpy(logits), torch.from_numpy(anomalous))
    assert float(got) == pytest.approx(truncated + focal, rel=1e-6)


@pytest.mark.parametrize("anomalous", [False, True])
def test_a_batch_of_one_kind_has_a_finite_loss_and_gradient(anomalous: bool) -> None:
    logits = torch.tensor([-300.0, 0.0, 300.0], requires_grad=True)
    loss = segmentation_loss(logits, torch.full((3,), anomalous))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    # The limit on the wrong side of the margin is linear, so that the loss is not saturated.
    assert float(loss.detach()) > 100
