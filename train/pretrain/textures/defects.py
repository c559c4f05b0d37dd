"""Small faults laid into pictures: what is a little off, and where. A detector's features must show it.

Nothing is modelled on a product. The shape is a curved scratch, a ragged blob or a bar; in it the picture is replaced
in part by itself moved, turned or mirrored, by another picture, by its own blur, or is faded and tinted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import View, blurred, chosen

LAYERS = 3  # faults a picture has at most
ABSENT = 0.25  # share of them that are left out
VISIBLE = 0.1  # a mean change of the channels, in 0..1, that counts in full


def damaged(picture: Tensor, sound: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Pictures [n, 3, S, S] with up to LAYERS faults each, and how far each pixel is from `sound`, in 0..1
    [n, 1, S, S]."""
    result = picture
    for _ in range(LAYERS):
        there = (view.uniform(1, 1, 1) > ABSENT) * (0.3 + 0.7 * view.uniform(1, 1, 1))
        result = result + there * _region(view) * (_content(picture, view) - result)
    change = (result - sound).abs().mean(1, keepdim=True) / VISIBLE
    return result, blurred(change.clamp(max=1))


def _region(view: View) -> Tensor:
    """One soft shape a picture, 2 to 20 pixels wide, small ones more often; in 0..1 [n, 1, S, S]."""
    angle = 2 * math.pi * view.uniform(1, 1) * (view.uniform(1, 1) < 0.7)
    u, v = view.somewhere(angle)
    width, height = 2 * 10 ** view.uniform(1, 1), 2 * 10 ** view.uniform(1, 1)
    bend, length = 0.03 * view.normal(1, 1), 6 + 34 * view.uniform(1, 1) ** 2
    scratch = torch.minimum(
        0.5 + view.uniform(1, 1) - (v - bend * u**2).abs(), length / 2 - u.abs()
    )
    blob = (width / 2) * (1 + 0.4 * view.smooth(view.size // 6)) - torch.sqrt(u**2 + v**2)
    bar = torch.minimum(width / 2 - u.abs(), height / 2 - v.abs())
    field = chosen((3 * view.uniform(1, 1)).long(), scratch, blob, bar)
    return torch.sigmoid(4 * field)[:, None]


def _content(picture: Tensor, view: View) -> Tensor:
    """What lies in the shapes, [n, 3, S, S]; moves and partners are drawn once for all pictures."""
    down, right, turns, partner = (int(i) for i in _integers(view, view.size, view.size, 4, view.n))
    moved = picture.roll((down, right), (2, 3)).rot90(turns, (2, 3))
    moved = torch.where(view.uniform(1, 1, 1) < 0.5, moved, moved.flip(3))
    soft = blurred(blurred(blurred(picture)))
    mean = picture.mean((2, 3), keepdim=True)
    faded = mean + 1.6 * view.uniform(1, 1, 1) * (picture - mean)
    tint = view.normal(1, 1, 1) + 0.5 * view.normal(3, 1, 1) * (view.uniform(1, 1, 1) < 0.5)
    faded = faded + 0.35 * view.uniform(1, 1, 1) * tint
    which = (view.uniform(1, 1, 1) * 10).long()  # in tenths: 4 moved, 2 another, 3 faded, 1 soft
    other = picture.roll(partner, 0)
    return torch.where(
        which < 4, moved, torch.where(which < 6, other, torch.where(which < 9, faded, soft))
    )


def _integers(view: View, *below: int) -> Tensor:
    device = view.generator.device
    return (
        torch.rand(len(below), generator=view.generator, device=device)
        * torch.tensor(below, device=device)
    ).long()
