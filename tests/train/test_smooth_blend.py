"""SmoothBlend: sizes and edges of the patches, what they show, and the series of draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flawline.train.anomalies import StagedAnomalies
from flawline.train.anomalies.rectangles import content
from flawline.train.anomalies.smooth_blend import VISIBLE, SmoothBlend, blend, soft_patch

SIDE = 96


@pytest.fixture(scope="module")
def images() -> list[Any]:
    return list(np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize("size", [(20, 20), (10, 33), (33, 10), (3, 9)])
def test_the_mask_is_half_at_the_edges_of_the_patch_and_falls_to_zero(size: Any) -> None:
    alpha = soft_patch(size, (256, 256))
    margins = [(alpha.shape[axis] - size[axis]) // 2 for axis in (0, 1)]
    assert margins[0] == margins[1] > 0
    margin = margins[0]
    middle = alpha[:, alpha.shape[1] // 2]
    edge = (middle[margin - 1] + middle[margin]) / 2
    assert edge == pytest.approx(0.5, abs=0.01)
    assert middle[0] < 0.1
    assert middle[len(middle) // 2] == pytest.approx(1, abs=0.01)
    assert (np.diff(middle[: len(middle) // 2]) >= 0).all()
    np.testing.assert_allclose(alpha, alpha[::-1, ::-1], atol=1e-6)
    # Smoothing moves the mask, but does not change how much of it there is.
    assert alpha.sum() == pytest.approx(size[0] * size[1], rel=0.05)


def test_a_patch_is_never_larger_than_the_image() -> None:
    alpha = soft_patch((30, 8), (32, 40))
    assert alpha.shape == (32, 8 + 2 * 3)
    assert alpha[16, 7] == pytest.approx(1, abs=0.01)


def test_the_patch_is_mixed_as_the_mask_says() -> None:
    image = np.full((40, 40, 3), 100, np.uint8)
    patch = np.full((12, 10, 3), 200, np.uint8)
    alpha = np.random.default_rng(0).random((12, 10), np.float32)
    blended = blend(image, patch, alpha, (20, 5))
    inside = content(blended, (20, 5), (12, 10)).astype(float)
    np.testing.assert_allclose(inside[..., 0], 100 + 100 * alpha, atol=0.51)
    blended[20:32, 5:15] = 100
    np.testing.assert_array_equal(blended, image)


def test_areas_and_proportions_have_the_stated_ranges() -> None:
    shape = (256, 200)
    series = SmoothBlend([np.zeros((*shape, 3), np.uint8)], 0)
    areas, ratios = [], []
    for draw in range(200):
        alpha = series.views(draw).alpha
        areas.append(float(alpha.sum()) / alpha.size)
        rows, columns = np.nonzero(alpha > 0.5)
        ratios.append((np.ptp(rows) + 1) / (np.ptp(columns) + 1))
    assert 0.0045 < min(areas) < 0.0055
    assert 0.0092 < max(areas) < 0.0105
    assert 0.27 < min(ratios) < 0.4
    assert 2.6 < max(ratios) < 3.7


def test_views_differ_by_their_colours_and_the_blended_one_by_its_patch_alone() -> None:
    smooth = np.linspace(40, 200, SIDE).astype(np.uint8)
    image = np.stack([np.tile(smooth, (SIDE, 1))] * 3, 2)
    series = SmoothBlend([image], 0)
    for draw in range(10):
        views = series.views(draw)
        changed = (views.normal != views.blended).any(2)
        assert changed.any()
        assert not (changed & (views.alpha <= VISIBLE)).any()
        assert (views.normal != views.other).any()
        # The jitter keeps the order of grey values, so that nothing has moved.
        for view in (views.normal, views.other):
            assert (np.diff(view[SIDE // 2, :, 0].astype(int)) >= 0).all()


def test_soft_edges_show_the_surroundings_of_the_patch() -> None:
    """In a bright image, no pixel of a blended one is darker than the jitter can make it."""
    series = SmoothBlend([np.full((SIDE, SIDE, 3), 200, np.uint8)], 0)
    for draw in range(20):
        views = series.views(draw)
        darkest = int(views.normal.min()) * 0.9 * 0.999
        assert views.blended.min() >= darkest - 1


def test_a_draw_is_a_function_of_seed_and_number(images: list[Any]) -> None:
    before = [image.copy() for image in images]
    series = SmoothBlend(images, 0)
    again = SmoothBlend(images, 0)
    other = SmoothBlend(images, 1)
    for draw in (7, 0, 3):
        for a, b in zip(series.views(draw), again.views(draw), strict=True):
            np.testing.assert_array_equal(a, b)
        assert (series.views(draw).alpha != other.views(draw).alpha).any()
    assert [series.sources(draw)[0] for draw in range(5)] != [0, 1, 2, 3, 4]
    assert sorted(series.sources(draw)[0] for draw in range(5)) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(images, before)


def test_samples_and_stages_are_those_of_the_views(images: list[Any]) -> None:
    series = SmoothBlend(images, 0)
    assert isinstance(series, StagedAnomalies)
    views = series.views(4)
    normal, blended, mask = series.sample(4)
    np.testing.assert_array_equal(normal, views.normal)
    np.testing.assert_array_equal(blended, views.blended)
    assert ((normal != blended).any(2) <= mask).all()
    stages = series.stages(4)
    assert list(stages) == [
        "image",
        "normal",
        "other view",
        "cut out",
        "alpha",
        "blended",
        "mask",
    ]
    np.testing.assert_array_equal(stages["image"], images[series.index(4)])
    np.testing.assert_array_equal(stages["blended"], blended)
    assert {picture.shape for picture in stages.values()} == {(SIDE, SIDE, 3)}
