"""Changes of an image that a line brings: light, lens, position, compression and noise.

Each is a function of the image and a strength. It takes uint8 or uint16 pixels, mono [h, w] or BGR
[h, w, 3], and returns a new image of the same type and size. Light is changed in pixel values, as
they are stored, and values beyond the largest one are clipped as a sensor does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Perturbation:
    """A change of an image.

    change: takes the image, the strength and the largest value of a pixel.
    strengths: those that are measured.
    neutral: the strength that changes nothing; None where there is none.
    meaning: what a strength is, for tables.
    needs_colour: whether a mono image is not changed.
    """

    change: Callable[[Pixels, float, int], Pixels]
    strengths: tuple[float, ...]
    neutral: float | None
    meaning: str
    needs_colour: bool = False


def perturb(image: Pixels, name: str, strength: float, bit_depth: int = 8) -> Pixels:
    """Return a changed image; it depends on the image and the strength alone.

    image: uint8 or uint16, mono [h, w] or BGR [h, w, 3].
    name: a key of PERTURBATIONS.
    bit_depth: significant bits of uint16.
    """
    if image.dtype == np.uint8:
        bit_depth = 8
    return PERTURBATIONS[name].change(image, strength, 2**bit_depth - 1)


def _stored(values: npt.NDArray[np.floating[Any]], image: Pixels, largest: int) -> Pixels:
    """Round and clip values to what the pixels of an image can be."""
    stored: Pixels = np.clip(np.rint(values), 0, largest).astype(image.dtype)
    return stored


def _gain(image: Pixels, strength: float, largest: int) -> Pixels:
    return _stored(image.astype(np.float32) * strength, image, largest)


def _gamma(image: Pixels, strength: float, largest: int) -> Pixels:
    share = image.astype(np.float32) / largest
    return _stored(largest * share**strength, image, largest)


def _colour_temperature(image: Pixels, strength: float, largest: int) -> Pixels:
    """Multiply red and divide blue: above 1 the light is warmer."""
    if image.ndim == 2:
        return np.array(image)
    factors = np.array([1 / strength, 1, strength], np.float32)
    return _stored(image.astype(np.float32) * factors, image, largest)


def _vignette(image: Pixels, strength: float, largest: int) -> Pixels:
    """Darken by the square of the distance from the centre, by `strength` in the corners."""
    height, width = image.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    factors = 1 - strength * (rows**2 + columns**2) / 2
    if image.ndim == 3:
        factors = factors[..., None]
    return _stored(image.astype(np.float32) * factors, image, largest)


def _shift(image: Pixels, strength: float, largest: int) -> Pixels:
    """Move the part down and to the right by whole pixels; the edges are repeated."""
    pixels = round(strength)
    if not pixels:
        return np.array(image)
    moved = cv2.copyMakeBorder(image, pixels, 0, pixels, 0, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(moved[:-pixels, :-pixels])


def _blur(image: Pixels, strength: float, largest: int) -> Pixels:
    if not strength:
        return np.array(image)
    blurred = cv2.GaussianBlur(image, (0, 0), strength, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, image.dtype)


def _jpeg(image: Pixels, strength: float, largest: int) -> Pixels:
    """Compress and decompress. JPEG has 8 bits, so that lower bits of deeper images are lost."""
    shift = largest.bit_length() - 8
    shallow = (image >> shift).astype(np.uint8)
    done, data = cv2.imencode(".jpg", shallow, [cv2.IMWRITE_JPEG_QUALITY, round(strength)])
    assert done
    flag = cv2.IMREAD_GRAYSCALE if image.ndim == 2 else cv2.IMREAD_COLOR
    decoded = cv2.imdecode(data, flag)
    assert decoded is not None
    return decoded.astype(image.dtype) << shift


def _noise(image: Pixels, strength: float, largest: int) -> Pixels:
    """Add Gaussian noise of a standard deviation in grey levels of 8 bits."""
    # The pixels are the seed: the same image always gets the same noise, in any order of images.
    rng = np.random.default_rng(zlib.crc32(image.tobytes()))
    noise = rng.standard_normal(image.shape, np.float32)
    return _stored(image + strength * (largest + 1) / 256 * noise, image, largest)


PERTURBATIONS = {
    "gain": Perturbation(_gain, (0.7, 0.85, 1.2, 1.4), 1, "factor of the values"),
    "gamma": Perturbation(_gamma, (0.8, 1.25), 1, "exponent of the values"),
    "colour temperature": Perturbation(
        _colour_temperature, (0.9, 1.1), 1, "factor of red, divisor of blue", needs_colour=True
    ),
    "vignette": Perturbation(_vignette, (0.3,), 0, "share of the light lost in the corners"),
    "shift": Perturbation(_shift, (3,), 0, "pixels of the source image, down and right"),
    "blur": Perturbation(_blur, (1, 2), 0, "standard deviation in pixels of the source image"),
    "JPEG": Perturbation(_jpeg, (75,), None, "quality"),
    "noise": Perturbation(_noise, (5,), 0, "standard deviation in grey levels of 255"),
}
