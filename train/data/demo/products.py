"""The products with their defects, and `render`, which makes one picture and its mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flawline.train.data.demo.bearing import build_bearing
from flawline.train.data.demo.board import build_board
from flawline.train.data.demo.defects import ON_SURFACE
from flawline.train.data.demo.exposure import lit, photograph
from flawline.train.data.demo.scene import Scene
from flawline.train.data.demo.shapes import Rng
from flawline.train.data.demo.shot import Shot, draw_shot
from flawline.train.data.demo.surfaces import build_metal, build_weave

PRODUCTS: dict[str, tuple[str, ...]] = {
    "weave": ("contamination", "hole", "stain", "thread_pull"),
    "metal": ("contamination", "dent", "scratch", "stain"),
    "bearing": ("contamination", "dent", "missing_part", "scratch"),
    "board": ("contamination", "misplaced_part", "missing_part", "scratch"),
}
VERSION = 1  # of the pictures: raise it whenever a change alters a single pixel

# a builder leaves out or misplaces parts itself, since it alone knows them
_BUILD: dict[str, Callable[[Rng, Shot, int, Rng, str | None], Scene]] = {
    "weave": build_weave,
    "metal": build_metal,
    "bearing": build_bearing,
    "board": build_board,
}
# severity from the faintest to the plainest defect: a busy surface hides more than a plain one
_SEVERITY = {"weave": (0.45, 1.0), "metal": (0.0, 0.6), "bearing": (0.15, 0.9), "board": (0.6, 1.0)}


def render(
    product: str, defect: str | None, seed: int, size: int = 320
) -> tuple[np.ndarray, np.ndarray]:
    """One picture and its mask: uint8 [size,size,3] BGR and uint8 [size,size] 0/255, all 0 without a defect.

    Equal arguments give equal bytes, whatever was rendered before; with the same seed the good and the
    defective picture show the same piece. Raises ValueError for an unknown product or defect, a seed below 0
    or a size below 64.
    """
    if product not in PRODUCTS:
        raise ValueError(f"unknown product {product!r}; known are {', '.join(PRODUCTS)}")
    if defect is not None and defect not in PRODUCTS[product]:
        raise ValueError(
            f"{product} has no defect {defect!r}; known are {', '.join(PRODUCTS[product])}"
        )
    if seed < 0 or size < 64:
        raise ValueError(
            f"the seed must be 0 or more and the size 64 pixels or more, not {seed} and {size}"
        )
    number = list(PRODUCTS).index(product)
    kind = 0 if defect is None else 1 + PRODUCTS[product].index(defect)
    scene_rng, defect_rng, sensor_rng = (
        np.random.default_rng(np.random.SeedSequence([VERSION, number, seed, size, *stream]))
        for stream in ((0, 0), (1, kind), (2, 0))
    )
    shot = draw_shot(number, seed)
    scene = _BUILD[product](scene_rng, shot, size, defect_rng, defect)
    if defect in ON_SURFACE:
        ON_SURFACE[defect](scene, defect_rng, defect_rng.uniform(*_SEVERITY[product]))
    return photograph(
        lit(scene, shot, sensor_rng), shot, sensor_rng, product == "metal"
    ), scene.mask
