"""The greedy coreset against its literal form, and the random projection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks import coreset
from flawline.train.blocks.coreset import greedy_k_centre, project
from flawline.train.progress import no_progress

pytestmark = pytest.mark.torch


def cloud(n: int = 3000, dim: int = 16, seed: int = 0) -> Any:
    """Clusters of very different sizes, as patches of a part form them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(12, dim, generator=generator)
    which = (12 * torch.rand(n, generator=generator) ** 3).long()
    return centres[which] + torch.randn(n, dim, generator=generator)


def one_by_one(points: Any, rows: int, seed: int) -> list[int]:
    """The published greedy choice, literally: every distance is computed for every row."""
    start = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[
        : coreset.STARTS
    ]
    nearest = torch.cdist(points, points[start]).mean(1)
    selected: list[int] = []
    for _ in range(rows):
        selected.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[selected[-1]]).norm(dim=1))
        nearest[selected] = -1
    return selected


@pytest.mark.parametrize(("rows", "seed"), [(1, 0), (150, 0), (150, 1), (700, 2)])
def test_the_pool_does_not_change_the_greedy_choice(
    rows: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "SMALLEST_POOL", 40)
    monkeypatch.setattr(coreset, "CHUNK", 999)
    points = cloud().double()  # no two distances are equal up to rounding
    assert greedy_k_centre(points, rows, seed, no_progress).tolist() == one_by_one(
        points, rows, seed
    )


def test_few_rows_cover_more_than_random_rows() -> None:
    points = cloud()
    selected = greedy_k_centre(points, 60, 0, no_progress)
    random = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:60]
    radius, at_random = (
        float(torch.cdist(points, points[i]).amin(1).max()) for i in (selected, random)
    )
    assert radius < 0.75 * at_random


def test_no_row_is_selected_twice_if_all_are_equal() -> None:
    points = torch.ones(300, 4)
    points[7] = 2
    selected = greedy_k_centre(points, 300, 0, no_progress).tolist()
    assert sorted(selected) == list(range(300))
    assert selected.index(7) < 2


def test_progress_counts_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "SMALLEST_POOL", 40)
    reported: list[tuple[str, int, int]] = []
    greedy_k_centre(cloud(), 90, 0, lambda *now: reported.append(now))
    assert reported == [("coreset of 90 rows", i + 1, 90) for i in range(90)]


def test_projection_keeps_distances_and_is_a_function_of_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = np.random.default_rng(0).normal(3, 1, (200, 700)).astype(np.float32)
    whole = project(features, 0)
    monkeypatch.setattr(coreset, "CHUNK", 64)
    torch.testing.assert_close(project(features, 0), whole, rtol=1e-4, atol=1e-4)
    assert whole.shape == (200, 128)
    assert not torch.equal(project(features, 1), whole)
    ratio = torch.pdist(whole) / torch.pdist(torch.from_numpy(features))
    assert 0.7 < float(ratio.min()) < float(ratio.max()) < 1.3
    assert abs(float(ratio.mean()) - 1) < 0.02


def test_few_dimensions_are_not_projected() -> None:
    features = np.random.default_rng(0).normal(3, 1, (50, 128)).astype(np.float32)
    points = project(features, 0)
    torch.testing.assert_close(
        torch.pdist(points), torch.pdist(torch.from_numpy(features)), rtol=1e-4, atol=1e-4
    )
    assert float(points.mean(0).abs().max()) < 1e-5
