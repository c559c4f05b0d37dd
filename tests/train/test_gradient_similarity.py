"""Multi-scale gradient similarity against numpy, its loss and its residual for export."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from teacher_oracles import resized

from flawline.train.blocks.gradient_similarity import (
    GradientResidual,
    dissimilarity,
    gradient_loss,
    gradient_magnitude,
    similarity_map,
)

pytestmark = pytest.mark.torch


def planes(seed: int, shape: tuple[int, ...] = (2, 3, 32, 48)) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def magnitude_by_hand(plane: Any) -> Any:
    """Prewitt gradients of numpy [H, W], which is 0 beyond its border."""
    padded = np.pad(plane, 1)
    columns = padded[:-2] + padded[1:-1] + padded[2:]
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    across = (columns[:, :-2] - columns[:, 2:]) / 3
    down = (rows[:-2] - rows[2:]) / 3
    return np.sqrt(across**2 + down**2)


def halved(plane: Any) -> Any:
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def similarity_by_hand(first: Any, second: Any, scales: int) -> Any:
    """MSGMS of numpy [H, W] by its formula."""
    size = first.shape
    total = 0.0
    for _ in range(scales):
        a = magnitude_by_hand(first)
        b = magnitude_by_hand(second)
        similarity = (2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026)
        total = total + resized(similarity[None], size, align_corners=False)[0]
        first = halved(first)
        second = halved(second)
    return total / scales


def test_the_map_by_hand() -> None:
    first = planes(0)
    second = (first + 0.2 * planes(1)).clamp(-1, 1)
    got = similarity_map(first, second, 3)
    for n in range(2):
        for channel in range(3):
            expected = similarity_by_hand(first[n, channel].numpy(), second[n, channel].numpy(), 3)
            np.testing.assert_allclose(got[n, channel], expected, atol=1e-8)


def test_the_form_without_cancellation_is_the_same_function() -> None:
    a = gradient_magnitude(planes(0))
    b = gradient_magnitude(planes(1))
    literal = 1 - (2 * a * b + 0.0026) / (a * a + b * b + 0.0026)
    torch.testing.assert_close(dissimilarity(a, b), literal, rtol=0, atol=1e-14)


def test_the_loss_is_the_mean_of_the_map() -> None:
    first = planes(0)
    second = planes(1)
    expected = 1 - similarity_map(first, second, 4).mean()
    torch.testing.assert_close(gradient_loss(first, second, 4), expected, rtol=1e-12, atol=0)


def test_the_derivative_of_the_loss_is_finite_on_flat_images() -> None:
    flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
    gradient_loss(flat, torch.full_like(flat, 0.5), 2).backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("size", [(32, 48), (64, 16)])
def test_the_residual_is_the_filtered_mean_over_reconstructions_and_channels(
    size: tuple[int, int],
) -> None:
    image = planes(0, (2, 1, 3, *size))
    reconstructions = planes(1, (2, 4, 3, *size))
    filters = (planes(2, (size[0], size[0])), planes(3, (size[1], size[1])))
    residual = GradientResidual(size, 3, 4, filters).double()
    total = 0.0
    for k in range(4):
        total = total + (1 - similarity_map(image[:, 0], reconstructions[:, k], 3)).mean(1)
    expected = filters[0] @ (total / 4) @ filters[1].T
    got = residual(image, reconstructions)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
