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
    """Return the light setting and the one that it replaced, by name."""
    light = SimpleNet.settings_for(backbone)
    constant = dataclasses.replace(
        light, vectors=2048, first_rate=1.0, last_rate=1.0, averaged_share=0.1
    )
    return {
        "constant rates, fixed decay": Compared(constant, 900, True),
        "light": Compared(light, LIGHT_STEPS, False),
    }
