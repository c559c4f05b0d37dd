"""The settings that the study compares."""

from __future__ import annotations

import dataclasses

from flawline.train.methods.simplenet import LIGHT_STEPS, SimpleNet, SimpleNetSettings

LIGHT = "light"
CONSTANT = "constant rates"
# Of the light setting before its learning rates decayed.
CONSTANT_STEPS = 900
CONSTANT_NOISE = 0.25


def compared_settings(backbone: str) -> dict[str, tuple[SimpleNetSettings, int]]:
    """Return settings and steps by name: the light setting, and the one that it replaced."""
    light = SimpleNet.settings_for(backbone)
    constant = dataclasses.replace(
        light,
        vectors=2048,
        relative_noise=CONSTANT_NOISE,
        first_rate=1.0,
        last_rate=1.0,
        averaged_share=0.1,
    )
    return {CONSTANT: (constant, CONSTANT_STEPS), LIGHT: (light, LIGHT_STEPS)}
