"""Two levels as one feature map, by loops, and the exported form of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import close, upsampled

from flawline.train.blocks.averaged_levels import (
    FusedLevels,
    average_levels,
    channel_statistics,
    random_rotation,
)
from flawline.train.blocks.fused import resize_matrix

pytestmark = pytest.mark.torch
NO_ROTATION = torch.zeros(0)
# Grids of the fine and of the coarse level: of a square image, and of one with uneven sides.
GRIDS = [((8, 8), (4, 4)), ((9, 12), (5, 6))]


def levels_of(grids: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(2, 6, *grids[0], dtype=torch.float64, generator=generator)
    coarse = torch.randn(2, 10, *grids[1], dtype=torch.float64, generator=generator)
    return [fine, coarse]


def averaged(level: Any) -> Any:
    """Means over 3x3 with zeros outside, divided by nine everywhere: [C, h, w]."""
    padded = np.pad(level, ((0, 0), (1, 1), (1, 1)))
    h, w = level.shape[1:]
    return sum(padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grids", GRIDS)
def test_the_levels_by_loops(grids: Any, stride: int, rotated: bool) -> None:
    """The coarse level is resized to the grid of the fine one, or the fine one is thinned out."""
    levels = levels_of(grids)
    rotation = NO_ROTATION
    if rotated:
        rotation = random_rotation(5, 16, torch.Generator().manual_seed(1)).double()
    got = average_levels(levels, stride, rotation)
    for number, result in enumerate(got):
        fine = averaged(levels[0][number].numpy())
        coarse = averaged(levels[1][number].numpy())
        if stride == 1:
            rows = resize_matrix(grids[1][0], grids[0][0]).numpy()
            columns = resize_matrix(grids[1][1], grids[0][1]).numpy()
            resized = rows @ coarse @ columns.T
            np.testing.assert_allclose(resized, upsampled(coarse, grids[0]), atol=1e-12)
            coarse = resized
        else:
            fine = fine[:, ::2, ::2]
        expected = np.concatenate([fine, coarse])
        if rotated:
            expected = np.einsum("rc,chw->rhw", rotation.numpy(), expected)
        np.testing.assert_allclose(result, expected, atol=1e-12)


def test_a_single_level_stays_as_it_is() -> None:
    (level, _) = levels_of(GRIDS[0])
    assert average_levels([level], 1, NO_ROTATION) is level


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grids", GRIDS)
def test_the_exported_form_is_the_same_function(grids: Any, stride: int, rotated: bool) -> None:
    levels = levels_of(grids)
    rotation = NO_ROTATION
    if rotated:
        rotation = random_rotation(5, 16, torch.Generator().manual_seed(1)).double()
    literal = average_levels(levels, stride, rotation)
    channels = literal.shape[1]
    mean = torch.linspace(-1, 1, channels, dtype=torch.float64)
    std = torch.linspace(0.5, 2, channels, dtype=torch.float64)
    fused = FusedLevels((6, 10), grids, stride, mean, std, rotation).double()
    with torch.inference_mode():
        close(fused(*levels), (literal - mean[:, None, None]) / std[:, None, None])


def test_the_rotation_is_orthonormal_and_a_function_of_the_seed() -> None:
    first, again, other = (
        random_rotation(24, 384, torch.Generator().manual_seed(seed)).double() for seed in (0, 0, 1)
    )
    assert first.shape == (24, 384)
    close(first @ first.T, torch.eye(24, dtype=torch.float64), 1e-5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_statistics_are_those_of_all_positions() -> None:
    features = np.random.default_rng(0).normal(3000, 1, (6, 24, 4, 4)).astype(np.float32)
    features *= np.linspace(0.5, 2, 24, dtype=np.float32)[:, None, None]
    features[:, 7] = 5  # constant on good images
    mean, std = channel_statistics(features)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean((0, 2, 3)), rtol=1e-6)
    varying = np.arange(24) != 7
    np.testing.assert_allclose(std.numpy()[varying], exact.std((0, 2, 3))[varying], rtol=1e-4)
    assert float(std[7]) > 0.01 * float(std.mean())
