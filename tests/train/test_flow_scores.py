"""Energy and density of a latent by numpy, and the choice between them on synthetic anomalies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import close, random_images

from flawline.train.blocks.flow_scores import (
    choose_score,
    fused_score,
    literal_score,
    log_energy,
)
from flawline.train.method import Fit

pytestmark = pytest.mark.torch


def latent() -> Any:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(3, 24, 4, 5, dtype=torch.float64, generator=generator)


def test_the_same_share_of_an_energy_is_the_same_difference_of_its_logarithm() -> None:
    energies = torch.tensor([0.0, 0.1, 1.0, 1e8], dtype=torch.float64)
    scores = log_energy(energies)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores.sort().values, scores)
    differences = log_energy(1.01 * energies) - scores
    np.testing.assert_allclose(differences[1:], math.log(1.01), rtol=1e-3)


def test_the_energy_by_numpy() -> None:
    z = latent()
    expected = 0.5 * np.mean(z.numpy() ** 2, 1)
    np.testing.assert_allclose(literal_score(z, by_energy=True), expected, rtol=1e-12)


def test_the_density_by_numpy() -> None:
    z = latent()
    expected = -np.mean(np.exp(-(z.numpy() ** 2) / 2) / math.sqrt(2 * math.pi), 1)
    np.testing.assert_allclose(literal_score(z, by_energy=False), expected, rtol=1e-12)


@pytest.mark.parametrize("by_energy", [True, False])
def test_the_exported_scores_allow_for_the_missing_scale(by_energy: bool) -> None:
    z = latent()
    scale = torch.linspace(0.2, 2.5, 24, dtype=torch.float64)
    score = fused_score(scale, by_energy)(z / scale[:, None, None])
    close(score[:, 0], literal_score(z, by_energy))


class Pairs:
    """Synthetic anomalies that are other images, the last of them without a patch."""

    description = "pairs"

    def __init__(self, images: Any) -> None:
        self.images = images

    def sources(self, draw: int) -> list[int]:
        return [draw]

    def sample(self, draw: int) -> Any:
        mask = np.ones((8, 8), bool)
        if draw == 3:
            mask[:] = False
        return self.images[draw], 255 - self.images[draw], mask


@pytest.mark.parametrize("by_energy", [True, False])
def test_the_score_that_separates_better_is_chosen(by_energy: bool) -> None:
    images = random_images(4, size=8)
    good = {image.tobytes() for image in images}
    fit = Fit(images, 1)

    def both_scores(image: Any) -> tuple[float, float]:
        separating = float(image.tobytes() not in good)
        useless = float(image[0, 0, 0])
        return (separating, useless) if by_energy else (useless, separating)

    assert choose_score(both_scores, Pairs(images), 4, fit) == by_energy
    assert ("mean energy" if by_energy else "mean density") in fit.notes[0]
    assert "1.000" in fit.notes[0]
    assert "pairs" in fit.notes[0]
    assert "1 of 4 synthetic anomalies are empty" in fit.notes[1]
