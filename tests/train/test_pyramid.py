"""A backbone at several scales of an image."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from torch.nn import functional as F

from flawline.train.backbones import create_backbone
from flawline.train.backbones.memory import FeatureMemory
from flawline.train.backbones.pyramid import ImagePyramid

pytestmark = pytest.mark.torch
STEPS = (1, 2, 4)


def pyramid(levels: tuple[int, ...] = (3,)) -> ImagePyramid:
    backbone = ImagePyramid("resnet18", levels, STEPS).eval()
    assert backbone.load("random", 1) == "random, seed 1"
    return backbone


def test_scales_are_those_of_the_nearest_resize() -> None:
    backbone = pyramid((2, 3))
    single = create_backbone("resnet18", (2, 3)).eval()
    single.load("random", 1)
    images = random_images(128, 2)
    with torch.inference_mode():
        got = backbone.extract(images)
        expected = []
        for step in STEPS:
            x = single.normalise(images)
            expected += single(F.interpolate(x, size=(128 // step, 128 // step)))
    assert len(got) == len(expected) == 6
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert backbone.channels == (128, 256) * 3
    assert backbone.strides == (8, 16, 16, 32, 32, 64)
    assert backbone.grids(128, 128) == tuple(tuple(level.shape[2:]) for level in got)
    assert backbone.name == "resnet18"


def test_the_maps_of_an_image_are_computed_once_with_a_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = pyramid()
    backbone.memory = FeatureMemory()
    images = random_images(64, 1)
    with torch.inference_mode():
        first = backbone.extract(images)
        monkeypatch.setattr(backbone.network, "forward", None)
        again = backbone.extract(images)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


def test_statistics_of_random_weights_are_those_of_all_scales() -> None:
    backbone = pyramid()
    backbone.estimate_batchnorm(list(random_images(64, 4).numpy()))
    assert not backbone.training
    with torch.inference_mode():
        for level in backbone.extract(random_images(64, 2, seed=5)):
            assert 0.05 < float(level.std()) < 5
