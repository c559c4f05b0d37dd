"""The pixel formats of Video4Linux: each FOURCC gives the picture that its name stands for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flawline.cameras.formats.jpeg import jpeg_segments
from flawline.cameras.v4l2_pixels import (
    COMPRESSED,
    PACKED_YUV,
    PLANAR_YUV,
    RAW,
    READ,
    BufferFormat,
    bits_of,
    decode_picture,
    fourcc_code,
    fourcc_name,
)

HEIGHT = 6
WIDTH = 8
# Red pixels, as most formats store them.
BGR = (10, 20, 200)


def planes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Luma [h, w] and the two chroma planes [h/2, w/2] of a random picture."""
    random = np.random.default_rng(3)
    luma = random.integers(16, 235, (HEIGHT, WIDTH)).astype(np.uint8)
    blue, red = random.integers(16, 240, (2, HEIGHT // 2, WIDTH // 2)).astype(np.uint8)
    return luma, blue, red


def planar(name: str) -> bytes:
    luma, blue, red = planes()
    order = {
        "NV12": np.stack((blue, red), 2),
        "NV21": np.stack((red, blue), 2),
        "YU12": np.stack((blue, red)),
        "YV12": np.stack((red, blue)),
    }
    return luma.tobytes() + order[name].tobytes()


def packed(name: str) -> np.ndarray:
    """Return a picture whose rows share their chroma in pairs, uint8 [h, 2 w]."""
    luma, blue, red = planes()
    values = {"Y": luma, "U": blue.repeat(2, 0), "V": red.repeat(2, 0)}
    data = np.empty((HEIGHT, WIDTH // 2, 4), np.uint8)
    seen = 0
    for place, letter in enumerate(name):
        channel = values[letter]
        if letter == "Y":
            channel = luma[:, seen::2]
            seen += 1
        data[..., place] = channel
    return data.reshape(HEIGHT, 2 * WIDTH)


def array(data: bytes | np.ndarray) -> np.ndarray:
    """Return the bytes as a buffer that cannot be written, as the driver's."""
    return np.frombuffer(bytes(data), np.uint8)


def reference() -> np.ndarray:
    """The picture of `planes` by the definition of BT.601, float32 [h, w, 3] BGR."""
    luma, blue, red = (plane.astype(np.float32) for plane in planes())
    blue = blue.repeat(2, 0).repeat(2, 1) - 128
    red = red.repeat(2, 0).repeat(2, 1) - 128
    scaled = 1.164 * (luma - 16)
    bgr = [scaled + 2.018 * blue, scaled - 0.391 * blue - 0.813 * red, scaled + 1.596 * red]
    return np.clip(np.stack(bgr, 2), 0, 255)


@pytest.mark.parametrize("name", PLANAR_YUV)
def test_planar_yuv(name: str) -> None:
    image = BufferFormat(name, WIDTH, HEIGHT, WIDTH).image(array(planar(name)))
    assert image.dtype == np.uint8
    assert np.abs(image - reference()).max() <= 2


@pytest.mark.parametrize("name", PACKED_YUV)
@pytest.mark.parametrize("padding", [0, 16])
def test_packed_yuv(name: str, padding: int) -> None:
    rows = np.pad(packed(name), ((0, 0), (0, padding)), constant_values=255)
    image = BufferFormat(name, WIDTH, HEIGHT, 2 * WIDTH + padding).image(array(rows))
    assert np.abs(image - reference()).max() <= 2


def test_padded_rows_of_planar_yuv() -> None:
    rows = array(planar("NV12")).reshape(-1, WIDTH)
    padded = np.pad(rows, ((0, 0), (0, 8)), constant_values=255)
    image = BufferFormat("NV12", WIDTH, HEIGHT, WIDTH + 8).image(array(padded))
    assert np.abs(image - reference()).max() <= 2
    with pytest.raises(ValueError, match="rows of YU12 are padded; give another pixel_format"):
        BufferFormat("YU12", WIDTH, HEIGHT, WIDTH + 8).image(array(padded))


@pytest.mark.parametrize("name", ["RGB3", "BGR3", "AB24", "AR24", "XB24", "XR24"])
def test_colour(name: str) -> None:
    # In the order of the bytes, by the kernel's documentation.
    order = {"RGB3": "RGB", "BGR3": "BGR", "AB24": "RGBA", "AR24": "BGRA"}
    order |= {"XB24": "RGBA", "XR24": "BGRA"}
    values = dict(zip("BGRA", (*BGR, 7), strict=True))
    pixel = [values[letter] for letter in order[name]]
    data = np.tile(np.array(pixel, np.uint8), (HEIGHT, WIDTH))
    image = BufferFormat(name, WIDTH, HEIGHT, data.shape[1]).image(array(data))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert (image == BGR).all()


# FOURCC -> the first two pixels of the first and of the second row, and the bits.
MOSAICS = {
    "BA81": ("BGGR", 8),
    "GBRG": ("GBRG", 8),
    "GRBG": ("GRBG", 8),
    "RGGB": ("RGGB", 8),
    "BG10": ("BGGR", 10),
    "GB10": ("GBRG", 10),
    "BA10": ("GRBG", 10),
    "RG10": ("RGGB", 10),
    "BG12": ("BGGR", 12),
    "GB12": ("GBRG", 12),
    "BA12": ("GRBG", 12),
    "RG12": ("RGGB", 12),
    "BYR2": ("BGGR", 16),
    "GB16": ("GBRG", 16),
    "GR16": ("GRBG", 16),
    "RG16": ("RGGB", 16),
}


@pytest.mark.parametrize("name", MOSAICS)
def test_bayer(name: str) -> None:
    order, bits = MOSAICS[name]
    dtype = np.uint8 if bits == 8 else np.uint16
    mosaic = np.empty((HEIGHT, WIDTH), dtype)
    for place, letter in enumerate(order):
        mosaic[place // 2 :: 2, place % 2 :: 2] = BGR["BGR".index(letter)]
    image = BufferFormat(name, WIDTH, HEIGHT, mosaic.strides[0]).image(array(mosaic.tobytes()))
    assert image.dtype == dtype
    assert (image == BGR).all()
    assert bits_of(name) == bits


@pytest.mark.parametrize(("name", "bits"), [("Y10", 10), ("Y12", 12), ("Y14", 14), ("Y16", 16)])
def test_deep_mono(name: str, bits: int) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) << (bits - 6)
    image = BufferFormat(name, WIDTH, HEIGHT, 2 * WIDTH).image(array(values.tobytes()))
    assert image.dtype == np.uint16
    assert np.array_equal(image, values)
    assert bits_of(name) == bits


def test_every_format_has_its_test() -> None:
    tested = {*MOSAICS, "GREY", "Y10", "Y12", "Y14", "Y16", *PACKED_YUV, *PLANAR_YUV, *COMPRESSED}
    tested |= {"RGB3", "BGR3", "AB24", "AR24", "XB24", "XR24"}
    assert tested == set(READ)
    assert set(RAW) <= tested


@pytest.mark.parametrize("name", ["GREY", "Y12", "YUYV", "NV12", "BGR3"])
def test_a_short_buffer_is_an_error(name: str) -> None:
    row = {"GREY": 8, "Y12": 16, "YUYV": 16, "NV12": 8, "BGR3": 24}[name]
    size = row * HEIGHT * (3 if name == "NV12" else 2) // 2
    layout = BufferFormat(name, WIDTH, HEIGHT, row)
    assert layout.image(array(bytes(size))).shape[:2] == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="of 8x6 pixels"):
        layout.image(array(bytes(size // 3)))


def test_names_and_numbers() -> None:
    for name in READ:
        assert fourcc_name(fourcc_code(name)) == name
    # V4L2_PIX_FMT_YUYV, V4L2_PIX_FMT_Y16 and V4L2_PIX_FMT_Y16_BE.
    assert fourcc_code("YUYV") == 0x56595559
    assert fourcc_code("Y16") == 0x20363159
    assert fourcc_name(0x20363159 | 1 << 31) == "Y16-BE"


# ---------------------------------------------------------------- JPEG


def jpeg(photo: np.ndarray) -> bytes:
    # OpenCV uses the tables of the standard, as cameras do.
    return cv2.imencode(".jpg", photo)[1].tobytes()


def test_a_jpeg_without_tables_has_those_of_the_standard(photo: np.ndarray) -> None:
    whole = jpeg(photo)
    without = bytearray(whole)
    removed = 0
    for marker, content, position in list(jpeg_segments(whole)):
        if marker == 0xC4:
            start = position - removed
            del without[start : start + 4 + len(content)]
            removed += 4 + len(content)
    assert removed > 400
    image = decode_picture(bytes(without))
    assert np.array_equal(image, cv2.imdecode(np.frombuffer(whole, np.uint8), 1))
    lost = bytearray(without)
    lost[-600:-300] = bytes(300)
    with pytest.raises(ValueError, match="the JPEG is damaged"):
        decode_picture(bytes(lost))


def test_damage_in_a_jpeg_is_an_error_in_one_line(photo: np.ndarray) -> None:
    whole = jpeg(photo)
    scan = next(position for marker, _, position in jpeg_segments(whole) if marker == 0xDA)
    damaged = bytearray(whole)
    middle = (scan + len(whole)) // 2
    damaged[middle : middle + 40] = np.random.default_rng(0).bytes(40)
    for bad in (whole[: len(whole) // 2], whole[:-2], bytes(damaged), b"", b"\x89PNG"):
        with pytest.raises(ValueError, match="JPEG") as caught:
            decode_picture(bytes(bad))
        assert "file" not in str(caught.value)
