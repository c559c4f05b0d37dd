"""Distances of unit vectors: the literal form, the exported one, and what rounding does to them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch.nn import functional as F

from flawline.train.blocks.unit_distances import UnitDistance, unit_distance

pytestmark = pytest.mark.torch


def maps(seed: int = 0, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 16, 3, 5, dtype=torch.float64, generator=generator)


def test_the_distance_is_two_minus_twice_the_cosine() -> None:
    first, second = maps(0), maps(1, 30.0)
    expected = 2 - 2 * F.cosine_similarity(first, second)
    torch.testing.assert_close(unit_distance(first, second), expected, rtol=1e-9, atol=1e-12)
    assert float(unit_distance(first, -first).max()) == pytest.approx(4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_exported_form_is_the_same(scale: float) -> None:
    first, second = maps(0), maps(1, scale)
    expected = unit_distance(first, second)[:, None]
    torch.testing.assert_close(UnitDistance()(first, second), expected, rtol=1e-9, atol=0)


def test_a_vector_of_zeros_has_the_distance_of_its_own_formula() -> None:
    first, second = maps(0), maps(1)
    first[:, :, 0] = 0
    second[:, :, :, 0] = 0
    literal = unit_distance(first, second)
    torch.testing.assert_close(UnitDistance()(first, second)[:, 0], literal, rtol=1e-9, atol=0)
    assert (literal[:, 0, 0] == 0).all()
    torch.testing.assert_close(literal[:, 0, 1:], torch.ones(2, 4, dtype=torch.float64))


def test_close_vectors_keep_their_distance_in_single_precision() -> None:
    """Where the cosine is so near 1 that the other form is rounding error."""
    first = maps(0)
    second = first + 1e-5 * maps(1)
    expected = unit_distance(first, second)
    got = UnitDistance()(first.float(), second.float())[:, 0]
    torch.testing.assert_close(got.double(), expected, rtol=0.1, atol=0)
    control = 2 - 2 * F.cosine_similarity(first.float(), second.float())
    assert float(((control.double() - expected) / expected).abs().max()) > 1
