"""From fields to photographs: palettes, relief, and the effects of lamp, lens and sensor.

Only what `ClassParameters` gives belongs to a class. A network that names the class must ignore the
rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.train.pretrain.textures.view import ClassParameters, View, blurred, standardised

GREY = 0.4  # fraction of images without colour, among the classes without a hue of their own


def coloured(field: Tensor, k: ClassParameters, view: View) -> Tensor:
    """Map a standardised field [n, S, S] through a palette to reflectance, [n, 3, S, S] RGB.

    A palette is a line in colour space, bent in the middle. A quarter of the classes has a hue of
    its own; otherwise the network would learn to ignore colour.
    """
    has_hue = (k.unit() < 0.25)[:, 0]
    rgb = torch.cat([k.unit(), k.unit(), k.unit()], 2)
    hue = rgb[:, 0] - 0.5  # [n, 3]
    near_hue = hue + 0.1 * view.normal(3)
    axis = torch.where(has_hue, near_hue, view.normal(3))
    length = axis.norm(dim=1, keepdim=True)
    axis = axis / length.clamp(min=1e-3)
    ground_of_hue = 0.45 + 0.6 * hue.roll(1, 1)
    any_ground = 0.25 + 0.5 * view.uniform(3)
    ground = torch.where(has_hue, ground_of_hue, any_ground)

    grey = (view.uniform(1) < GREY) & ~has_hue
    grey_axis = torch.full_like(axis, 1 / math.sqrt(3))
    grey_axis = grey_axis * axis[:, :1].sign()
    axis = torch.where(grey, grey_axis, axis)
    ground = torch.where(grey, ground[:, :1], ground)
    contrast = 0.12 + 0.7 * view.uniform(1)
    bend = torch.where(grey, 0.0, 0.12 * view.normal(3))

    position = torch.tanh(0.7 * field)[:, None]  # along the line, -1..1
    direction = (contrast * axis)[..., None, None]
    line = ground[..., None, None] + direction * position
    return line + bend[..., None, None] * (1 - position**2)


def relief(field: Tensor, k: ClassParameters, view: View) -> Tensor:
    """Return the brightness [n, 1, S, S] of heights [n, S, S] under a lamp from one side.

    Half of the classes have no relief; their brightness is 1.
    """
    depth = k.between(-0.5, 0.5).clamp(min=0)
    angle = 2 * math.pi * view.uniform(1, 1)
    slope_x = F.pad(field[:, :, 1:] - field[:, :, :-1], (0, 1))
    slope_y = F.pad(field[:, 1:] - field[:, :-1], (0, 0, 0, 1))
    towards_lamp = torch.cos(angle) * slope_x + torch.sin(angle) * slope_y
    brightness = 1 + depth * torch.tanh(towards_lamp)
    return brightness[:, None]


def photographed(reflectance: Tensor, view: View) -> Tensor:
    """Photograph reflectance [n, 3, S, S]: uneven light, white balance, blur, tone curve, noise.

    Returns images [n, 3, S, S] RGB in 0..1.
    """
    image = reflectance * _light(view)
    exposure = 0.2 * view.normal(1, 1, 1)
    white_balance = 0.04 * view.normal(3, 1, 1)
    image = image * torch.exp(exposure + white_balance)

    # From sharpened, which cameras do, to fully blurred.
    blur = view.uniform(1, 1, 1) * 1.6 - 0.3
    is_blurred = view.uniform(1, 1, 1) < 0.4
    blur = torch.where(is_blurred, blur.clamp(max=1), 0.0)
    image = image + blur * (blurred(image) - image)
    gamma = torch.exp(0.25 * view.normal(1, 1, 1))
    image = image.clamp(0.001, 1) ** gamma
    strength = 0.08 * view.uniform(1, 1, 1) ** 2
    noise = view.normal(3, view.size, view.size)
    return (image + strength * noise).clamp(0, 1)


def _light(view: View) -> Tensor:
    """Draw uneven light [n, 1, S, S]: a slope in both directions and darker corners."""
    side = torch.linspace(-1, 1, view.size, device=view.generator.device)
    slope = view.normal(2, 1, 1, 1) * 0.2
    light = 1 + slope[:, 0] * side
    light = light + slope[:, 1] * side[:, None]
    vignette = 0.3 * view.uniform(1, 1, 1) ** 2
    return light - vignette * (side[:, None] ** 2 + side**2)


def mask(view: View) -> Tensor:
    """Draw where a second texture lies, [n, 1, S, S] in 0..1 with soft edges.

    The regions are patches of any size, strips or halves; some images have none.
    """
    is_coarse = view.uniform(1, 1) < 0.5
    coarse = standardised(view.smooth(4))
    fine = standardised(view.smooth(8))
    patches = torch.where(is_coarse, coarse, fine)
    u, _ = view.plane(shift=False)
    from_strip = u + view.size * 0.3 * view.normal(1, 1)
    width = 3 + 20 * view.uniform(1, 1)
    strip = 1.2 - (from_strip / width).abs()
    half = (u + view.size * 0.2 * view.normal(1, 1)) / 8
    kind = view.uniform(1, 1)
    patches = patches - 1.3 * view.uniform(1, 1)
    other = torch.where(kind < 0.75, strip, half)
    field = torch.where(kind < 0.6, patches, other)
    edge = 4 + 12 * view.uniform(1, 1)
    return torch.sigmoid(edge * field)[:, None]
