"""Synthetic anomalies of good pictures: the same in every run, within their bounds, and blended in without seams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.train.anomalies.__main__ import ROWS, contact_sheet, main
from flawline.train.anomalies.blend import (
    PRODUCTS,
    TEXTURE,
    Blend,
    Blended,
    blend,
    guess_product,
    known_products,
    object_mask,
    settings,
    sharpen,
)
from flawline.train.data.demo import render, write_demo

pytestmark = pytest.mark.torch  # of the training half, though it needs no torch
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


# ---------------------------------------------------------------- settings


def test_the_table_is_that_of_the_authors() -> None:
    assert len(known_products()) == 15 + 3 + 10
    table = {
        "bottle": (200, 60, 0.40, 0.40, 3, 0.70, 0.25),
        "capsule": (200, 60, 0.15, 0.40, 3, 0.70, 0.25),
        "hazelnut": (20, 20, 0.35, 0.35, 3, 0.70, 0.25),
        "metal_nut": (20, 20, 0.40, 0.40, 3, 0.50, 0.25),
        "pill": (20, 20, 0.20, 0.40, 3, 0.70, 0.25),
        "screw": (200, 60, 0.12, 0.12, 4, 0.50, 0.25),
        "toothbrush": (20, 20, 0.40, 0.20, 3, 0.25, 0.25),
        "zipper": (200, 60, 0.40, 0.20, 4, 0.70, 0.25),
        "btad_01": (200, 60, 0.40, 0.40, 3, 0.70, 0.25),
        "btad_03": (200, 60, 0.40, 0.40, 3, 0.70, 0.25),
    }
    for name, (background, threshold, height, width, patches, object_, overlap) in table.items():
        expected = Blend(
            (0.03, height), (0.03, width), patches, (0.7, 1.3), background, threshold, object_, overlap
        )  # fmt: skip
        assert PRODUCTS[name] == expected, name
    textures = {
        "carpet",
        "grid",
        "leather",
        "tile",
        "wood",
        "btad_02",
        *(f"dagm_class{k}" for k in range(1, 11)),
    }
    assert {name for name, how in PRODUCTS.items() if how == TEXTURE} == textures
    assert Blend((0.03, 0.4), (0.03, 0.4), 4, (0.5, 2.0)) == TEXTURE
    assert PRODUCTS["cable"] == Blend((0.05, 0.4), (0.05, 0.4), 3, (0.7, 1.3))
    assert PRODUCTS["transistor"] == Blend((0.03, 0.4), (0.03, 0.4), 3, (0.7, 1.3))


@pytest.mark.parametrize("product", [None, "", "gearbox", "01"])
def test_an_unknown_product_is_a_texture(product: str | None) -> None:
    assert settings(product) == TEXTURE
    assert settings("Bottle") == PRODUCTS["bottle"] != TEXTURE


@pytest.mark.parametrize(
    ("folder", "product"),
    [
        ("bottle", "bottle"),
        ("mvtec_bottle", "bottle"),
        ("Class7", "dagm_class7"),
        ("BTech_Dataset_transformed/01", "btad_01"),
        ("parts/01", None),
        ("weave", None),
        ("bottles", None),
    ],
)
def test_the_folder_tells_the_product(folder: str, product: str | None, tmp_path: Path) -> None:
    assert guess_product(tmp_path / folder) == product


# ---------------------------------------------------------------- pictures


def test_a_draw_follows_from_the_seed_and_its_number_alone() -> None:
    images = weave()
    draws = [Blended(images, TEXTURE, 3).sample(n) for n in range(12)]
    other = Blended(images, TEXTURE, 3)
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(other.sample, reversed(range(12))))[::-1]
    for n, (first, second) in enumerate(zip(draws, again, strict=True)):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), n
    assert len({synthetic.tobytes() for _, synthetic, _ in draws}) == 12
    changed = [Blended(images, TEXTURE, 4).sample(n) for n in range(12)]
    assert not any(np.array_equal(a[1], b[1]) for a, b in zip(draws, changed, strict=True))


def test_every_pass_draws_each_picture_once_and_the_source_is_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [
        np.full((64, 64, 3), 40 * k, np.uint8) for k in range(5)
    ]  # sharpening leaves plain pictures alone
    blended, seen = Blended(images, TEXTURE, 0), []
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
    blended = Blended(images, settings(product), 0)
    for n in range(20):
        for array in blended.sample(n):
            array[:] = 0  # what is handed out is the caller's own
    assert all(np.array_equal(a, b) for a, b in zip(images, before, strict=True))


@pytest.mark.parametrize(
    ("product", "images"), [(None, weave()), ("bottle", [disc(k) for k in range(4)])]
)
def test_only_what_the_mask_shows_is_changed(product: str | None, images: list[np.ndarray]) -> None:
    blended, changed = Blended(images, settings(product), 2), []
    for n in range(40):
        normal, synthetic, mask = blended.sample(n)
        assert np.array_equal(normal[~mask], synthetic[~mask])
        assert any(
            np.array_equal(normal, kind(images[blended.index(n)])) for kind in (np.copy, sharpen)
        )
        changed += [(normal[mask] != synthetic[mask]).any(1).mean()] if mask.any() else []
    assert len(changed) > 30
    assert np.median(changed) > 0.5


def test_half_of_the_pictures_are_sharpened() -> None:
    images = weave(64)
    blended = Blended(images, TEXTURE, 0)
    sharp = [not np.array_equal(blended.sample(n)[0], images[blended.index(n)]) for n in range(100)]
    assert 35 <= sum(sharp) <= 65
    plain = Blended(images, TEXTURE, 0, sharpening=False)
    assert all(np.array_equal(plain.sample(n)[0], images[plain.index(n)]) for n in range(20))


@pytest.mark.parametrize("shape", [(40, 56, 3), (3, 3, 3), (1, 7, 3)])
def test_sharpening_is_that_of_pil(shape: tuple[int, int, int]) -> None:
    pil = pytest.importorskip("PIL.Image")
    enhance = pytest.importorskip("PIL.ImageEnhance")
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = np.asarray(enhance.Sharpness(pil.fromarray(image)).enhance(2))
    assert np.array_equal(sharpen(image), expected)


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("product", ["carpet", "cable", "capsule", "screw", "toothbrush"])
def test_patches_keep_to_the_bounds(product: str) -> None:
    """Half-widths as they are cut, whole sides as they are pasted."""
    how = replace(PRODUCTS[product], background=None, patches=1)
    rng, shape = np.random.default_rng(0), (200, 240)
    image, source = (cv2.resize(picture, (240, 200)) for picture in weave(128, 2))
    limits = [
        [round(bound * n) for bound in bounds]
        for bounds, n in zip((how.heights, how.widths), shape, strict=True)
    ]
    cuts = [module._cut(shape, None, how, rng) for _ in range(2000)]
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
        Blend(heights=(0.01, 0.5), widths=(0.01, 0.5), resize=(0.7, 1.3)),
        np.random.default_rng(0),
    )
    sizes = [
        module._resized((slice(0, 60), slice(5, 125)), (400, 400), how, rng) for _ in range(500)
    ]
    heights = np.array(sizes)[:, 0] / 60
    assert 0.68 <= heights.min() < 0.72
    assert 1.28 < heights.max() <= 1.3
    assert all(abs(2 * height - width) <= 2 for height, width in sizes)


def test_the_first_patch_is_always_there_and_each_further_one_half_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts, paste = [], module._paste
    monkeypatch.setattr(module, "_paste", lambda *given: counts.append(1) or paste(*given))
    image, source = weave(64, 2)
    numbers = []
    for seed in range(400):
        counts.clear()
        blend(image, source, TEXTURE, np.random.default_rng(seed))
        numbers.append(len(counts))
    share = np.bincount(numbers, minlength=5) / 400
    assert len(share) == 5
    assert np.allclose(share, [0, 1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.08)


@pytest.mark.parametrize("shape", [(12, 40), (41, 12), (33, 33), (80, 50), (7, 12)])
def test_solving_within_the_patch_is_solving_in_the_whole_picture(shape: tuple[int, int]) -> None:
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
    """Poisson's equation: the source's gradients inside, and no step where the picture begins."""
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


def test_patches_of_objects_lie_on_the_object() -> None:
    how = replace(PRODUCTS["bottle"], patches=1)
    found = 0
    for seed in range(60):
        image, source = disc(seed), disc(seed + 1000, (50, 70), 30)
        _, mask = blend(image, source, how, np.random.default_rng(seed))
        if not mask.any():
            continue
        found += 1
        top, left, height, width = box(mask)
        on = object_mask(image, how)
        assert on is not None
        # at least min_overlap of the patch's object, which is at least min_object of the patch, less what it rounds to
        assert on[top : top + height, left : left + width].mean() > 0.70 * 0.25
    assert found > 50


def test_patches_are_cut_where_the_object_is() -> None:
    how, rng, source = PRODUCTS["bottle"], np.random.default_rng(0), disc(0, (40, 90), 25)
    on = object_mask(source, how)
    assert on is not None
    cuts = [cut for cut in (module._cut((128, 128), on, how, rng) for _ in range(200)) if cut]
    assert len(cuts) > 150
    assert all(on[cut].mean() > how.min_object for cut in cuts)
    assert (
        np.mean(
            [
                on[module._cut((128, 128), None, how, rng)].mean() < how.min_object
                for _ in range(200)
            ]
        )
        > 0.5
    )


def test_the_object_is_what_differs_from_the_background() -> None:
    image, how = disc(0), PRODUCTS["bottle"]
    image[5, 5] = 0  # grain is no object
    on = object_mask(image, how)
    y, x = np.mgrid[:128, :128]
    assert on is not None
    assert abs(on.astype(bool) ^ ((y - 64) ** 2 + (x - 64) ** 2 < 1600)).mean() < 0.01
    assert not on[5, 5]
    assert object_mask(image, TEXTURE) is None


def test_the_mask_of_the_object_is_the_median_of_its_pixels_up_to_the_border() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    far = np.abs(noise.astype(float).mean(2) - 110) > 33
    expected = cv2.medianBlur(far.astype(np.uint8), 7)
    assert 0.2 < expected.mean() < 0.8
    assert np.array_equal(object_mask(noise, Blend(background=110, threshold=33)), expected)


@pytest.mark.parametrize(("bare", "other"), [(True, False), (False, True), (True, True)])
def test_without_an_object_the_picture_stays_as_it_is(bare: bool, other: bool) -> None:
    plain = np.full((128, 128, 3), 230, np.uint8)
    image, source = (plain if bare else disc(0)), (plain if other else disc(1))
    for seed in range(10):
        out, mask = blend(image, source, PRODUCTS["bottle"], np.random.default_rng(seed))
        assert np.array_equal(out, image)
        assert mask.dtype == bool
        assert not mask.any()


@pytest.mark.parametrize("product", [None, "bottle", "hazelnut", "screw"])
def test_a_plain_picture_of_plain_pictures_stays_plain(product: str | None) -> None:
    """Every grey level, also those at which the whole picture counts as object."""
    for level in (0, 90, 200, 255):
        image = np.full((96, 96, 3), level, np.uint8)
        out, _ = blend(image, image, settings(product), np.random.default_rng(level))
        assert np.abs(out.astype(int) - level).max() <= 1


@pytest.mark.parametrize("product", known_products())
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (70, 130)])
def test_small_pictures_of_any_product_work(product: str, size: tuple[int, int]) -> None:
    height, width = size
    images = [cv2.resize(disc(k), (width, height)) for k in range(3)]
    blended = Blended(images, settings(product), 0)
    for n in range(15):
        normal, synthetic, mask = blended.sample(n)
        assert normal.shape == synthetic.shape == (*mask.shape, 3) == (*size, 3)
        assert synthetic.dtype == np.uint8
        assert mask.any() or np.array_equal(normal, synthetic)


def test_small_pictures_mostly_find_a_place() -> None:
    blended = Blended(weave(64), TEXTURE, 0)
    assert np.mean([blended.sample(n)[2].any() for n in range(100)]) > 0.8


def test_grey_pictures_stay_grey() -> None:
    images = [np.repeat(picture[..., :1], 3, 2) for picture in weave(96, 3)]
    blended = Blended(images, TEXTURE, 0)
    for n in range(10):
        _, synthetic, _ = blended.sample(n)
        assert np.ptp(synthetic, axis=2).max() == 0


def test_one_picture_alone_is_its_own_source() -> None:
    blended = Blended(weave(96, 1), TEXTURE, 0)
    normal, synthetic, mask = blended.sample(0)
    assert mask.any()
    assert not np.array_equal(normal, synthetic)


def test_pictures_of_other_sizes_or_kinds_are_refused() -> None:
    image = weave(64, 1)[0]
    for other in (weave(96, 1)[0], image[..., 0], image.astype(np.float32)):
        with pytest.raises(ValueError, match="equal size, got uint8"):
            blend(image, other, TEXTURE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no images"):
        Blended([], TEXTURE, 0)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    return write_demo(root, ["weave"], train_good=4, test_good=1, per_defect=1, size=96) / "weave"


def test_the_sheet_shows_the_pictures_and_outlines_what_was_blended() -> None:
    columns = [Blended(weave(96), TEXTURE, 0).sample(n) for n in range(2)]
    sheet = contact_sheet(columns, ["a", "b"], "title")
    for normal, synthetic, mask in columns:
        for picture in (normal, synthetic):
            found = cv2.matchTemplate(sheet, picture, cv2.TM_SQDIFF)
            assert found.min() < 1e-6 * found.max()
        assert mask.any()
    red = (sheet == (60, 60, 255)).all(2)
    assert red.sum() > 50
    assert np.nonzero(red)[0].min() > len(sheet) * (len(ROWS) - 1) / len(ROWS) * 0.9


def test_the_command_writes_the_same_sheet_twice(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = []
    for seed, name in ((0, "a.png"), (0, "b/b.png"), (1, "c.png")):
        flags = [
            "--method",
            "ssnf",
            "--data",
            str(data),
            "--count",
            "3",
            "--size",
            "64",
            "--seed",
            str(seed),
        ]
        assert main([*flags, "--out", str(tmp_path / name)]) == 0
        sheets.append(cv2.imread(str(tmp_path / name)))
    assert f"settings of a texture: {data} is named after no product" in capsys.readouterr().err
    assert sheets[0].shape[0] > 3 * 64
    assert sheets[0].shape[1] > 3 * 64
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_the_command_says_whose_settings_it_took(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--count", "2", "--size", "64", "--out", str(tmp_path / "a.png")]
    assert main(["--data", str(data), "--product", "bottle", *flags]) == 0
    assert "settings of bottle\n" in capsys.readouterr().err
    bottle = tmp_path / "bottle"
    (bottle / "train/good").mkdir(parents=True)
    for k in range(2):
        cv2.imwrite(str(bottle / f"train/good/{k}.png"), np.full((64, 64, 3), 230, np.uint8))
    assert main(["--data", str(bottle), *flags]) == 0
    told = capsys.readouterr().err
    assert "settings of bottle, which the folder is named after" in told
    assert "in 2 of 2 pictures no patch found its place" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--data", "/nowhere/at/all"], "there is no such folder"),
        (
            ["--product", "gearbox"],
            "--product gearbox: is unknown; leave it out or take one of carpet, grid",
        ),
        (["--method", "padim"], "--method"),
        (["--count", "0"], "--count 0"),
        (["--size", "16"], "--size 16"),
        (["--seed", "-1"], "--seed -1"),
        (["--bits", "8"], "--bits 8"),
        (["--out", "/proc/nowhere/a.png"], "cannot be written"),
        (["--colour"], "--colour"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    try:
        code: object = main(
            ["--data", str(data), "--out", str(out), "--size", "64", "--count", "1", *flags]
        )
    except SystemExit as left:  # argparse leaves by itself
        code = left.code
    error = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("settings of")
    ]
    assert code == 2
    assert len(error) == 1
    assert error[0].startswith("train.augment: ")
    assert told in error[0]
    assert not out.exists()


def test_a_broken_picture_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part.png").write_bytes(b"no picture")
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out.png")]) == 2
    assert "part.png" in capsys.readouterr().err.splitlines()[-1]
