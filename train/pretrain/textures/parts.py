"""Images assembled from parts: flat or textured boxes and discs on a ground, as on an assembly.

A texture is the same everywhere. On these images, an edge, a corner or a gap between two parts is
normal in one place and a fault in the next, and a part may be missing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import View

ASSEMBLED = 0.3  # fraction of the images that get parts
PARTS = 10
WHOLE = 0.5  # fraction of the assembled images that lack no part


def with_parts(images: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Lay parts onto some of the images [n, 3, S, S].

    Returns the images with all their parts, the same with one part missing on some of them, and
    which images stayed without parts, bool [n].
    """
    assembled = view.uniform(1, 1, 1) < ASSEMBLED
    # The number of the missing part; from PARTS on, none is missing.
    missing = (view.uniform(1, 1, 1) * PARTS / (1 - WHOLE)).long()
    usual_side = 6 * 6 ** view.uniform(1, 1)
    whole = images
    lacking = images
    for number in range(PARTS):
        inside = _distance(view, usual_side)
        content = _content(whole, number, view)
        dark_rim = view.uniform(1, 1, 1) < 0.5
        rim = torch.sigmoid(8 - 4 * inside)
        content = content * (1 - 0.4 * dark_rim * rim)
        cover = assembled * torch.sigmoid(4 * inside)
        whole = whole + cover * (content - whole)
        with_this_part = lacking + cover * (content - lacking)
        lacking = torch.where(missing == number, lacking, with_this_part)
    return whole, lacking, ~assembled[:, 0, 0, 0]


def _content(images: Tensor, number: int, view: View) -> Tensor:
    """Draw what a part shows: another image or one colour, which is grey for even parts."""
    channels = 3 if number % 2 else 1
    colour = view.uniform(channels, 1, 1)
    textured = view.uniform(1, 1, 1) < 0.5
    return torch.where(textured, images.roll(number + 1, 0), colour)


def _distance(view: View, usual_side: Tensor) -> Tensor:
    """Draw one box or disc for each image: how far inside its edge a pixel lies, [n, 1, S, S].

    Half of them have the image's usual side, [n, 1, 1] in pixels.
    """
    angle = 0.02 * view.normal(1, 1)
    turn = 2 * math.pi * view.uniform(1, 1)
    angle = angle + turn * (view.uniform(1, 1) < 0.2)
    u, v = view.somewhere(angle)
    is_usual = view.uniform(1, 1) < 0.5
    side = torch.where(is_usual, usual_side, 4 * 12 ** view.uniform(1, 1))
    aspect = 2 ** (2 * view.uniform(1, 1) - 1)
    half_width = side * aspect / 2
    half_height = side / aspect / 2
    box = torch.minimum(half_width - u.abs(), half_height - v.abs())
    disc = side / 2 - torch.sqrt(u**2 + v**2)
    is_box = view.uniform(1, 1) < 0.75
    return torch.where(is_box, box, disc)[:, None]
