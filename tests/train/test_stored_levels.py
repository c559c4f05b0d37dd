"""Rotated images, and the levels of the good images of a training."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images

from flawline.train.backbones.base import Backbone
from flawline.train.backbones.resnet import ResNet
from flawline.train.blocks.stored_levels import RotatedLevels, rotate, stored_levels
from flawline.train.method import Fit

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")


def test_a_rotation_keeps_the_centre_and_makes_the_corners_black() -> None:
    image = random_images(9, 1)[0].numpy() | 1  # no value is 0
    np.testing.assert_array_equal(rotate(image, 0), image)
    np.testing.assert_array_equal(rotate(image, 90), np.rot90(image))
    tilted = rotate(image, 30)
    np.testing.assert_array_equal(tilted[4, 4], image[4, 4])
    for corner in (tilted[0, 0], tilted[0, -1], tilted[-1, 0], tilted[-1, -1]):
        assert not corner.any()
    assert set(tilted.ravel()) <= {0, *image.ravel()}  # nothing is interpolated


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    backbone = ResNet("resnet18", (2, 3)).eval()
    backbone.load("random", 1)
    return backbone


def training(seed: int = 3) -> Fit:
    return Fit(list(random_images(64, 3).numpy()), 1, seed)


def test_stored_levels_are_those_of_the_backbone(backbone: Backbone) -> None:
    fit = training()
    with torch.inference_mode():
        expected = backbone.extract(torch.from_numpy(np.stack(fit.images)))
    with stored_levels(backbone, fit, CPU) as levels:
        assert len(levels) == 3
        for chosen in (np.array([0, 2]), np.array([1])):
            for results in (levels.of(chosen), levels.of_pass(5, chosen)):
                for got, level in zip(results, expected, strict=True):
                    torch.testing.assert_close(got, level[chosen], rtol=1e-4, atol=1e-4)
        for got, level in zip(levels.of_all(), expected, strict=True):
            torch.testing.assert_close(got, level, rtol=1e-4, atol=1e-4)


def test_rotated_levels_follow_seed_pass_and_image(backbone: Backbone) -> None:
    chosen = np.array([0, 2])
    levels = RotatedLevels(backbone, training(), CPU, 5.0)
    first = levels.of_pass(0, chosen)[0]
    assert torch.equal(levels.of_pass(0, chosen)[0], first)
    torch.testing.assert_close(levels.of_pass(0, chosen[1:])[0], first[1:], rtol=1e-4, atol=1e-4)
    other_seed = RotatedLevels(backbone, training(seed=4), CPU, 5.0)
    for other in (levels.of_pass(1, chosen)[0], other_seed.of_pass(0, chosen)[0]):
        assert not torch.allclose(other, first)
    upright = levels.of(chosen)[0]
    with stored_levels(backbone, training(), CPU) as stored:
        torch.testing.assert_close(upright, stored.of(chosen)[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(upright, first)
