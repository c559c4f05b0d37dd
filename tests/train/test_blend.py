"""Blended anomalies: the same in every run, within their bounds, and without seams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module

import cv2
import numpy as np
import pytest

from flawline.train.anomalies.blend import Blended, BlendSettings, blend, object_mask
from flawline.train.anomalies.products import PRODUCT_SETTINGS, TEXTURE_SETTINGS, product_settings
from flawline.train.data.demo import render

pytestmark = pytest.mark.torch  # of the training half, although it needs no torch
module = import_module("flawline.train.anomalies.blend")


def weave(size: int = 96, count: int = 5, seed: int = 0) -> list[np.ndarray]:
    return [render("weave", None, seed + k, size)[0] for k in range(count)]


def disc(seed: int, centre: tuple[int, int] = (64, 64), radius: int = 40) -> np.ndarray:
    """A dark, grained disc before a bright plain background, uint8 [128, 128, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    grain = cv2.GaussianBlur(rng.normal(60, 60, (128, 128, 3)), (0, 0), 2)
    return np.where(inside[..., None], np.clip(grain, 0, 120), 230).astype(np.uint8)


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a single patch, with the border that the mask leaves out."""
    y, x = np.nonzero(mask)
    return y.min() - 1, x.min() - 1, np.ptp(y) + 3, np.ptp(x) + 3


# ---------------------------------------------------------------- draws


def test_a_draw_is_a_function_of_the_seed_and_its_number() -> None:
    images = weave()
    draws = [Blended(images, TEXTURE_SETTINGS, 3).sample(n) for n in range(12)]
    other = Blended(images, TEXTURE_SETTINGS, 3)
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(other.sample, reversed(range(12))))[::-1]
    for n, (first, second) in enumerate(zip(draws, again, strict=True)):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), n
    assert len({synthetic.tobytes() for _, synthetic, _ in draws}) == 12
    changed = [Blended(images, TEXTURE_SETTINGS, 4).sample(n) for n in range(12)]
    assert not any(np.array_equal(a[1], b[1]) for a, b in zip(draws, changed, strict=True))


def test_every_pass_draws_each_image_once_and_the_source_is_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [np.full((64, 64, 3), 40 * k, np.uint8) for k in range(5)]
    blended, seen = Blended(images, TEXTURE_SETTINGS, 0), []
    monkeypatch.setattr(
        module,
        "blend",
        lambda image, source, *_: (
            seen.append((image[0, 0, 0] // 40, source[0, 0, 0] // 40)) or ((), ())
        ),
    )
    for n in range(15):
        blended.sample(n)
    orders = [[drawn for drawn, _ in seen[k : k + 5]] for k in (0, 5, 10)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [source for _, source in seen[1:]] == [drawn for drawn, _ in seen[:-1]]


@pytest.mark.parametrize("product", [None, "bottle"])
def test_the_images_are_left_as_they_are(product: str | None) -> None:
    images = weave() if product is None else [disc(k) for k in range(4)]
    for image in images:
        image.flags.writeable = False
    before = [image.copy() for image in images]
    blended = Blended(images, product_settings(product), 0)
    for n in range(20):
        for array in blended.sample(n):
            array[:] = 0  # the arrays belong to the caller
    assert all(np.array_equal(a, b) for a, b in zip(images, before, strict=True))


@pytest.mark.parametrize(
    ("product", "images"), [(None, weave()), ("bottle", [disc(k) for k in range(4)])]
)
def test_nothing_outside_the_mask_changes(product: str | None, images: list[np.ndarray]) -> None:
    blended, changed = Blended(images, product_settings(product), 2), []
    for n in range(40):
        normal, synthetic, mask = blended.sample(n)
        assert np.array_equal(normal[~mask], synthetic[~mask])
        assert np.array_equal(normal, images[blended.index(n)])
        changed += [(normal[mask] != synthetic[mask]).any(1).mean()] if mask.any() else []
    assert len(changed) > 30
    assert np.median(changed) > 0.5


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("product", ["carpet", "cable", "capsule", "screw", "toothbrush"])
def test_patches_are_within_the_bounds(product: str) -> None:
    """Half-widths as they are cut, whole sides as they are pasted."""
    how = replace(PRODUCT_SETTINGS[product], background=None, patches=1)
    rng, shape = np.random.default_rng(0), (200, 240)
    image, source = (cv2.resize(image, (240, 200)) for image in weave(128, 2))
    limits = [
        [round(bound * n) for bound in bounds]
        for bounds, n in zip((how.heights, how.widths), shape, strict=True)
    ]
    cuts = [module._choose_cut(shape, None, how, rng) for _ in range(2000)]
    for axis, (low, high) in enumerate(limits):
        sides = [cut[axis].stop - cut[axis].start for cut in cuts]
        assert low * 2 <= min(sides) <= low * 2 + 4
        assert high * 1.7 < max(sides) <= high * 2
        assert min(cut[axis].start for cut in cuts) == 0
        assert max(cut[axis].stop for cut in cuts) == shape[axis]
    pasted = [
        box(mask) for _, mask in (blend(image, source, how, rng) for _ in range(150)) if mask.any()
    ]
    for top, left, height, width in pasted:
        assert limits[0][0] <= height <= limits[0][1]
        assert limits[1][0] <= width <= limits[1][1]
        assert (height - 2) * (width - 2) >= 50
        assert 1 <= top < shape[0] - height
        assert 1 <= left < shape[1] - width
    assert len(pasted) > 75
    assert max(height for _, _, height, _ in pasted) > 0.9 * limits[0][1]


def test_patches_are_resized_within_the_factors_and_keep_their_proportions() -> None:
    how, rng = (
        BlendSettings(heights=(0.01, 0.5), widths=(0.01, 0.5), resize=(0.7, 1.3)),
        np.random.default_rng(0),
    )
    sizes = [
        module._resized((slice(0, 60), slice(5, 125)), (400, 400), how, rng) for _ in range(500)
    ]
    heights = np.array(sizes)[:, 0] / 60
    assert 0.68 <= heights.min() < 0.72
    assert 1.28 < heights.max() <= 1.3
    assert all(abs(2 * height - width) <= 2 for height, width in sizes)


def test_the_first_patch_is_certain_and_each_further_one_has_probability_one_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts, choose_place = [], module._choose_place
    monkeypatch.setattr(
        module, "_choose_place", lambda *given: counts.append(1) or choose_place(*given)
    )
    image, source = weave(64, 2)
    numbers = []
    for seed in range(400):
        counts.clear()
        blend(image, source, TEXTURE_SETTINGS, np.random.default_rng(seed))
        numbers.append(len(counts))
    share = np.bincount(numbers, minlength=5) / 400
    assert len(share) == 5
    assert np.allclose(share, [0, 1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.08)


@pytest.mark.parametrize("shape", [(12, 40), (41, 12), (33, 33), (80, 50), (7, 12)])
def test_solving_for_the_patch_alone_equals_the_whole_image(
    shape: tuple[int, int],
) -> None:
    image, source = weave(128, 2)
    height, width = shape
    patch, mask = (
        np.ascontiguousarray(source[20 : 20 + height, 30 : 30 + width]),
        np.zeros(shape, np.uint8),
    )
    mask[1:-1, 1:-1] = 255
    for top, left in ((1, 1), (40, 61), (128 - height - 1, 128 - width - 1)):
        centre = (left + 1 + (width - 2) // 2, top + 1 + (height - 2) // 2)
        whole = cv2.seamlessClone(patch, image, mask.copy(), centre, cv2.NORMAL_CLONE)
        out = image.copy()
        inner = module._paste(out, patch, (slice(top, top + height), slice(left, left + width)))
        assert np.array_equal(out, whole)
        changed = (out != image).any(2)
        assert changed[inner].any()
        changed[inner] = False
        assert not changed.any()


def test_a_patch_has_the_details_of_the_source_and_no_seam() -> None:
    """Poisson's equation: the source's gradients inside, and no step at the border."""
    y, x = np.mgrid[:128, :128]
    stripes = np.repeat((100 + 20 * np.sin(y / 2))[..., None], 3, 2).astype(np.uint8)
    ramp = np.repeat((60 + x)[..., None], 3, 2).astype(np.uint8)
    out = ramp.copy()
    module._paste(out, stripes[:60, :60].copy(), (slice(30, 90), slice(30, 90)))
    signed = out.astype(int)[..., 0]
    assert (
        np.corrcoef(np.diff(signed[35:85, 60]), np.diff(stripes.astype(int)[5:55, 30, 0]))[0, 1]
        > 0.95
    )
    assert abs(signed[30:90, 31] - signed[30:90, 30]).mean() < 4
    assert (
        abs(signed[30:90, 40].mean() - ramp[0, 40, 0]) < 8
    )  # no longer the source's own brightness
    assert abs(signed[30:90, 80].mean() - ramp[0, 80, 0]) < 8


def test_patches_of_objects_are_on_the_object() -> None:
    how = replace(PRODUCT_SETTINGS["bottle"], patches=1)
    patches = 0
    for seed in range(60):
        image, source = disc(seed), disc(seed + 1000, (50, 70), 30)
        _, mask = blend(image, source, how, np.random.default_rng(seed))
        if not mask.any():
            continue
        patches += 1
        top, left, height, width = box(mask)
        on = object_mask(image, how)
        assert on is not None
        # At least min_overlap of the patch's object, which is at least min_object of the patch.
        assert on[top : top + height, left : left + width].mean() > 0.70 * 0.25
    assert patches > 50


def test_patches_are_cut_where_the_object_is() -> None:
    how, rng, source = PRODUCT_SETTINGS["bottle"], np.random.default_rng(0), disc(0, (40, 90), 25)
    on = object_mask(source, how)
    assert on is not None
    drawn = [module._choose_cut((128, 128), on, how, rng) for _ in range(200)]
    cuts = [cut for cut in drawn if cut is not None]
    assert len(cuts) > 150
    assert all(on[cut].mean() > how.min_object for cut in cuts)
    assert (
        np.mean(
            [
                on[module._choose_cut((128, 128), None, how, rng)].mean() < how.min_object
                for _ in range(200)
            ]
        )
        > 0.5
    )


def test_the_object_is_what_differs_from_the_background() -> None:
    image, how = disc(0), PRODUCT_SETTINGS["bottle"]
    image[5, 5] = 0  # grain is no object
    on = object_mask(image, how)
    y, x = np.mgrid[:128, :128]
    assert on is not None
    assert on.dtype == bool
    assert abs(on ^ ((y - 64) ** 2 + (x - 64) ** 2 < 1600)).mean() < 0.01
    assert not on[5, 5]
    assert object_mask(image, TEXTURE_SETTINGS) is None


def test_the_mask_of_the_object_is_the_median_of_its_pixels_up_to_the_border() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    far = np.abs(noise.astype(float).mean(2) - 110) > 33
    expected = cv2.medianBlur(far.astype(np.uint8), 7)
    assert 0.2 < expected.mean() < 0.8
    assert np.array_equal(object_mask(noise, BlendSettings(background=110, threshold=33)), expected)


@pytest.mark.parametrize(("bare", "other"), [(True, False), (False, True), (True, True)])
def test_without_an_object_the_image_stays_as_it_is(bare: bool, other: bool) -> None:
    plain = np.full((128, 128, 3), 230, np.uint8)
    image, source = (plain if bare else disc(0)), (plain if other else disc(1))
    for seed in range(10):
        out, mask = blend(image, source, PRODUCT_SETTINGS["bottle"], np.random.default_rng(seed))
        assert np.array_equal(out, image)
        assert mask.dtype == bool
        assert not mask.any()


@pytest.mark.parametrize("product", [None, "bottle", "hazelnut", "screw"])
def test_a_plain_image_of_plain_images_stays_plain(product: str | None) -> None:
    """Every grey level, also those at which the whole image counts as object."""
    for level in (0, 90, 200, 255):
        image = np.full((96, 96, 3), level, np.uint8)
        out, _ = blend(image, image, product_settings(product), np.random.default_rng(level))
        assert np.abs(out.astype(int) - level).max() <= 1


@pytest.mark.parametrize("product", list(PRODUCT_SETTINGS))
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (70, 130)])
def test_small_images_of_any_product_work(product: str, size: tuple[int, int]) -> None:
    height, width = size
    images = [cv2.resize(disc(k), (width, height)) for k in range(3)]
    blended = Blended(images, product_settings(product), 0)
    for n in range(15):
        normal, synthetic, mask = blended.sample(n)
        assert normal.shape == synthetic.shape == (*mask.shape, 3) == (*size, 3)
        assert synthetic.dtype == np.uint8
        assert mask.any() or np.array_equal(normal, synthetic)


def test_patches_mostly_find_a_place_in_small_images() -> None:
    blended = Blended(weave(64), TEXTURE_SETTINGS, 0)
    assert np.mean([blended.sample(n)[2].any() for n in range(100)]) > 0.8


def test_grey_images_stay_grey() -> None:
    images = [np.repeat(image[..., :1], 3, 2) for image in weave(96, 3)]
    blended = Blended(images, TEXTURE_SETTINGS, 0)
    for n in range(10):
        _, synthetic, _ = blended.sample(n)
        assert np.ptp(synthetic, axis=2).max() == 0


def test_a_single_image_is_its_own_source() -> None:
    blended = Blended(weave(96, 1), TEXTURE_SETTINGS, 0)
    normal, synthetic, mask = blended.sample(0)
    assert mask.any()
    assert not np.array_equal(normal, synthetic)


def test_images_of_another_size_or_type_are_errors() -> None:
    image = weave(64, 1)[0]
    for other in (weave(96, 1)[0], image[..., 0], image.astype(np.float32)):
        with pytest.raises(ValueError, match="equal size, got uint8"):
            blend(image, other, TEXTURE_SETTINGS, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no images"):
        Blended([], TEXTURE_SETTINGS, 0)


def test_anomalies_are_the_blended_images_with_a_patch() -> None:
    plain = np.full((128, 128, 3), 230, np.uint8)
    blended = Blended([disc(0), plain, disc(1), disc(2)], PRODUCT_SETTINGS["bottle"], 0)
    expected = []
    for draw in range(8):
        _, synthetic, mask = blended.sample(draw)
        if mask.any():
            expected.append(synthetic)
    got = blended.anomalies(range(8))
    assert 0 < len(got) == len(expected) < 8
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_sources_are_the_image_and_the_one_before() -> None:
    blended = Blended(weave(64), TEXTURE_SETTINGS, 0)
    for draw in range(12):
        assert blended.sources(draw) == [blended.index(draw), blended.index(draw - 1)]
