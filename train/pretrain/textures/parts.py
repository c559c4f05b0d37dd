"""Pictures put together from parts: flat or textured boxes and discs on a ground, as on anything assembled.

A texture has no places of its own; here an edge, a corner or a gap between two parts is usual in one place and a fault
in the next, and a part may be missing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import View

ASSEMBLED = 0.3  # share of the pictures
PARTS = 10
WHOLE = 0.5  # share of the assembled pictures that lack no part


def assembled(picture: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [n, 3, S, S] with parts laid onto some of them, the same with a part missing here and there, and which
    stayed as they were, bool [n]."""
    chosen = view.uniform(1, 1, 1) < ASSEMBLED
    missing = (view.uniform(1, 1, 1) * PARTS / (1 - WHOLE)).long()
    usual_side = 6 * 6 ** view.uniform(1, 1)
    lacking = picture
    for i in range(PARTS):
        inside = _distance(view, usual_side)
        # Cut from another picture, or of one colour; half of them have a dark rim.
        colour = view.uniform(3 if i % 2 else 1, 1, 1)
        content = torch.where(view.uniform(1, 1, 1) < 0.5, picture.roll(i + 1, 0), colour)
        rim = 1 - 0.4 * (view.uniform(1, 1, 1) < 0.5) * torch.sigmoid(8 - 4 * inside)
        cover = chosen * torch.sigmoid(4 * inside)
        picture = picture + cover * (content * rim - picture)
        lacking = torch.where(missing == i, lacking, lacking + cover * (content * rim - lacking))
    return picture, lacking, ~chosen[:, 0, 0, 0]


def _distance(view: View, usual_side: Tensor) -> Tensor:
    """One box or disc a picture: how far inside its edge a pixel lies, [n, 1, S, S]. Half have the usual side."""
    angle = 0.02 * view.normal(1, 1) + 2 * math.pi * view.uniform(1, 1) * (view.uniform(1, 1) < 0.2)
    u, v = view.somewhere(angle)
    side = torch.where(view.uniform(1, 1) < 0.5, usual_side, 4 * 12 ** view.uniform(1, 1))
    aspect = 2 ** (2 * view.uniform(1, 1) - 1)
    box = torch.minimum(side * aspect / 2 - u.abs(), side / aspect / 2 - v.abs())
    disc = side / 2 - torch.sqrt(u**2 + v**2)
    return torch.where(view.uniform(1, 1) < 0.75, box, disc)[:, None]
