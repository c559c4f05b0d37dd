"""Exact k-means of grey levels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flawline.train.anomalies.clusters import cluster_levels


def squared_distances(values: np.ndarray, labels: np.ndarray) -> float:
    """Sum of the squared distances of the values to the centres of their clusters."""
    total = 0.0
    for label in np.unique(labels):
        own = values[labels == label].astype(float)
        total += float(((own - own.mean()) ** 2).sum())
    return total


def smallest_sum(values: np.ndarray, k: int) -> float:
    """The smallest such sum over every assignment of the different values to at most k clusters."""
    levels = np.unique(values)
    best = np.inf
    for assignment in itertools.product(range(k), repeat=len(levels)):
        labels = np.array(assignment)[np.searchsorted(levels, values)]
        best = min(best, squared_distances(values, labels))
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_the_clusters_are_the_best_of_all_assignments(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.choice(256, 6, replace=False).astype(np.uint8)
    values = rng.choice(levels, 40, p=rng.dirichlet(np.ones(6)))
    labels = cluster_levels(values, k)
    assert squared_distances(values, labels) == pytest.approx(smallest_sum(values, k), abs=1e-6)


def test_clusters_are_numbered_from_the_lowest_centre_in_the_shape_of_the_map() -> None:
    saliency = np.array([[0, 1, 200], [255, 100, 101]], np.uint8)
    expected = [[0, 0, 2], [2, 1, 1]]
    np.testing.assert_array_equal(cluster_levels(saliency, 3), expected)


def test_fewer_levels_than_clusters_are_a_cluster_each() -> None:
    np.testing.assert_array_equal(cluster_levels(np.array([9, 3, 9], np.uint8), 4), [1, 0, 1])
    np.testing.assert_array_equal(cluster_levels(np.zeros(5, np.uint8), 4), np.zeros(5))


def test_every_level_of_a_whole_histogram_is_assigned() -> None:
    labels = cluster_levels(np.arange(256, dtype=np.uint8), 4)
    np.testing.assert_array_equal(labels, np.repeat(range(4), 64))


def test_no_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        cluster_levels(np.zeros(3, np.uint8), 0)
