"""Random changes of textures that also alter their colours completely, as DRAEM's code has them.

Zavrtanik, Kristan and Skočaj (ICCV 2021) name seven such changes. The authors' code (VitjanZ/DRAEM)
draws three of ten, by the library imgaug with the ranges below. That library changes the brightness
in a colour space that it draws, here it is HSV.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image
from flawline.train.anomalies.textures import Operation, equalise, rotate

GAMMA = (0.5, 2.0)
BRIGHTNESS_FACTOR = (0.8, 1.2)
# Largest change of brightness, hue and saturation, of 255. 255 of hue is the whole circle.
BRIGHTNESS = 30.0
COLOUR = 50.0
SHARPNESS = (0.0, 2.0)
SOLARISED_FROM = (32, 128)
# Percent of the values that are clipped at each end.
LARGEST_CUTOFF = 20.0
# The smoothing whose difference to an image is its sharpness.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def change_gamma(image: Image, rng: np.random.Generator) -> Image:
    """Raise each channel, from 0 to 1, to a power between 0.5 and 2."""
    powers = rng.uniform(*GAMMA, 3).astype(np.float32)
    return _rounded(np.asarray(255 * (image.astype(np.float32) / 255) ** powers))


def shift_brightness(image: Image, rng: np.random.Generator) -> Image:
    """Multiply the value of HSV by 0.8 to 1.2 and add up to 30 of 255, in random order."""
    factor = np.float32(rng.uniform(*BRIGHTNESS_FACTOR))
    added = np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    hsv = _hsv(image)
    if rng.random() < 0.5:
        hsv[..., 2] = hsv[..., 2] * factor + added
    else:
        hsv[..., 2] = (hsv[..., 2] + added) * factor
    return _from_hsv(hsv)


def change_sharpness(image: Image, rng: np.random.Generator) -> Image:
    """Scale the difference to the smoothed image by 0 to 2; the border stays as it is."""
    factor = np.float32(rng.uniform(*SHARPNESS))
    pixels = image.astype(np.float32)
    smooth = np.asarray(cv2.filter2D(pixels, -1, SMOOTH))
    changed: Image = image.copy()
    changed[1:-1, 1:-1] = _rounded(smooth + factor * (pixels - smooth))[1:-1, 1:-1]
    return changed


def shift_colour(image: Image, rng: np.random.Generator) -> Image:
    """Turn the hue by up to 50 of 255 of the circle and add up to 50 of 255 to the saturation."""
    turn, added = rng.uniform(-COLOUR, COLOUR, 2).astype(np.float32) / 255
    hsv = _hsv(image)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    hsv[..., 1] = hsv[..., 1] + added
    return _from_hsv(hsv)


def solarise(image: Image, rng: np.random.Generator) -> Image:
    """Invert the values from a threshold of 32 to 128 on, in one of two cases."""
    threshold = int(rng.integers(SOLARISED_FROM[0], SOLARISED_FROM[1] + 1))
    if rng.random() < 0.5:
        return np.array(image)
    return np.asarray(np.where(image >= threshold, 255 - image, image), np.uint8)


def posterise(image: Image, rng: np.random.Generator) -> Image:
    """Keep the highest 1 to 8 bits of every value."""
    dropped = 8 - int(rng.integers(1, 9))
    return np.asarray((image >> dropped) << dropped, np.uint8)


def invert(image: Image, rng: np.random.Generator) -> Image:
    """Subtract every value from 255."""
    return np.asarray(255 - image, np.uint8)


def stretch_most(image: Image, rng: np.random.Generator) -> Image:
    """Clip up to a fifth of the values at each end, and let each channel span 0 to 255."""
    cutoff = float(rng.uniform(0, LARGEST_CUTOFF))
    low, high = np.percentile(image, (cutoff, 100 - cutoff), axis=(0, 1)).astype(np.float32)
    # A constant channel stays as it is.
    span = np.where(high > low, high - low, 255)
    low = np.where(high > low, low, 0)
    return _rounded((image - low) * (np.float32(255) / span))


STRONG_OPERATIONS: tuple[Operation, ...] = (
    change_gamma,
    shift_brightness,
    change_sharpness,
    shift_colour,
    solarise,
    posterise,
    invert,
    stretch_most,
    equalise,
    rotate,
)


def _hsv(image: Image) -> npt.NDArray[np.float32]:
    """Return hue from 0 to 360, saturation from 0 to 1, and value from 0 to 255."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2HSV))


def _from_hsv(hsv: npt.NDArray[np.float32]) -> Image:
    hsv[..., 1] = hsv[..., 1].clip(0, 1)
    hsv[..., 2] = hsv[..., 2].clip(0, 255)
    return _rounded(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)))


def _rounded(values: npt.NDArray[np.float32]) -> Image:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
