"""Structural similarity against its definition, window by window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks.structural_similarity import (
    C1,
    C2,
    SAMPLE,
    GaussianMean,
    dissimilarity,
    similarity,
    similarity_loss,
    uniform_mean,
)

pytestmark = pytest.mark.torch
HALF = 5


def two_images(seed: int = 0, difference: float = 0.2) -> tuple[Any, Any]:
    """Two smooth images, float64 [2, 3, 20, 24], from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    first = torch.nn.functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")
    noise = torch.randn(first.shape, generator=generator, dtype=torch.float64)
    return first, (first + difference * noise).clamp(0, 1)


def windows(x: Any, row: int, column: int) -> Any:
    """The pixels of the window around a position, [N, 3, pixels]; fewer at the border."""
    rows = slice(max(0, row - HALF), row + HALF + 1)
    columns = slice(max(0, column - HALF), column + HALF + 1)
    return x[:, :, rows, columns].flatten(2).numpy()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 23), (10, 12), (19, 5)])
def test_the_similarity_of_a_window_by_hand(row: int, column: int) -> None:
    first, second = two_images()
    got = similarity(first, second, uniform_mean)[:, :, row, column].numpy()
    x, y = windows(first, row, column), windows(second, row, column)
    mean_x, mean_y = x.mean(2), y.mean(2)
    covariance = SAMPLE * ((x - mean_x[..., None]) * (y - mean_y[..., None])).mean(2)
    variances = SAMPLE * (x.var(2) + y.var(2))
    expected = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    expected /= (mean_x**2 + mean_y**2 + C1) * (variances + C2)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_a_whole_window_has_sample_variances() -> None:
    x = windows(two_images()[0], 10, 12)
    assert x.shape[2] == 121
    np.testing.assert_allclose(SAMPLE * x.var(2), x.var(2, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_the_form_without_cancellation_is_the_same_number(centre: float) -> None:
    first, second = two_images()
    expected = 1 - similarity(first, second, uniform_mean)
    grey = torch.full((3, 1, 1), centre, dtype=torch.float64)
    got = dissimilarity(first - grey, second - first, uniform_mean, grey, SAMPLE)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_the_form_without_cancellation_keeps_small_values() -> None:
    """In float32, 1 minus a number close to 1 is a multiple of 6e-8."""
    first, second = two_images(1, difference=2e-5)
    expected = 1 - similarity(first, second, uniform_mean)
    assert 0 < float(expected.max()) < 1e-6
    grey = torch.full((3, 1, 1), 0.5)
    difference = (second - first).float()
    got = dissimilarity(first.float() - grey, difference, uniform_mean, grey, SAMPLE)
    np.testing.assert_allclose(got, expected, rtol=0.01, atol=1e-11)
    literal = 1 - similarity(first, second, uniform_mean).float()
    assert float((literal / expected.float() - 1).abs().max()) > 0.5


def test_gaussian_means_are_those_of_windows_within_the_image() -> None:
    x = two_images()[0]
    line = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - HALF) ** 2) / (2 * 1.5**2))
    kernel = torch.outer(line, line)
    kernel /= kernel.sum()
    expected = torch.nn.functional.conv2d(x.flatten(0, 1)[:, None], kernel[None, None])[:, 0]
    got = GaussianMean(20, 24)(x.float()).flatten(0, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    sparse = GaussianMean(20, 24, 3)(x.float()).flatten(0, 1)
    np.testing.assert_allclose(sparse, expected[:, ::3, ::3], rtol=1e-5)


@pytest.mark.parametrize("stride", [2, 3])
def test_windows_up_to_three_pixels_apart_weigh_all_pixels_the_same(stride: int) -> None:
    weights = GaussianMean(60, 60, stride).rows.sum(0)[HALF + 5 : -HALF - 5] * stride
    assert float((weights - 1).abs().max()) < 0.02
    apart = GaussianMean(60, 60, 5).rows.sum(0)[HALF + 5 : -HALF - 5] * 5
    assert float((apart - 1).abs().max()) > 0.1


def test_the_loss_is_the_mean_over_windows_channels_and_images() -> None:
    first, second = two_images()
    mean = GaussianMean(20, 24).double()
    loss = similarity_loss(first, second, mean)
    expected = (1 - similarity(first, second, mean)).mean()
    # The loss has mean squares in place of sample variances, which differ by 1 in 120.
    assert float(loss) == pytest.approx(float(expected), rel=0.01)
    assert float(similarity_loss(first, first, mean)) == 0
