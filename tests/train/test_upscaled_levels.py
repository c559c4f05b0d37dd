"""Two levels on twice the first grid, averaged over 3x3: by loops, at positions, by products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from teacher_oracles import resized

from flawline.train.blocks.upscaled_levels import (
    FusedUpscaling,
    UpscaledPositions,
    upscale_levels,
    upscaling_matrix,
)

pytestmark = pytest.mark.torch
# Grids of the fine and of the coarse level: of a square image, and of one with uneven sides.
GRIDS = [((8, 8), (4, 4)), ((9, 12), (5, 6))]


def levels_of(grids: Any, channels: tuple[int, int] = (6, 10)) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    levels = []
    for count, grid in zip(channels, grids, strict=True):
        levels.append(torch.randn(2, count, *grid, dtype=torch.float64, generator=generator))
    return levels


def averaged(plane: Any) -> Any:
    """Means of [N, h, w] over 3x3 with zeros outside, divided by nine everywhere."""
    padded = np.pad(plane, ((0, 0), (1, 1), (1, 1)))
    h, w = plane.shape[1:]
    return sum(padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("grids", GRIDS)
def test_features_by_loops(grids: Any, align_corners: bool) -> None:
    size = (2 * grids[0][0], 2 * grids[0][1])
    levels = levels_of(grids)
    expected = []
    for level in levels:
        for channel in range(level.shape[1]):
            expected.append(averaged(resized(level[:, channel].numpy(), size, align_corners)))
    got = upscale_levels(levels, align_corners)
    np.testing.assert_allclose(got, np.stack(expected, 1), atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("grids", GRIDS)
def test_features_at_positions_are_those_of_the_whole_grid(grids: Any, align_corners: bool) -> None:
    levels = levels_of(grids)
    whole = upscale_levels(levels, align_corners).flatten(2).transpose(1, 2)
    positions = UpscaledPositions(grids, align_corners)
    last = whole.shape[1] - 1
    places = torch.tensor([[0, 7, 20, last], [last, 3, 3, 19]])
    got = positions([level.float() for level in levels], places)
    for image in range(2):
        torch.testing.assert_close(
            got[image].double(), whole[image, places[image]], atol=1e-6, rtol=0
        )
    assert not positions.state_dict()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("grids", GRIDS)
def test_the_fused_form_is_the_sum_of_the_levels_and_then_the_bias(
    grids: Any, align_corners: bool
) -> None:
    fine, coarse = levels_of(grids, channels=(6, 6))
    bias = torch.linspace(-1, 4, 6, dtype=torch.float64)
    literal = upscale_levels([fine, coarse], align_corners)
    expected = literal[:, :6] + literal[:, 6:] + bias[:, None, None]
    got = FusedUpscaling(grids, align_corners, bias)(fine, coarse)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_a_row_has_three_values_at_most_and_the_outer_ones_sum_to_two_thirds() -> None:
    """With corners of grids on each other, the first rows are (7, 1) / 12 and (8, 4) / 12."""
    for align_corners in (False, True):
        matrix = upscaling_matrix(32, 64, align_corners)
        assert int((matrix.abs() > 1e-12).sum(1).max()) == 3
        sums = matrix.sum(1)
        np.testing.assert_allclose(sums[[0, -1]], 2 / 3)
        np.testing.assert_allclose(sums[1:-1], 1)
    rows = 12 * upscaling_matrix(4, 8, align_corners=False)
    np.testing.assert_allclose(rows[0], [7, 1, 0, 0])
    np.testing.assert_allclose(rows[1], [8, 4, 0, 0])
    np.testing.assert_allclose(rows[2], [4, 7, 1, 0])
    np.testing.assert_allclose(rows[3], [1, 7, 4, 0])
