"""Foreign textures that anomalies are made of, and random changes of them.

They are drawn by formulas, or cut out of the images of a folder, such as the Describable Textures
Dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch

from flawline.cameras.decode import FORMATS, list_images, read_image
from flawline.runtime.image import Geometry, Image, prepare
from flawline.train import TrainError
from flawline.train.pretrain.textures import Textures

Shape = tuple[int, int]  # height, width
Operation = Callable[[Image, np.random.Generator], Image]

# Procedural textures: classes, how many images there are, and how many are drawn together.
CLASSES = 300
IMAGES = 240
DRAWN_TOGETHER = 8
READ_IMAGES = 64  # images of a folder that are kept in memory
# Operations that `altered` applies.
APPLIED = 3
# Largest relative change of contrast, brightness and saturation; of the hue in turns; and of the
# rotation in degrees.
JITTER = 0.2
HUE = 0.2
ROTATION = 45.0
# Of blue, green and red in the grey value.
GREY = np.array([0.114, 0.587, 0.299], np.float32)


class TextureSource(Protocol):
    """Where textures come from."""

    @property
    def description(self) -> str:
        """What the textures are, in a few words."""

    def texture(self, shape: Shape, rng: np.random.Generator) -> Image:
        """Return a random texture, uint8 [H, W, 3] BGR of this height and width."""


def open_textures(folder: str | None, seed: int) -> TextureSource:
    """Return the textures of a folder, or procedural ones for None. Raises TrainError."""
    if folder is None:
        return ProceduralTextures(seed)
    return TextureFolder(Path(folder))


class ProceduralTextures:
    """Textures that are drawn by formulas: a `TextureSource`.

    A texture is drawn when it is first needed and is then kept in memory, 0.2 MB for 256 x 256
    pixels, also for later objects of the same seed. Each is a function of the seed and its number
    alone.
    """

    description = "procedural textures"

    def __init__(self, seed: int, images: int = IMAGES) -> None:
        self.seed = seed
        self.images = images

    def texture(self, shape: Shape, rng: np.random.Generator) -> Image:
        number = int(rng.integers(self.images))
        side = max(shape)
        group, place = divmod(number, DRAWN_TOGETHER)
        drawn = _drawn_group(self.seed, group, side)[place]
        top = int(rng.integers(side - shape[0] + 1))
        left = int(rng.integers(side - shape[1] + 1))
        return np.array(drawn[top : top + shape[0], left : left + shape[1]])


@lru_cache(IMAGES // DRAWN_TOGETHER)
def _drawn_group(seed: int, group: int, side: int) -> npt.NDArray[np.uint8]:
    """Return a group of textures, uint8 [DRAWN_TOGETHER, side, side, 3]."""
    generator = torch.Generator().manual_seed((seed << 20) + group)
    batch = Textures(CLASSES, seed).batch(DRAWN_TOGETHER, side, generator, mixed=True)
    pixels = (255 * batch.images).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


class TextureFolder:
    """The images of a folder and its subfolders: a `TextureSource`.

    An image is scaled until its shorter side is the longer one of the texture, and the centre is
    cut out. Raises TrainError for a folder without images, and CameraError for a file that cannot
    be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise TrainError(f"--textures {folder}: there is no such folder; give one of images")
        self.paths = list_images(folder)
        if not self.paths:
            raise TrainError(
                f"--textures {folder}: there are no images; give a folder of {FORMATS} files"
            )
        self.description = f"textures of {folder}"
        self._read = lru_cache(READ_IMAGES)(self._prepared)

    def _prepared(self, number: int, shape: Shape) -> Image:
        geometry = Geometry("shorter-crop", shape[0], shape[1], max(shape))
        return prepare(read_image(self.paths[number]), geometry)

    def texture(self, shape: Shape, rng: np.random.Generator) -> Image:
        return np.array(self._read(int(rng.integers(len(self.paths))), shape))


# ---------------------------------------------------------------- random changes


def altered(
    image: Image, rng: np.random.Generator, operations: Sequence[Operation] | None = None
) -> Image:
    """Apply three different operations, drawn at random, to an image, uint8 [H, W, 3] BGR.

    operations: those that are drawn from; the default is `OPERATIONS`.
    """
    known = OPERATIONS if operations is None else operations
    for number in rng.choice(len(known), APPLIED, replace=False).tolist():
        image = known[number](image, rng)
    return image


def change_contrast(image: Image, rng: np.random.Generator) -> Image:
    """Move all values away from the mean grey value, or towards it, by up to a fifth."""
    mean = float((image.astype(np.float32) @ GREY).mean())
    factor = 1 + rng.uniform(-JITTER, JITTER)
    return _rounded(mean + (image - np.float32(mean)) * np.float32(factor))


def change_brightness(image: Image, rng: np.random.Generator) -> Image:
    """Multiply all values by a factor between 0.8 and 1.2."""
    return _rounded(image * np.float32(1 + rng.uniform(-JITTER, JITTER)))


def change_colour(image: Image, rng: np.random.Generator) -> Image:
    """Change the saturation by up to a fifth and turn the hue by up to a fifth of the circle."""
    pixels = image.astype(np.float32)
    grey = (pixels @ GREY)[..., None]
    factor = np.float32(1 + rng.uniform(-JITTER, JITTER))
    pixels = np.clip(grey + (pixels - grey) * factor, 0, 255)
    hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * np.float32(rng.uniform(-HUE, HUE))) % 360
    return _rounded(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)))


def flip_horizontally(image: Image, rng: np.random.Generator) -> Image:
    """Exchange left and right."""
    return np.ascontiguousarray(image[:, ::-1])


def flip_vertically(image: Image, rng: np.random.Generator) -> Image:
    """Exchange top and bottom."""
    return np.ascontiguousarray(image[::-1])


def to_grey(image: Image, rng: np.random.Generator | None = None) -> Image:
    """Give all three channels the grey value."""
    grey = _rounded(image.astype(np.float32) @ GREY)
    return np.repeat(grey[..., None], 3, 2)


def stretch_contrast(image: Image, rng: np.random.Generator) -> Image:
    """Let each channel span 0 to 255; a constant channel stays as it is."""
    low = image.min((0, 1)).astype(np.float32)
    high = image.max((0, 1)).astype(np.float32)
    span = np.where(high > low, high - low, 255)
    low = np.where(high > low, low, 0)
    return _rounded((image - low) * (np.float32(255) / span))


def equalise(image: Image, rng: np.random.Generator) -> Image:
    """Equalise the histogram of each channel."""
    return np.stack([cv2.equalizeHist(np.ascontiguousarray(plane)) for plane in _planes(image)], 2)


def rotate(image: Image, rng: np.random.Generator) -> Image:
    """Rotate by up to 45 degrees around the centre; the image is continued by reflection.

    The authors of the methods leave the corners black.
    """
    height, width = image.shape[:2]
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, float(rng.uniform(-ROTATION, ROTATION)), 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8)


OPERATIONS: tuple[Operation, ...] = (
    change_contrast,
    change_brightness,
    change_colour,
    flip_horizontally,
    flip_vertically,
    to_grey,
    stretch_contrast,
    equalise,
    rotate,
)


def is_grey(image: Image) -> bool:
    """Whether the three channels of an image, [H, W, 3], are equal."""
    return bool((image == image[..., :1]).all())


def _planes(image: Image) -> list[Image]:
    return [image[..., channel] for channel in range(3)]


def _rounded(values: npt.NDArray[np.float32]) -> Image:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
