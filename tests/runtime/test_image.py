from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest
from conftest import shared

from flawline.runtime.image import Geometry, prepare, prepare_mask, to_source

STRETCH = Geometry("stretch", 256, 256)


@pytest.mark.parametrize("name", ["mvtec_bottle", "magnetic_tile", "elpv_mono"])
def test_resize_is_within_one_grey_level_of_pil_on_photographs(name: str) -> None:
    pil = pytest.importorskip("PIL.Image")
    paths = sorted(shared("data", name, "train", "good").iterdir())[::20]
    errors = []
    for path in paths:
        image = cv2.imread(str(path))
        expected = np.asarray(pil.fromarray(image).resize((256, 256), pil.Resampling.BILINEAR))
        errors.append(np.abs(prepare(image, STRETCH).astype(int) - expected).mean())
    assert np.mean(errors) < 1


def test_halving_first_equals_one_area_resize_of_a_large_image() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8), (0, 0), 3)
    once = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(prepare(image, STRETCH).astype(int) - once).mean() < 1


def test_a_tall_image_is_antialiased_on_the_axis_that_shrinks(photo: np.ndarray) -> None:
    stripes = np.zeros((1001, 100, 3), np.uint8)
    stripes[::2] = 255
    assert np.abs(prepare(stripes, STRETCH).astype(int) - 127).max() < 40


def test_mono_becomes_three_equal_channels(photo: np.ndarray) -> None:
    mono = photo[..., 0]
    prepared = prepare(mono, Geometry("stretch", 64, 64))
    assert prepared.shape == (64, 64, 3)
    assert (prepared[..., :1] == prepared).all()


def test_an_image_of_the_right_size_is_copied_not_shared() -> None:
    image = np.full((64, 64, 3), 7, np.uint8)
    prepared = prepare(image, Geometry("stretch", 64, 64))
    prepared[:] = 0
    assert image.min() == 7


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint16),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_other_types_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8|empty"):
        prepare(image, STRETCH)


def test_shorter_crop_is_simplenets() -> None:
    geometry = Geometry("shorter-crop", 288, 288, 329)
    assert geometry.place(900, 900) == (329, 329, 20, 20)
    assert geometry.place(480, 640) == (329, 438, 20, 75)
    assert "uninspected" in (geometry.uninspected(480, 640) or "")
    assert Geometry("shorter-crop", 256, 256, 256).uninspected(500, 500) is None
    assert STRETCH.uninspected(480, 640) is None


@pytest.mark.parametrize(
    "fields",
    [
        ("zoom", 256, 256),
        ("stretch", 8, 256),
        ("stretch", 256, 256, 300),
        ("shorter-crop", 256, 256),
    ],
)
def test_impossible_geometries_are_refused(fields: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match=r"geometry|input size|shorter"):
        Geometry(*fields)


@pytest.mark.parametrize("kind", ["stretch", "letterbox", "shorter-crop"])
@pytest.mark.parametrize("size", [(300, 500), (500, 300), (64, 64)])
def test_the_inverse_puts_a_mark_back_where_it_was(kind: str, size: tuple[int, int]) -> None:
    geometry = Geometry(kind, 128, 128, 140 if kind == "shorter-crop" else None)
    h, w = size
    y, x = int(0.45 * h), int(0.55 * w)
    image = np.zeros((h, w), np.uint8)
    cv2.circle(image, (x, y), max(4, min(h, w) // 16), 255, -1)
    anomaly_map = prepare(image, geometry)[..., 0].astype(np.float32)
    anomaly_map[anomaly_map < 200] = 0  # the letterbox bars are not black
    located = np.nan_to_num(to_source(anomaly_map, geometry, h, w))
    ys, xs = np.nonzero(located > 100)
    assert located.shape == (h, w)
    assert abs(ys.mean() - y) < 3
    assert abs(xs.mean() - x) < 3


def test_the_margin_of_a_crop_is_nan_in_the_inverse() -> None:
    geometry = Geometry("shorter-crop", 128, 128, 160)
    located = to_source(np.ones((128, 128), np.float32), geometry, 200, 400)
    assert np.isnan(located[0, 0])
    assert located[100, 200] == 1


def test_masks_follow_the_image() -> None:
    mask = np.zeros((300, 500), np.uint8)
    mask[100:200, 200:300] = 3
    for geometry in (
        STRETCH,
        Geometry("letterbox", 256, 256),
        Geometry("shorter-crop", 256, 256, 280),
    ):
        prepared = prepare_mask(mask, geometry)
        image = prepare(mask * 85, geometry)[..., 0] > 127
        image &= prepare_mask(np.ones_like(mask), geometry)  # the bars are grey, not defects
        assert prepared.dtype == bool
        assert (prepared ^ image).mean() < 0.01


def test_golden_numbers() -> None:
    """Bit for bit, on every supported OpenCV: another resize would move every calibrated score."""
    y, x = np.mgrid[0:211, 0:397]
    image = np.stack([(x * 7 + y * 3) % 256, (x * y) % 251, (x ^ y) % 256], -1).astype(np.uint8)
    checksums = {
        geometry.kind: zlib.crc32(prepare(image, geometry).tobytes())
        for geometry in (
            STRETCH,
            Geometry("letterbox", 96, 96),
            Geometry("shorter-crop", 64, 64, 73),
        )
    }
    assert checksums == {"stretch": 1313258415, "letterbox": 297186818, "shorter-crop": 1194027565}
