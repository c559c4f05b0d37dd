"""The settings that the study compares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from flawline.train.methods.simplenet import LIGHT_STEPS, SimpleNet, SimpleNetSettings


@dataclass(frozen=True)
class Compared:
    """One setting, its steps, and whether its average of weights has a fixed decay."""

    settings: SimpleNetSettings
    steps: int
    fixed_decay: bool


def compared_settings(backbone: str) -> dict[str, Compared]:
    """Return the light setting, the one that it replaced, and one of four heads, by name."""
    light = SimpleNet.settings_for(backbone)
    constant = dataclasses.replace(
        light, vectors=2048, first_rate=1.0, last_rate=1.0, averaged_share=0.1
    )
    four_heads = dataclasses.replace(
        light, heads=4, orthogonal=True, relative_noise=0.5, vectors=512
    )
    return {
        "constant rates, fixed decay": Compared(constant, 900, True),
        "light": Compared(light, LIGHT_STEPS, False),
        "four heads": Compared(four_heads, LIGHT_STEPS, False),
    }
