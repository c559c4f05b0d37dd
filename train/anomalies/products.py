"""The blend settings of products, and how a product is chosen.

The table is that of the code of Chiu and Lai (repository self-supervised-flow, CVPR workshops
2023).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from flawline.runtime.console import log
from flawline.train import TrainError
from flawline.train.anomalies.blend import BlendSettings

TEXTURE_SETTINGS = BlendSettings(patches=4, resize=(0.5, 2.0))
_OBJECT = BlendSettings()
_ON_BRIGHT = BlendSettings(background=200, threshold=60, min_object=0.70, min_overlap=0.25)
_ON_DARK = replace(_ON_BRIGHT, background=20, threshold=20)

# The products of MVTec AD, then those of BTAD and DAGM 2007, which are numbered.
PRODUCT_SETTINGS = {
    "carpet": TEXTURE_SETTINGS,
    "grid": TEXTURE_SETTINGS,
    "leather": TEXTURE_SETTINGS,
    "tile": TEXTURE_SETTINGS,
    "wood": TEXTURE_SETTINGS,
    "bottle": _ON_BRIGHT,
    "cable": replace(_OBJECT, heights=(0.05, 0.40), widths=(0.05, 0.40)),
    "capsule": replace(_ON_BRIGHT, heights=(0.03, 0.15)),
    "hazelnut": replace(_ON_DARK, heights=(0.03, 0.35), widths=(0.03, 0.35)),
    "metal_nut": replace(_ON_DARK, min_object=0.50),
    "pill": replace(_ON_DARK, heights=(0.03, 0.20)),
    "screw": replace(
        _ON_BRIGHT, heights=(0.03, 0.12), widths=(0.03, 0.12), patches=4, min_object=0.50
    ),
    "toothbrush": replace(_ON_DARK, widths=(0.03, 0.20), min_object=0.25),
    "transistor": _OBJECT,
    "zipper": replace(_ON_BRIGHT, widths=(0.03, 0.20), patches=4),
    "btad_01": _ON_BRIGHT,
    "btad_02": TEXTURE_SETTINGS,
    "btad_03": _ON_BRIGHT,
}
for _number in range(1, 11):
    PRODUCT_SETTINGS[f"dagm_class{_number}"] = TEXTURE_SETTINGS


def product_settings(product: str | None) -> BlendSettings:
    """Return the settings of a product, or those of textures where it has none of its own.

    The settings of textures work on any image. Upper and lower case are equal.
    """
    return PRODUCT_SETTINGS.get((product or "").lower(), TEXTURE_SETTINGS)


def guess_product(folder: Path) -> str | None:
    """Return the product that a data folder is named after, or None.

    Recognised are the name of a product alone (bottle) or after "mvtec_", DAGM's Class1, and BTAD's
    01 below a folder whose name starts with "btad" or "btech". Other lines number their products
    too.
    """
    # An absolute path gives "." a name; unlike resolve(), it keeps the name of a link.
    absolute = Path(os.path.abspath(folder))
    name = absolute.name.lower()
    candidates = [name, name.removeprefix("mvtec_"), f"dagm_{name}"]
    if absolute.parent.name.lower().startswith(("btad", "btech")):
        candidates.append(f"btad_{name}")
    for candidate in candidates:
        if candidate in PRODUCT_SETTINGS:
            return candidate
    return None


def choose_product(product: str | None, data: Path) -> str | None:
    """Return the given product, or the one that the data folder is named after, or None.

    Logs which settings that means. Raises TrainError for a product that is not in the table.
    """
    if product is not None:
        if product.lower() not in PRODUCT_SETTINGS:
            known = ", ".join(PRODUCT_SETTINGS)
            raise TrainError(f"--product {product} is unknown; leave it out or take one of {known}")
        log(f"blend settings of {product}")
        return product
    guessed = guess_product(data)
    if guessed is None:
        log(f"no product-specific blend settings for {data}; using those of textures (--product)")
    else:
        log(f"blend settings of {guessed}, the name of the data folder; --product changes it")
    return guessed
