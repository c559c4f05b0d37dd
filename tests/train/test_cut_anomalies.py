"""CutPaste and CutSwap: rectangles, anchors and the series of labelled images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flawline.train.anomalies import rectangles
from flawline.train.anomalies.clusters import cluster_levels
from flawline.train.anomalies.cut_swap import (
    CutSwap,
    SwapSettings,
    chosen_pixels,
    draw_anchors,
    swap_rotated,
)
from flawline.train.anomalies.rectangles import Position, Size, swap
from flawline.train.anomalies.three_way import NORMAL, PATCH, SCAR, CutPaste, ThreeWay
from flawline.train.data.demo import render

SIDE = 96


@pytest.fixture(scope="module")
def images() -> list[Any]:
    return [render("board", None, seed, SIDE)[0] for seed in range(5)]


def numbered(height: int = 20, width: int = 24) -> np.ndarray:
    """An image in which no two pixels are equal."""
    numbers = np.arange(height * width)
    return (
        np.stack([numbers % 256, numbers // 256, numbers % 7], -1)
        .astype(np.uint8)
        .reshape(height, width, 3)
    )


def maps_of(image: Any) -> Any:
    """Five maps of an image that differ: channels, their maximum and their minimum."""
    planes = np.moveaxis(image, 2, 0)
    return np.concatenate([planes, planes.max(0)[None], planes.min(0)[None]])


def all_series(images: list[Any], seed: int = 0) -> list[ThreeWay]:
    return [CutPaste(images, seed), CutSwap(images, maps_of, SwapSettings(), seed)]


# ---------------------------------------------------------------- rectangles


@pytest.mark.parametrize(
    ("first", "second", "size"),
    [
        ((1, 2), (10, 12), (6, 8)),  # apart
        ((2, 3), (4, 6), (8, 9)),  # overlapping
        ((4, 6), (2, 3), (8, 9)),
        ((4, 3), (2, 6), (8, 9)),
        ((0, 0), (0, 1), (20, 23)),  # almost the same
        ((5, 5), (5, 5), (4, 4)),  # the same
    ],
)
def test_a_swap_keeps_every_pixel_and_changes_none_outside(
    first: Position, second: Position, size: Size
) -> None:
    image = numbered()
    before = image.copy()
    swapped = swap(image, first, second, size)
    np.testing.assert_array_equal(image, before)
    flat = [tuple(pixel) for pixel in image.reshape(-1, 3)]
    assert sorted(flat) == sorted(tuple(pixel) for pixel in swapped.reshape(-1, 3))
    outside = np.ones(image.shape[:2], bool)
    for row, column in (first, second):
        outside[row : row + size[0], column : column + size[1]] = False
    np.testing.assert_array_equal(swapped[outside], image[outside])
    np.testing.assert_array_equal(
        rectangles.content(swapped, second, size), rectangles.content(image, first, size)
    )


def test_a_swap_of_separate_rectangles_exchanges_them() -> None:
    image = numbered()
    swapped = swap(image, (1, 2), (10, 12), (6, 8))
    np.testing.assert_array_equal(swapped[1:7, 2:10], image[10:16, 12:20])
    np.testing.assert_array_equal(swap(swapped, (1, 2), (10, 12), (6, 8)), image)


def test_patches_and_scars_have_the_published_ranges() -> None:
    rng = np.random.default_rng(0)
    areas, aspects, widths, heights, angles = [], [], [], [], []
    for _ in range(400):
        height, width = rectangles.draw_patch_size((256, 256), rng)
        areas.append(height * width / 256**2)
        aspects.append(height / width)
        (height, width), angle = rectangles.draw_scar((256, 256), rng)
        widths.append(width)
        heights.append(height)
        angles.append(angle)
    assert 0.019 < min(areas) < 0.03
    assert 0.14 < max(areas) < 0.152
    assert 0.29 < min(aspects) < 0.35
    assert 2.9 < max(aspects) < 3.45
    assert (min(widths), max(widths)) == (2, 16)
    assert (min(heights), max(heights)) == (10, 25)
    assert -45 <= min(angles) < -40 < 40 < max(angles) <= 45


def test_scars_scale_with_the_image_and_patches_fit_into_it() -> None:
    rng = np.random.default_rng(0)
    for shape in ((32, 32), (40, 300)):
        for _ in range(50):
            patch = rectangles.draw_patch_size(shape, rng)
            scar, _ = rectangles.draw_scar(shape, rng)
            for size in (patch, scar):
                assert 1 <= size[0] <= shape[0]
                assert 1 <= size[1] <= shape[1]
            assert scar[0] <= 25 * min(shape) / 256 + 1


@pytest.mark.parametrize("angle", [-45.0, -10.0, 0.0, 30.0, 45.0])
@pytest.mark.parametrize("size", [(25, 16), (10, 2), (2, 1)])
def test_a_rotated_patch_keeps_its_colour_and_about_its_area(angle: float, size: Size) -> None:
    patch = np.full((*size, 3), (10, 120, 250), np.uint8)
    turned, mask = rectangles.rotated(patch, angle)
    assert (turned[mask] == (10, 120, 250)).all()
    assert mask.sum() == pytest.approx(size[0] * size[1], rel=0.2, abs=3)


def test_jitter_changes_grey_levels_a_little_and_keeps_grey_images_grey() -> None:
    image = np.full((8, 8, 3), 128, np.uint8)
    means = []
    for seed in range(200):
        changed = rectangles.jitter(image, np.random.default_rng(seed))
        assert (changed == changed[0, 0, 0]).all()
        means.append(int(changed[0, 0, 0]))
    assert 114 <= min(means) < 118
    assert 138 < max(means) <= 142


def test_overlap_is_the_common_share() -> None:
    assert rectangles.overlap((0, 0), (0, 0), (4, 8)) == 1
    assert rectangles.overlap((0, 0), (2, 2), (4, 8)) == pytest.approx(0.5 * 0.75)
    assert rectangles.overlap((0, 0), (4, 0), (4, 8)) == 0


# ---------------------------------------------------------------- anchors


@pytest.mark.parametrize("cluster", ["highest", "lowest", "random"])
@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_anchors_lie_in_the_chosen_cluster(cluster: str, clusters: int, images: list[Any]) -> None:
    saliency = images[0][..., 1]
    labels = cluster_levels(saliency, clusters)
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pixels = chosen_pixels(saliency, SwapSettings(clusters, cluster), rng)
        anchors = draw_anchors(pixels, (10, 14), rng)
        (number,) = np.unique(labels[pixels])
        seen.add(int(number))
        assert (labels == number).sum() == pixels.sum()
        for row, column in (anchors.first, anchors.second):
            assert pixels[row, column]
        first, second = anchors.inside(saliency.shape)
        assert rectangles.overlap(first, second, anchors.size) <= 0.5
    expected = {"highest": {clusters - 1}, "lowest": {0}, "random": set(range(clusters))}
    assert seen == expected[cluster]


def test_the_most_salient_pixels_can_be_taken_instead(images: list[Any]) -> None:
    saliency = images[0][..., 1]
    rng = np.random.default_rng(0)
    pixels = chosen_pixels(saliency, SwapSettings(most_salient=300), rng)
    assert pixels.sum() == 300
    assert saliency[pixels].min() >= saliency[~pixels].max()


def test_a_cluster_of_one_pixel_is_swapped_with_another_place() -> None:
    pixels = np.zeros((40, 40), bool)
    pixels[39, 39] = True
    anchors = draw_anchors(pixels, (8, 8), np.random.default_rng(0))
    assert anchors.first == (39, 39)
    first, second = anchors.inside((40, 40))
    assert first == (32, 32)
    assert rectangles.overlap(first, second, (8, 8)) <= 0.5


def test_swapped_scars_change_both_places() -> None:
    image = numbered(64, 64)
    rng = np.random.default_rng(0)
    anchors = draw_anchors(np.ones((64, 64), bool), (12, 4), rng)
    changed = (swap_rotated(image, anchors, 30.0) != image).any(2)
    assert 30 < changed.sum() < 200
    for row, column in anchors.inside((64, 64)):
        assert changed[row : row + 12, column : column + 12].any()


# ---------------------------------------------------------------- series


def test_a_draw_is_a_function_of_seed_and_number(images: list[Any]) -> None:
    again = all_series(images)
    other = all_series(images, seed=1)
    for number, series in enumerate(all_series(images)):
        for draw in (7, 0, 3):
            triple = series.triple(draw)
            for a, b in zip(triple, again[number].triple(draw), strict=True):
                np.testing.assert_array_equal(a, b)
            pairs = zip(triple, other[number].triple(draw), strict=True)
            assert any((a != b).any() for a, b in pairs)


def test_every_pass_draws_each_image_once(images: list[Any]) -> None:
    for series in all_series(images):
        for epoch in range(3):
            drawn = [series.index(draw) for draw in range(5 * epoch, 5 * epoch + 5)]
            assert sorted(drawn) == list(range(5))


def test_labels_match_their_images(images: list[Any]) -> None:
    for series in all_series(images):
        made, labels = series.labelled(range(4))
        assert labels == [NORMAL, PATCH, SCAR] * 4
        for draw in range(4):
            for image, expected in zip(made[3 * draw :], series.triple(draw), strict=False):
                np.testing.assert_array_equal(image, expected)
            normal, patch, scar = series.triple(draw)
            assert (normal != patch).any()
            assert (normal != scar).any()
            # A scar is smaller than the smallest patch.
            assert (normal != scar).any(2).mean() < 0.02


def test_images_are_not_modified(images: list[Any]) -> None:
    before = [image.copy() for image in images]
    for series in all_series(images):
        series.labelled(range(10))
        series.stages(0)
    np.testing.assert_array_equal(images, before)


def test_a_swapped_patch_has_the_pixels_of_its_normal_image(images: list[Any]) -> None:
    _, swapped = all_series(images)
    for draw in range(8):
        normal, patch, _ = swapped.triple(draw)
        pixels = []
        for image in (normal, patch):
            pixels.append(sorted(tuple(pixel) for pixel in image.reshape(-1, 3).tolist()))
        assert pixels[0] == pixels[1]


def test_a_synthetic_image_without_a_trace_is_left_out() -> None:
    plain = np.full((64, 64, 3), 255, np.uint8)
    _, swapped = all_series([plain])
    images, labels = swapped.labelled(range(3))
    assert labels == [NORMAL] * 3
    assert len(images) == 3


def test_only_the_chosen_maps_are_used(images: list[Any]) -> None:
    used = CutSwap(images, maps_of, SwapSettings(levels=(1, 3)), 0)
    assert {used.level(draw) for draw in range(30)} == {1, 3}


def test_the_stages_show_every_map(images: list[Any]) -> None:
    pasted, swapped = all_series(images)
    assert list(pasted.stages(0)) == [
        "image",
        "normal",
        "patch",
        "patch mask",
        "scar",
        "scar mask",
    ]
    stages = swapped.stages(0)
    expected = ["image", "map 1", "map 2", "map 3", "map 4", "map 5", "clusters", "anchors"]
    assert list(stages) == [*expected, *list(pasted.stages(0))[1:]]
    assert {picture.shape for picture in stages.values()} == {(SIDE, SIDE, 3)}


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        CutPaste([], 0)
