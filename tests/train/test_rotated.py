"""Rotations of square images: by hand, exact at right angles, and the same when exported."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import cv2
from builders import random_images

from flawline.train.backbones.rotated import (
    FusedRotatedPyramid,
    RotatedPyramid,
    rotate_images,
    tilt_source,
)
from flawline.train.blocks.fused import fold_backbone

pytestmark = pytest.mark.torch
SIDE = 64


def pyramid(angles: int, scales: int = 3) -> RotatedPyramid:
    torch.manual_seed(0)
    backbone = RotatedPyramid("resnet18", 3, SIDE, scales, angles).eval()
    backbone.load("random", 1)
    return backbone


def rotations_of(backbone: RotatedPyramid, image: Any) -> Any:
    """What the network gets at the first scale, in the order of the batch."""
    seen: list[Any] = []
    handle = backbone.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone(backbone.normalise(image))
    handle.remove()
    return seen


@pytest.mark.parametrize("side", [8, 9])
def test_a_tilt_by_right_angles_is_exact(side: int) -> None:
    pixels = np.arange(side**2).reshape(side, side)
    for turns in range(-4, 5):
        source = tilt_source(side, 90 * turns)
        np.testing.assert_array_equal(source.reshape(side, side), np.rot90(pixels, turns))


@pytest.mark.parametrize("degrees", [17.0, 45.0, -130.0, 100.5])
def test_a_tilt_is_opencvs_with_black_corners(degrees: float) -> None:
    """OpenCV rounds positions to 1/32 pixel, so that a few pixels are their neighbours."""
    image = random_images(65, 1)[0].numpy() // 2 + 100
    (got,) = rotate_images([image], [degrees]).numpy()
    matrix = cv2.getRotationMatrix2D((32.0, 32.0), degrees, 1.0)
    expected = cv2.warpAffine(image, matrix, (65, 65), flags=cv2.INTER_NEAREST)
    differing = (got != expected).any(2).mean()
    assert differing < 0.06
    corners = (got == 0).all(2)
    assert 0.02 < corners.mean() < 0.3
    assert ((expected == 0).all(2) != corners).mean() < 0.02
    turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((32.0, 32.0), -degrees, 1.0), (65, 65))
    assert (got != turned).any(2).mean() > 0.5


def test_every_rotation_of_an_image_is_passed_on_evenly_spaced() -> None:
    images = random_images(SIDE, 2)
    backbone = pyramid(angles=12)
    assert backbone.angles == 12
    full, half, quarter = rotations_of(backbone, images)
    assert full.shape == (24, 3, SIDE, SIDE)
    found = set()
    for index, number in itertools.product(range(2), range(12)):
        normalised = full[12 * index + number]
        for twelfth in range(12):
            rotated = rotate_images([images[index].numpy()], [30.0 * twelfth])
            if torch.equal(backbone.normalise(rotated)[0], normalised):
                found.add((index, twelfth))
    assert found == set(itertools.product(range(2), range(12)))
    # Scales are those of torch's nearest resize: every second and every fourth pixel.
    assert torch.equal(half, full[:, :, ::2, ::2])
    assert torch.equal(quarter, full[:, :, ::4, ::4])


@pytest.mark.parametrize("angles", [4, 12])
def test_the_exported_form_gives_the_same_maps(angles: int) -> None:
    backbone = pyramid(angles).double()
    images = random_images(SIDE, 2)
    read, folded = fold_backbone(backbone)
    assert isinstance(folded, RotatedPyramid)
    exported = FusedRotatedPyramid(folded, black=-read.mean).double()
    with torch.inference_mode():
        expected = backbone.extract(images)
        got = exported(read(images))
    assert len(expected) == len(got) == 3
    for a, b, grid in zip(got, expected, backbone.grids(SIDE, SIDE), strict=True):
        assert b.shape == (2 * angles, 256, *grid)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.std()))


def test_facts_and_weights_are_those_of_the_network() -> None:
    backbone = pyramid(angles=4)
    assert backbone.name == "resnet18"
    assert backbone.channels == (256, 256, 256)
    assert backbone.strides == (16, 32, 64)
    assert backbone.load("texture").startswith("texture sha256:")
    assert backbone.first_convolution is backbone.network.first_convolution
    # The positions of pixels follow from the settings.
    assert not any("source" in name for name in pyramid(angles=8).state_dict())


def test_upright_images_are_not_rotated() -> None:
    backbone = pyramid(angles=4)
    images = random_images(SIDE, 2)
    with torch.inference_mode():
        upright = backbone.upright(backbone.normalise(images))
        rotated = backbone.extract(images)
    for level, levels in zip(upright, rotated, strict=True):
        torch.testing.assert_close(level, levels[::4], rtol=1e-4, atol=1e-4)
