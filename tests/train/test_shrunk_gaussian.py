"""The Gaussian of few rows: covariance of Ledoit and Wolf, and whitening."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks.shrunk_gaussian import shrunk_covariance, shrunk_gaussian

pytestmark = pytest.mark.torch


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.1, 2, d, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales + 3


@pytest.mark.parametrize(("n", "d"), [(5, 12), (40, 12), (500, 6)])
def test_the_covariance_is_that_of_scikit_learn(n: int, d: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance", reason="needs scikit-learn")
    data = rows(n, d)
    reference = covariance.LedoitWolf().fit(data.numpy())
    matrix, share = shrunk_covariance(data - data.mean(0))
    assert 0 < share < 1
    assert share == pytest.approx(reference.shrinkage_, rel=1e-9)
    torch.testing.assert_close(matrix, torch.from_numpy(reference.covariance_))


def test_the_length_of_a_whitened_offset_is_the_mahalanobis_distance() -> None:
    data = rows(60, 8)
    mean, whitening = shrunk_gaussian(data)
    covariance, _ = shrunk_covariance(data - mean)
    offsets = rows(5, 8, seed=1) - mean
    expected = torch.einsum("ni,ij,nj->n", offsets, torch.linalg.inv(covariance), offsets).sqrt()
    distance = torch.linalg.vector_norm(offsets @ whitening, dim=1)
    torch.testing.assert_close(distance, expected, rtol=1e-5, atol=0)


def test_equal_rows_give_finite_distances() -> None:
    mean, whitening = shrunk_gaussian(torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(mean, torch.ones(3, dtype=torch.float64))
    assert torch.isfinite(whitening).all()
