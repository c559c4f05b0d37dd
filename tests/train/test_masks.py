"""Masks of any depth, colour and palette; damaged and misplaced ones are errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from flawline.runtime.image import Geometry
from flawline.train.data import DataError, Sample, read_mask
from flawline.train.data.masks import decode_mask

DEFECT = np.zeros((256, 256), np.uint8)
DEFECT[100:140, 60:120] = 1
ZERO = np.zeros_like(DEFECT)
OPAQUE = np.full_like(DEFECT, 255)
STRETCH = Geometry("stretch", 256, 256)


def layers(*channels: np.ndarray) -> np.ndarray:
    return np.dstack(channels)


KINDS: dict[str, tuple[str, np.ndarray]] = {
    "8 bits, 255": (".png", DEFECT * 255),
    "8 bits, 1": (".png", DEFECT),
    "8 bits, BMP": (".bmp", DEFECT),
    "8 bits, lossless WebP": (".webp", layers(DEFECT * 9, DEFECT * 9, DEFECT * 9)),
    "16 bits, 1": (".png", DEFECT.astype(np.uint16)),
    "16 bits, 255": (".tif", DEFECT.astype(np.uint16) * 255),
    "16 bits, 65535": (".png", DEFECT.astype(np.uint16) * 65535),
    "32 bits": (".tif", DEFECT.astype(np.int32) * 70000),
    "float": (".tif", DEFECT.astype(np.float32)),
    "float below 1": (".tif", DEFECT.astype(np.float32) * 1e-3),
    "double": (".tif", DEFECT.astype(np.float64)),
    "colour that is almost black": (".png", layers(DEFECT, ZERO, ZERO)),
    "16-bit colour": (".png", layers(ZERO, ZERO, DEFECT).astype(np.uint16)),
    "colour on transparency": (".png", layers(ZERO, ZERO, DEFECT * 255, DEFECT * 255)),
    "opacity alone": (".png", layers(ZERO, ZERO, ZERO, DEFECT * 255)),
    "half-transparent red everywhere": (".png", layers(ZERO, ZERO, OPAQUE, DEFECT * 128)),
    "opaque": (".png", layers(DEFECT, DEFECT, DEFECT, OPAQUE)),
    "JPEG": (".jpg", DEFECT * 255),
    "colour JPEG": (".jpg", layers(DEFECT * 255, DEFECT * 255, DEFECT * 255)),
}


def write(path: Path, pixels: np.ndarray, *options: int) -> Path:
    if path.suffix == ".webp":
        options = (cv2.IMWRITE_WEBP_QUALITY, 101)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels, list(options))[1].tobytes())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_any_kind_marks_its_defect(kind: str, tmp_path: Path) -> None:
    suffix, pixels = KINDS[kind]
    mask = decode_mask(write(tmp_path / f"m{suffix}", pixels))
    assert mask.dtype == bool
    assert np.array_equal(mask, DEFECT > 0)


def test_masks_of_one_bit_and_of_a_palette(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image", reason="writes palettes")
    images.fromarray(DEFECT * 255).convert("1").save(tmp_path / "bit.png")
    images.fromarray(DEFECT * 255).convert("1").save(tmp_path / "bit.tif")
    palette = images.fromarray(DEFECT).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 1, 9, 9, 9])
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "transparent.png", transparency=0)
    palette.save(tmp_path / "palette.bmp")
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(decode_mask(path), DEFECT > 0), path.name


@pytest.mark.parametrize("alpha", [ZERO, OPAQUE], ids=["transparent", "opaque"])
def test_a_black_mask_is_empty(alpha: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", layers(ZERO, ZERO, ZERO, alpha))
    assert not decode_mask(path).any()


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def with_hole(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(8) + data[middle + 8 :]


@pytest.mark.parametrize("kind", ["8 bits, 255", "16 bits, 1", "opacity alone", "JPEG", "float"])
@pytest.mark.parametrize("damage", [cut, lambda data: b"", lambda data: b"rubbish"])
def test_a_damaged_mask_is_an_error(
    kind: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    suffix, pixels = KINDS[kind]
    path = write(tmp_path / f"m{suffix}", pixels)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"mask {re.escape(str(path))}: ") as caught:
        read_mask(Sample(tmp_path / "0.png", "dent", path), STRETCH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["8 bits, 255", "16 bits, 1", "opacity alone"])
def test_a_hole_in_a_png_mask_is_an_error(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", KINDS[kind][1])
    path.write_bytes(with_hole(path.read_bytes()))
    with pytest.raises(DataError):
        decode_mask(path)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint32])
@pytest.mark.parametrize("rows", [256, 100])
def test_a_hole_in_a_compressed_tiff_mask_is_an_error(
    kind: type[np.generic], rows: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0).integers(0, 2, (256, 256)).astype(kind)
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, random, compression="zlib", rowsperstrip=rows)
    assert np.array_equal(decode_mask(path), random > 0)
    path.write_bytes(with_hole(path.read_bytes()))
    with pytest.raises(DataError, match="the TIFF is damaged"):
        decode_mask(path)


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tif", np.where(DEFECT > 0, np.nan, 0).astype(np.float32))
    with pytest.raises(DataError, match="not finite; save it as a PNG of black and white"):
        decode_mask(path)


def test_an_absent_mask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mask .*gone.png: cannot be read"):
        decode_mask(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "geometry",
    [
        STRETCH,
        Geometry("letterbox", 256, 256),
        Geometry("shorter-crop", 256, 256, shorter=292),
    ],
    ids=lambda geometry: geometry.kind,
)
def test_a_mask_of_another_shape_lands_in_the_right_place(
    geometry: Geometry, tmp_path: Path
) -> None:
    defect = np.zeros((320, 640), np.uint8)
    defect[100:200, 300:400] = 255
    image = write(tmp_path / "image.png", defect)
    full = write(tmp_path / "full.png", defect)
    square = cv2.resize(defect, (256, 256), interpolation=cv2.INTER_NEAREST)
    small = write(tmp_path / "square.png", square)
    expected = read_mask(Sample(image, "dent", full), geometry)
    mask = read_mask(Sample(image, "dent", small), geometry)
    assert expected.any()
    assert (mask & expected).sum() > 0.97 * (mask | expected).sum()


def test_a_mask_that_is_turned_is_an_error(tmp_path: Path) -> None:
    image = write(tmp_path / "image.png", np.zeros((32, 64), np.uint8))
    mask = write(tmp_path / "mask.png", np.zeros((64, 32), np.uint8))
    with pytest.raises(DataError, match="is 32x64 pixels and its image 64x32; turn the mask"):
        read_mask(Sample(image, "dent", mask), Geometry("letterbox", 64, 64))
