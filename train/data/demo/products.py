"""The products with their defects, and `render`, which makes one image and its mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flawline.train.data.demo.bearing import build_bearing
from flawline.train.data.demo.board import build_board
from flawline.train.data.demo.defects import SURFACE_DEFECTS
from flawline.train.data.demo.exposure import light_scene, photograph
from flawline.train.data.demo.scene import Scene
from flawline.train.data.demo.shapes import Rng
from flawline.train.data.demo.shot import Shot, draw_shot
from flawline.train.data.demo.surfaces import build_metal, build_weave

VERSION = 1  # version of the images: raise it whenever a change alters a single pixel
SMALLEST_SIZE = 64


class _Builder(Protocol):
    """Builds the scene of one piece, n x n pixels.

    `defect` is passed with its own random stream because only the builder can leave out or misplace
    a part; defects of the surface are laid onto the scene afterwards.
    """

    def __call__(
        self, rng: Rng, shot: Shot, n: int, defect_rng: Rng, defect: str | None
    ) -> Scene: ...


@dataclass(frozen=True)
class Product:
    """A product of the demo data.

    `severity` is the range of its surface defects, from the faintest to the clearest: a busy
    surface hides more than a plain one. `monochrome` says whether its camera has no colour.
    """

    build: _Builder
    defects: tuple[str, ...]
    severity: tuple[float, float]
    monochrome: bool = False


PRODUCTS = {
    "weave": Product(
        build_weave,
        defects=("contamination", "hole", "stain", "thread_pull"),
        severity=(0.45, 1.0),
    ),
    "metal": Product(
        build_metal,
        defects=("contamination", "dent", "scratch", "stain"),
        severity=(0.0, 0.6),
        monochrome=True,
    ),
    "bearing": Product(
        build_bearing,
        defects=("contamination", "dent", "missing_part", "scratch"),
        severity=(0.15, 0.9),
    ),
    "board": Product(
        build_board,
        defects=("contamination", "misplaced_part", "missing_part", "scratch"),
        severity=(0.6, 1.0),
    ),
}


def render(
    name: str, defect: str | None, seed: int, size: int = 320
) -> tuple[np.ndarray, np.ndarray]:
    """Render one image of a product and its mask.

    Returns uint8 [size, size, 3] BGR and uint8 [size, size] of 0 or 255, all 0 without a defect.
    Equal arguments give equal bytes, independent of what was rendered before. With the same seed
    the good and the defective image show the same piece. Raises ValueError for an unknown product
    or defect, a seed below 0 or a size below 64.
    """
    return render_shot(name, defect, seed, size, shot_of(name, seed))


def shot_of(name: str, seed: int) -> Shot:
    """Return the exposure that `render` gives a seed. Raises ValueError for an unknown product."""
    _find_product(name, None)
    return draw_shot(list(PRODUCTS).index(name), seed)


def render_shot(
    name: str, defect: str | None, seed: int, size: int, shot: Shot
) -> tuple[np.ndarray, np.ndarray]:
    """Render one image of a product and its mask as `render` does, in the exposure `shot`.

    The seed decides everything else. Raises ValueError as `render` does.
    """
    product = _find_product(name, defect)
    if seed < 0 or size < SMALLEST_SIZE:
        raise ValueError(
            f"the seed must be 0 or more and the size {SMALLEST_SIZE} pixels or more, "
            f"not {seed} and {size}"
        )
    number = list(PRODUCTS).index(name)
    defect_number = 0
    if defect is not None:
        defect_number = 1 + product.defects.index(defect)

    # Separate streams, so that a defect changes neither the piece nor the noise of the sensor.
    key = [VERSION, number, seed, size]
    scene_rng = _stream(key, 0, 0)
    defect_rng = _stream(key, 1, defect_number)
    sensor_rng = _stream(key, 2, 0)

    scene = product.build(scene_rng, shot, size, defect_rng, defect)
    if defect in SURFACE_DEFECTS:
        severity = defect_rng.uniform(*product.severity)
        SURFACE_DEFECTS[defect](scene, defect_rng, severity)
    light = light_scene(scene, shot, sensor_rng)
    image = photograph(light, shot, sensor_rng, product.monochrome)
    return image, scene.mask


def _find_product(name: str, defect: str | None) -> Product:
    product = PRODUCTS.get(name)
    if product is None:
        raise ValueError(f"unknown product {name!r}; known are {', '.join(PRODUCTS)}")
    if defect is not None and defect not in product.defects:
        known = ", ".join(product.defects)
        raise ValueError(f"{name} has no defect {defect!r}; known are {known}")
    return product


def _stream(key: list[int], purpose: int, kind: int) -> Rng:
    """Create the random stream of one purpose; streams of different purposes are independent."""
    return np.random.default_rng(np.random.SeedSequence([*key, purpose, kind]))
