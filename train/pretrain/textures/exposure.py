"""From fields to photographs: palettes, relief, and the nuisance of lamp, lens and sensor.

None of it belongs to a class but what `Knobs` says: a network that names the class must see through the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.train.pretrain.textures.view import Knobs, View, blurred, normalised

GREY = 0.4  # share of pictures without colour


def coloured(field: Tensor, k: Knobs, view: View) -> Tensor:
    """A normalised field [n, S, S] through a palette of three colours to reflectance [n, 3, S, S] in 0..1.

    A quarter of the classes has a hue of its own, or the network would learn to be blind to colour.
    """
    own = k.unit() < 0.25
    hue = torch.cat([k.unit(), k.unit(), k.unit()], 2)[:, 0] - 0.5  # [n, 3]
    axis = torch.where(own[:, 0], hue + 0.1 * view.normal(3), view.normal(3))
    axis = axis / axis.norm(dim=1, keepdim=True).clamp(min=1e-3)
    ground = torch.where(own[:, 0], 0.45 + 0.6 * hue.roll(1, 1), 0.25 + 0.5 * view.uniform(3))
    grey = (view.uniform(1) < GREY) & ~own[:, 0]
    axis = torch.where(grey, torch.full_like(axis, 1 / math.sqrt(3)) * axis[:, :1].sign(), axis)
    ground = torch.where(grey, ground[:, :1], ground)
    contrast = 0.12 + 0.7 * view.uniform(1)
    side = torch.where(
        grey, 0.0, 0.12 * view.normal(3)
    )  # what the middle of the palette is off the line
    position = torch.tanh(0.7 * field)[:, None]  # -1..1
    return (
        ground[..., None, None]
        + (contrast * axis)[..., None, None] * position
        + side[..., None, None] * (1 - position**2)
    )


def relief(field: Tensor, k: Knobs, view: View) -> Tensor:
    """Brightness [n, 1, S, S] of a field seen as heights under a lamp from a random side; 1 for half of the classes."""
    depth = k.between(-0.5, 0.5).clamp(min=0)
    angle = 2 * math.pi * view.uniform(1, 1)
    slope_x = F.pad(field[:, :, 1:] - field[:, :, :-1], (0, 1))
    slope_y = F.pad(field[:, 1:] - field[:, :-1], (0, 0, 0, 1))
    return (1 + depth * torch.tanh(torch.cos(angle) * slope_x + torch.sin(angle) * slope_y))[
        :, None
    ]


def photographed(picture: Tensor, view: View) -> Tensor:
    """Reflectance [n, 3, S, S] to a picture in 0..1: uneven light, white balance, blur, tone curve, noise."""
    size = view.size
    side = torch.linspace(-1, 1, size, device=picture.device)
    fall = view.normal(2, 1, 1, 1) * 0.2
    light = 1 + fall[:, 0] * side[None, None, None, :] + fall[:, 1] * side[None, None, :, None]
    light = light - 0.3 * view.uniform(1, 1, 1) ** 2 * (side[:, None] ** 2 + side**2)
    picture = picture * light * torch.exp(0.2 * view.normal(1, 1, 1) + 0.04 * view.normal(3, 1, 1))
    # from twice sharpened by a third to fully blurred; sharpening is what cameras do
    blur = view.uniform(1, 1, 1) * 1.6 - 0.3
    blur = torch.where(view.uniform(1, 1, 1) < 0.4, blur.clamp(max=1), 0.0)
    picture = picture + blur * (blurred(picture) - picture)
    picture = picture.clamp(0.001, 1) ** torch.exp(0.25 * view.normal(1, 1, 1))
    noise = 0.08 * view.uniform(1, 1, 1) ** 2
    return (picture + noise * view.normal(3, size, size)).clamp(0, 1)


def mask(view: View) -> Tensor:
    """Where the second texture lies, soft in 0..1 [n, 1, S, S]: patches of any size, strips, halves, or nowhere."""
    field = torch.where(
        view.uniform(1, 1) < 0.5, normalised(view.smooth(4)), normalised(view.smooth(8))
    )
    u, _ = view.plane(shift=False)
    strip = 1.2 - ((u + view.size * 0.3 * view.normal(1, 1)) / (3 + 20 * view.uniform(1, 1))).abs()
    half = (u + view.size * 0.2 * view.normal(1, 1)) / 8
    kind = view.uniform(1, 1)
    field = torch.where(
        kind < 0.6, field - 1.3 * view.uniform(1, 1), torch.where(kind < 0.75, strip, half)
    )
    edge = 4 + 12 * view.uniform(1, 1)
    return torch.sigmoid(edge * field)[:, None]
