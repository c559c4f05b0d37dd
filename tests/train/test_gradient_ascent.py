"""Gradient ascent on feature vectors, its limits, and the loss that uses them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import nn
from torch.nn import functional as F

from flawline.train.blocks import gradient_ascent
from flawline.train.blocks.discriminator import build_discriminator, initialise_head
from flawline.train.blocks.gradient_ascent import (
    Ascent,
    AscentLoss,
    Good,
    ascend,
    hardest_focal_loss,
    kept_statistics,
    limit_length,
    within,
)
from flawline.train.blocks.local_anomalies import (
    LocalAnomalies,
    LocalVectors,
    anomalous_patches,
)

pytestmark = pytest.mark.torch
DIM = 6


def drawn(count: int, seed: int, scale: float = 1.0) -> Any:
    return scale * torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def small_head() -> tuple[nn.Linear, nn.Sequential]:
    adapter = nn.Linear(DIM, DIM)
    discriminator = build_discriminator(DIM, 12)
    initialise_head(adapter, discriminator, 0)
    return adapter, discriminator.train()


# ---------------------------------------------------------------- limits


def test_lengths_are_limited_and_directions_kept() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.9, 1.2]])
    limited = limit_length(vectors, 1.0, 2.0)
    torch.testing.assert_close(
        limited, torch.tensor([[1.2, 1.6], [0.6, 0.8], [0.9, 1.2]]), rtol=1e-6, atol=0
    )
    assert torch.isfinite(limit_length(torch.zeros(1, 2), 1.0, 2.0)).all()


def test_within_limits_the_distance_from_a_centre() -> None:
    centres = drawn(40, 1)
    moved = within(centres, 0.5, 1.0)(centres + drawn(40, 2, 0.4))
    distance = (moved - centres).norm(dim=1)
    assert float(distance.min()) > 0.5 - 1e-5
    assert float(distance.max()) < 1.0 + 1e-5


# ---------------------------------------------------------------- the ascent


def ascend_by_hand(discriminator: Any, normal: Any, anomalous: Any, steps: int, limit: Any) -> Any:
    """The authors' loop, with a sigmoid whose 1 is anomalous, and their numbers of steps."""
    for step in range(steps):
        anomalous = anomalous.detach().requires_grad_()
        both = torch.cat([normal.detach(), anomalous])
        probability = torch.sigmoid(-discriminator(both))[len(normal) :]
        loss = F.binary_cross_entropy(probability, torch.ones_like(probability))
        gradient = torch.autograd.grad(loss, anomalous)[0]
        direction = gradient / (gradient.norm(dim=1, keepdim=True) + 1e-10)
        anomalous = anomalous.detach() + 0.01 * direction
        if (step + 1) % 5 == 0:
            anomalous = limit(anomalous)
    return anomalous


def test_the_ascent_is_that_of_the_authors() -> None:
    _, discriminator = small_head()
    normal = drawn(30, 1)
    start = normal + drawn(30, 2, 0.3)
    limit = within(normal, 0.5, 1.0)
    moved = ascend(
        lambda both: discriminator(both)[:, 0], normal, start, Ascent(20, 0.01, 5), limit
    )
    expected = ascend_by_hand(discriminator, normal, start, 20, limit)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    distance = (moved - normal).norm(dim=1)
    assert float(distance.min()) > 0.5 - 1e-5


def test_the_ascent_moves_towards_what_looks_normal() -> None:
    _, discriminator = small_head()
    normal = drawn(30, 1)
    start = normal + drawn(30, 2, 0.3)

    def logits(both: Any) -> Any:
        return discriminator(both)[:, 0]

    moved = ascend(logits, normal, start, Ascent(10, 0.02, 100), lambda vectors: vectors)
    distance = (moved - start).norm(dim=1)
    assert float(distance.max()) < 10 * 0.02 + 1e-5
    discriminator.eval()
    with torch.no_grad():
        assert float((logits(moved) - logits(start)).mean()) > 0


def test_without_steps_nothing_moves() -> None:
    start = drawn(5, 2)
    assert ascend(None, start, start, Ascent(0, 0.1, 5), None) is start


def test_statistics_are_kept_within_the_block_only() -> None:
    _, discriminator = small_head()
    norm = discriminator[1]
    with kept_statistics(discriminator):
        discriminator(drawn(20, 1))
        assert torch.equal(norm.running_mean, torch.zeros(12))
    assert norm.momentum == 0.1
    discriminator(drawn(20, 1))
    assert not torch.equal(norm.running_mean, torch.zeros(12))


# ---------------------------------------------------------------- the loss


def test_the_focal_loss_is_that_of_the_hardest_half() -> None:
    logits = torch.tensor([4.0, -2.0, 0.5, -0.1, 3.0, 1.0])
    anomalous = torch.tensor([False, False, True, True, True, False])
    per_vector = []
    errors = []
    for logit, bad in zip(logits.tolist(), anomalous.tolist(), strict=True):
        probability = 1 / (1 + math.exp(logit))  # of an anomaly
        truth = probability if bad else 1 - probability
        per_vector.append(-((1 - truth) ** 2) * math.log(truth))
        errors.append((probability - bad) ** 2)
    limit = float(np.median(errors))
    kept = [loss for loss, error in zip(per_vector, errors, strict=True) if error >= limit]
    loss = hardest_focal_loss(logits, anomalous, 0.5, 2.0)
    assert float(loss) == pytest.approx(np.mean(kept), rel=1e-5)


def vectors_of_a_step(noise: float = 0.3) -> tuple[Good, LocalVectors, Any]:
    good = Good(drawn(40, 1), torch.arange(40) % 8, drawn(40, 2, noise))
    local = LocalVectors(drawn(24, 3), torch.arange(24) % 8, torch.arange(24) % 3 == 0)
    return good, local, drawn(8, 4, 0.2)


@pytest.mark.parametrize("hypersphere", [False, True])
def test_the_loss_by_the_authors_steps(hypersphere: bool) -> None:
    adapter, discriminator = small_head()
    good, local, mean = vectors_of_a_step()
    loss = AscentLoss(adapter, discriminator, 0, True)(good, local, mean if hypersphere else None)
    loss.backward()

    other_adapter, other = small_head()
    clean = other_adapter(good.features)
    spoiled = other_adapter(local.features)
    if hypersphere:
        with torch.no_grad():
            centre = other_adapter(mean[local.positions])
            at_good = (clean - other_adapter(mean[good.positions])).norm(dim=1)
            at_local = (spoiled - centre).norm(dim=1)[~local.anomalous]
            radius = float(torch.quantile(torch.cat([at_good, at_local]), 0.75))
        offset = spoiled - centre
        length = offset.norm(dim=1, keepdim=True)
        pushed = centre + offset * length.clamp(2 * radius, 4 * radius) / (length + 1e-10)
        spoiled = torch.where(local.anomalous[:, None], pushed, spoiled)
    scores = torch.sigmoid(-other(torch.cat([clean, clean + good.noise])))
    truth = torch.cat([torch.zeros(40, 1), torch.ones(40, 1)])
    expected = F.binary_cross_entropy(scores[:40], truth[:40])
    expected = expected + F.binary_cross_entropy(scores[40:], truth[40:])
    expected = expected + hardest_focal_loss(other(spoiled)[:, 0], local.anomalous, 0.5, 2.0)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)  # may be in bfloat16
    torch.testing.assert_close(adapter.weight.grad, other_adapter.weight.grad, rtol=0.1, atol=0.02)


def test_the_published_distances_are_those_of_the_published_noise() -> None:
    """0.5, 1 and 0.001 with noise of 0.015 in 1536 dimensions; others in proportion."""
    length = 0.015 * math.sqrt(1536)
    assert gradient_ascent.NEAREST * length == pytest.approx(0.5)
    assert gradient_ascent.ASCENT * length == pytest.approx(0.001)


@pytest.mark.parametrize("hypersphere", [False, True])
def test_the_ascent_leaves_the_vectors_within_the_limits(
    hypersphere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, discriminator = small_head()
    good, local, mean = vectors_of_a_step()
    seen: list[Any] = []
    forward = discriminator.forward
    monkeypatch.setattr(
        discriminator, "forward", lambda vectors: seen.append(vectors) or forward(vectors)
    )
    AscentLoss(adapter, discriminator, 5, False)(good, local, mean if hypersphere else None)
    assert [len(vectors) for vectors in seen] == [80] * 6 + [24]
    clean, moved = seen[5].detach().chunk(2)
    if hypersphere:
        centre = adapter(mean[good.positions]).detach()
        at_good = (clean - centre).norm(dim=1)
        at_local = (adapter(local.features) - adapter(mean[local.positions])).detach()
        lengths = torch.cat([at_good, at_local.norm(dim=1)[~local.anomalous]])
        low = float(torch.quantile(lengths, 0.75))
        distance = (moved - centre).norm(dim=1)
    else:
        low = gradient_ascent.NEAREST * float(good.noise.square().sum(1).mean().sqrt())
        distance = (moved - clean).norm(dim=1)
    assert float(distance.min()) >= low - 1e-4
    assert float(distance.max()) <= 2 * low + 1e-4


@pytest.mark.parametrize("hypersphere", [False, True])
def test_the_loss_separates_local_and_distant_vectors_from_good_ones(hypersphere: bool) -> None:
    adapter, discriminator = small_head()
    parameters = [*adapter.parameters(), *discriminator.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    loss_of = AscentLoss(adapter, discriminator, 5, False)
    mean = torch.zeros(8, DIM)
    shift = torch.tensor([3.0, *[0.0] * (DIM - 1)])
    for step in range(200):
        good, local, _ = vectors_of_a_step(noise=3.0)
        good = good._replace(features=drawn(40, 10 * step, 0.5), noise=drawn(40, 10 * step + 1, 2))
        inside = drawn(24, 10 * step + 2, 0.5) + shift * local.anomalous[:, None]
        loss = loss_of(good, local._replace(features=inside), mean if hypersphere else None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    discriminator.eval()
    with torch.no_grad():
        good_logits = discriminator(adapter(drawn(100, 7, 0.5)))
        for bad in (drawn(100, 8, 0.5) + shift, drawn(100, 9, 3.0)):
            bad_logits = discriminator(adapter(bad))
            assert float((good_logits > bad_logits.T).float().mean()) > 0.9


# ---------------------------------------------------------------- vectors of local anomalies


def test_a_patch_that_a_mask_touches_is_anomalous() -> None:
    mask = np.zeros((16, 24), bool)
    mask[7, 8] = True
    patches = anomalous_patches([mask, ~mask], (4, 6))
    assert patches.shape == (2, 24)
    assert patches[0].nonzero()[:, 0].tolist() == [1 * 6 + 2]
    assert patches[1].all()


class Corners:
    """Images whose upper left quarter is white and masked."""

    description = "corners"

    def sources(self, draw: int) -> list[int]:
        return [draw]

    def sample(self, draw: int) -> tuple[Any, Any, Any]:
        normal = np.full((16, 16, 3), draw, np.uint8)
        mask = np.zeros((16, 16), bool)
        mask[:8, :8] = True
        synthetic = normal.copy()
        synthetic[mask] = 255
        return normal, synthetic, mask


def mean_of_patches(images: Any) -> Any:
    """Two features of the patches of a 4 x 4 grid: their mean, and their number."""
    planes = F.avg_pool2d(images.float().permute(0, 3, 1, 2), 4).mean(1).flatten(1)
    numbers = torch.arange(16.0).expand_as(planes)
    return torch.stack([planes, numbers], 2)


@pytest.mark.parametrize("count", [None, 12, 2])
def test_vectors_have_their_position_and_label(count: int | None) -> None:
    local = LocalAnomalies(Corners(), mean_of_patches, (4, 4), 2, count, 0)
    drawn = local.of_step(3, torch.device("cpu"))
    expected = 2 * 16 if count is None else count
    assert len(drawn.features) == len(drawn.positions) == len(drawn.anomalous) == expected
    assert (drawn.features[:, 1] == drawn.positions).all()
    values = set(drawn.features[:, 0].tolist())
    assert values <= {6.0, 7.0, 255.0}  # the draws of step 3
    assert torch.equal(drawn.features[:, 0] == 255, drawn.anomalous)
    assert drawn.anomalous.any()
    if count == 12:
        assert int(drawn.anomalous.sum()) == 6
    again = LocalAnomalies(Corners(), mean_of_patches, (4, 4), 2, count, 0)
    assert torch.equal(again.of_step(3, torch.device("cpu")).positions, drawn.positions)


def test_few_normal_patches_are_made_up_for() -> None:
    local = LocalAnomalies(Corners(), mean_of_patches, (4, 4), 1, 8, 0)
    row = np.ones((1, 16), bool)
    row[0, 3] = False
    positions = local._positions(row, 0)
    assert positions.shape == (1, 8)
    assert len(set(positions[0].tolist())) == 8
    assert 3 in positions[0].tolist()
