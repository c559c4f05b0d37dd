"""Pixel formats of machine-vision cameras: every bit at its place, as PFNC defines them."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from flawline.cameras.genicam_pixels import PixelFormat, parse_pixel_format

HEIGHT = 6
WIDTH = 8


def format_of(name: str) -> PixelFormat:
    parsed = parse_pixel_format(name)
    assert parsed is not None
    return parsed


def pixels(bits: int, width: int = WIDTH) -> np.ndarray:
    """Random values of so many bits, uint8 or uint16 [h, w]."""
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, width)).astype(dtype)


def pack(image: np.ndarray, bits: int) -> np.ndarray:
    """Write values one after the other, lowest bit first: PFNC's packing "p"."""
    stream = 0
    for position, value in enumerate(image.ravel()):
        stream |= int(value) << position * bits
    size = (image.size * bits + 7) // 8
    return np.frombuffer(stream.to_bytes(size, "little"), np.uint8)


def pack_gige(image: np.ndarray, bits: int) -> np.ndarray:
    """Write two values into three bytes: GigE Vision's packing."""
    low = bits - 8
    data = bytearray()
    values = [int(value) for value in image.ravel()]
    values += [0] * (len(values) % 2)
    for first, second in zip(values[::2], values[1::2], strict=True):
        mask = (1 << low) - 1
        data += bytes([first >> low, first & mask | (second & mask) << 4, second >> low])
    size = (image.size * 12 + 7) // 8
    return np.frombuffer(bytes(data[:size]), np.uint8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_mono_keeps_every_bit_in_a_new_array(bits: int) -> None:
    image = pixels(bits)
    buffer = np.frombuffer(image.tobytes(), np.uint8).copy()
    parsed = format_of(f"Mono{bits}")
    read = parsed.image(buffer, WIDTH, HEIGHT)
    buffer[:] = 0
    assert read.dtype == image.dtype
    assert np.array_equal(read, image)
    assert parsed.bits == bits


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("width", [8, 7, 5])
def test_a_stream_of_bits_is_unpacked(bits: int, width: int) -> None:
    image = pixels(bits, width)
    read = format_of(f"Mono{bits}p").image(pack(image, bits), width, HEIGHT)
    assert read.dtype == np.uint16
    assert np.array_equal(read, image)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("width", [8, 7])
def test_the_packing_of_gige_vision_is_unpacked(bits: int, width: int) -> None:
    image = pixels(bits, width)
    read = format_of(f"Mono{bits}Packed").image(pack_gige(image, bits), width, HEIGHT)
    assert np.array_equal(read, image)


def test_the_published_bytes_of_12_packed_bits() -> None:
    # The values 0xABC and 0x123, in the two orders.
    stream = np.array([0xBC, 0x3A, 0x12], np.uint8)
    gige = np.array([0xAB, 0x3C, 0x12], np.uint8)
    expected = [[0xABC, 0x123]]
    assert format_of("Mono12p").image(stream, 2, 1).tolist() == expected
    assert format_of("Mono12Packed").image(gige, 2, 1).tolist() == expected


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "Mono12p", "RGB8"])
def test_padding_at_the_end_of_rows_is_left_out(name: str) -> None:
    parsed = format_of(name)
    plain = np.random.default_rng(1).integers(0, 16, (HEIGHT, parsed.row_bytes(WIDTH)))
    plain = plain.astype(np.uint8)
    padded = np.pad(plain, ((0, 0), (0, 3)), constant_values=255).ravel()
    expected = parsed.image(plain.ravel(), WIDTH, HEIGHT)
    assert np.array_equal(parsed.image(padded, WIDTH, HEIGHT, padding=3), expected)
    assert np.array_equal(parsed.image(padded[:-3], WIDTH, HEIGHT, padding=3), expected)


@pytest.mark.parametrize("pattern", ["RG", "GR", "GB", "BG"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_bayer_gives_the_colour_of_its_name(pattern: str, bits: int) -> None:
    colours = {"B": 10, "G": 100, "R": 200}
    order = pattern + {"RG": "GB", "GR": "BG", "GB": "RG", "BG": "GR"}[pattern]
    dtype = np.uint8 if bits == 8 else np.uint16
    mosaic = np.empty((HEIGHT, WIDTH), dtype)
    for place, letter in enumerate(order):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colours[letter]
    buffer = np.frombuffer(mosaic.tobytes(), np.uint8)
    read = format_of(f"Bayer{pattern}{bits}").image(buffer, WIDTH, HEIGHT)
    assert read.shape == (HEIGHT, WIDTH, 3)
    assert read.dtype == dtype
    assert (read == [10, 100, 200]).all()


def test_packed_bayer_is_unpacked_first() -> None:
    image = pixels(12)
    read = format_of("BayerRG12p").image(pack(image, 12), WIDTH, HEIGHT)
    assert np.array_equal(read, cv2.cvtColor(image, cv2.COLOR_BayerRGGB2BGR))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("RGB8", "RGB"),
        ("RGB8Packed", "RGB"),
        ("BGR8", "BGR"),
        ("BGR8Packed", "BGR"),
        ("RGBa8", "RGBA"),
        ("BGRA8Packed", "BGRA"),
        ("RGB16Packed", "RGB"),
        ("BGR16", "BGR"),
    ],
)
def test_colour_becomes_bgr_and_a_fourth_channel_is_left_out(name: str, order: str) -> None:
    values = {"B": 10, "G": 100, "R": 200, "A": 7}
    parsed = format_of(name)
    dtype = np.uint8 if parsed.bits == 8 else np.uint16
    image = np.empty((HEIGHT, WIDTH, len(order)), dtype)
    for channel, letter in enumerate(order):
        image[..., channel] = values[letter]
    read = parsed.image(np.frombuffer(image.tobytes(), np.uint8), WIDTH, HEIGHT)
    assert read.dtype == dtype
    assert (read == [10, 100, 200]).all()
    assert read.shape[2] == 3


@pytest.mark.parametrize(
    "name", ["YUV422_8", "Mono1p", "Coord3D_C16", "RGB10p", "Mono14Packed", "BayerXY8", "RGB12"]
)
def test_other_formats_are_not_read(name: str) -> None:
    assert parse_pixel_format(name) is None


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "Mono12p", "RGB8"])
def test_a_short_buffer_is_an_error(name: str) -> None:
    parsed = format_of(name)
    size = parsed.row_bytes(WIDTH) * HEIGHT
    assert parsed.image(np.zeros(size, np.uint8), WIDTH, HEIGHT).shape[:2] == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=f"holds {size - 1} bytes, not the {size} of 8x6 pixels"):
        parsed.image(np.zeros(size - 1, np.uint8), WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "BayerRG8", "BayerRG12", "RGB8"])
@pytest.mark.parametrize("padding", [0, 8])
def test_a_frame_is_written_once(name: str, padding: int) -> None:
    parsed = format_of(name)
    buffer = np.zeros((parsed.row_bytes(1000) + padding) * 1000, np.uint8)
    parsed.image(buffer, 1000, 1000, padding)
    tracemalloc.start()
    try:
        image = parsed.image(buffer, 1000, 1000, padding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert image.nbytes <= peak < 1.1 * image.nbytes


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "BGR8"])
def test_a_buffer_that_is_kept_is_not_copied(name: str) -> None:
    parsed = format_of(name)
    buffer = np.zeros(parsed.row_bytes(WIDTH) * HEIGHT, np.uint8)
    image = parsed.image(buffer, WIDTH, HEIGHT, is_kept=True)
    assert np.shares_memory(image, buffer)
    assert image.flags.c_contiguous
    padded = np.zeros((parsed.row_bytes(WIDTH) + 4) * HEIGHT, np.uint8)
    image = parsed.image(padded, WIDTH, HEIGHT, padding=4, is_kept=True)
    assert image.flags.c_contiguous
