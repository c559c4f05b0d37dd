"""The bank of patches that are exempted, and how features of one grid are taken to another."""

from __future__ import annotations

import numpy as np
import pytest

from flawline.runtime.teaching.bank_of_patches import INNER, NO_CAP, PatchBank
from flawline.runtime.teaching.resampling import cells, cells_matrix, resampled_means


@pytest.mark.parametrize(("source", "target"), [(8, 8), (4, 8), (5, 12), (16, 8), (9, 4), (1, 3)])
def test_what_is_the_same_everywhere_stays_so(source: int, target: int) -> None:
    matrix = resampled_means(source, target)
    assert matrix.shape == (target, source)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    # A line is mirrored with its samples.
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-6)


def test_neighbours_are_averaged_before_a_line_is_resized() -> None:
    line = np.array([0, 0, 6, 0, 0, 0], np.float32)
    np.testing.assert_allclose(resampled_means(6, 6) @ line, [0, 2, 2, 2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(resampled_means(6, 3) @ line, [1, 2, 0], atol=1e-6)
    enlarged = resampled_means(6, 12) @ line
    np.testing.assert_allclose(enlarged[:4], [0, 0.5, 1.5, 2], atol=1e-6)


def test_each_value_belongs_to_the_patch_below_its_centre() -> None:
    assert cells(2, 5).tolist() == [0, 0, 1, 1, 1]
    assert cells(4, 4).tolist() == [0, 1, 2, 3]
    assert cells(4, 2).tolist() == [1, 3]
    assert cells_matrix(2, 5).argmax(1).tolist() == [0, 0, 1, 1, 1]


def bank_of_two() -> PatchBank:
    mean = np.array([1.0, 2.0, 3.0])
    bank = PatchBank(mean, np.empty((0, 3)), np.empty(0), 5.0)
    first = bank.with_rows(np.array([[1.0, 0.0, 2.0]]), np.array([2.0]))
    return first.with_rows(np.array([[-3.0, 1.0, 0.0]]), np.array([0.5]))


def test_a_patch_is_exempted_within_the_radius_of_its_row() -> None:
    bank = bank_of_two()
    for row, radius in zip(bank.rows, bank.radii, strict=True):
        middle = (1 + INNER) / 2
        cases = ((0, 1), (INNER, 1), (middle, 0.5), (1, 0))
        for share_of_radius, share in cases:
            squared = share_of_radius * radius
            patch = bank.mean + row + [np.sqrt(squared), 0, 0]
            found = bank.share(patch[None].astype(np.float32))
            assert found[0] == pytest.approx(share, abs=1e-5)


def test_a_value_is_lowered_to_the_cap_and_never_raised() -> None:
    bank = bank_of_two()
    values = np.array([9.0, 9.0, 9.0, 4.0])
    lowered = bank.lowered(values, np.array([0.0, 0.5, 1.0, 1.0]))
    assert lowered.tolist() == [9, 7, 5, 4]


def test_constants_of_a_graph_are_a_bank_again() -> None:
    bank = bank_of_two()
    again = PatchBank.of_constants(bank.constants())
    for name in ("mean", "rows", "radii", "cap"):
        np.testing.assert_allclose(getattr(again, name), getattr(bank, name), rtol=1e-6, atol=1e-6)


def test_a_bank_without_rows_exempts_nothing() -> None:
    empty = PatchBank.without_rows(3)
    patches = np.random.default_rng(0).normal(0, 10, (5, 3)).astype(np.float32)
    assert not empty.share(patches).any()
    again = PatchBank.of_constants(empty.constants())
    assert again.rows.shape == (0, 3)
    assert again.cap == pytest.approx(NO_CAP)
    # The convolution has one row, which is inside for no patch.
    (row,) = empty.constants()["exempt.rows"]
    assert not row.any()
    assert empty.constants()["exempt.bias"].tolist() == [-1]
