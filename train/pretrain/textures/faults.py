"""Small faults laid into images, and where they are: a detector's features must respond to them.

No fault is modelled on a product. Its shape is a curved scratch, a ragged blob or a bar. Inside it,
the image is partly replaced by itself moved, turned or mirrored, by another image or by its own
blur, or it is faded and tinted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import View, blurred, select

LAYERS = 3  # faults that an image has at most
ABSENT = 0.25  # fraction of them that are left out
VISIBLE = 0.1  # mean change of the channels, in 0..1, that counts as full damage


def with_faults(images: Tensor, sound: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Lay up to LAYERS faults into each image.

    Returns the changed images [n, 3, S, S], and the damage of each pixel, [n, 1, S, S] in 0..1: how
    far it is from `sound` [n, 3, S, S].
    """
    result = images
    for _ in range(LAYERS):
        present = view.uniform(1, 1, 1) > ABSENT
        opacity = present * (0.3 + 0.7 * view.uniform(1, 1, 1))
        cover = opacity * _region(view)
        content = _content(images, view)
        result = result + cover * (content - result)
    change = (result - sound).abs().mean(1, keepdim=True)
    damage = (change / VISIBLE).clamp(max=1)
    return result, blurred(damage)


def _region(view: View) -> Tensor:
    """Draw one soft shape for each image, 2 to 20 pixels wide, [n, 1, S, S] in 0..1.

    Small shapes are more frequent.
    """
    angle = 2 * math.pi * view.uniform(1, 1)
    angle = angle * (view.uniform(1, 1) < 0.7)
    u, v = view.somewhere(angle)
    width = 2 * 10 ** view.uniform(1, 1)
    height = 2 * 10 ** view.uniform(1, 1)
    bend = 0.03 * view.normal(1, 1)
    length = 6 + 34 * view.uniform(1, 1) ** 2
    half_width = 0.5 + view.uniform(1, 1)
    across = half_width - (v - bend * u**2).abs()
    scratch = torch.minimum(across, length / 2 - u.abs())
    ragged = 1 + 0.4 * view.smooth(view.size // 6)
    blob = (width / 2) * ragged - torch.sqrt(u**2 + v**2)
    bar = torch.minimum(width / 2 - u.abs(), height / 2 - v.abs())
    which = (3 * view.uniform(1, 1)).long()
    inside = select(which, scratch, blob, bar)
    return torch.sigmoid(4 * inside)[:, None]


def _content(images: Tensor, view: View) -> Tensor:
    """Draw what the shapes show, [n, 3, S, S]."""
    # One move and one partner for all images: this keeps the work in a few large operations.
    limits = torch.tensor([view.size, view.size, 4, view.n], device=images.device)
    draws = torch.rand(4, generator=view.generator, device=images.device)
    down, right, turns, partner = (draws * limits).long().tolist()
    moved = images.roll((down, right), (2, 3))
    moved = moved.rot90(turns, (2, 3))
    keep = view.uniform(1, 1, 1) < 0.5
    moved = torch.where(keep, moved, moved.flip(3))
    soft = blurred(blurred(blurred(images)))
    faded = _faded(images, view)
    other = images.roll(partner, 0)
    # In tenths: 4 moved, 2 another image, 3 faded, 1 soft.
    tenth = (view.uniform(1, 1, 1) * 10).long()
    result = torch.where(tenth < 9, faded, soft)
    result = torch.where(tenth < 6, other, result)
    return torch.where(tenth < 4, moved, result)


def _faded(images: Tensor, view: View) -> Tensor:
    """Change the contrast of images [n, 3, S, S] and tint them."""
    mean = images.mean((2, 3), keepdim=True)
    faded = mean + 1.6 * view.uniform(1, 1, 1) * (images - mean)
    tint = view.normal(1, 1, 1)
    colour = 0.5 * view.normal(3, 1, 1) * (view.uniform(1, 1, 1) < 0.5)
    tint = tint + colour
    return faded + 0.35 * view.uniform(1, 1, 1) * tint
