"""Attractors of random iterated function systems, splatted onto the image.

Kataoka et al., "Pre-training without natural images" (2020), FractalDB. The maps are drawn by their
singular values as in Anderson and Farrell, "Improving fractal pre-training" (2022), so that every
system contracts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import ClassParameters, View, blurred

MAPS = 4
CHAINS = 192
STEPS = 40
SETTLE = 8  # first steps of a chain, which are not on the attractor yet


def fractal(k: ClassParameters, view: View) -> Tensor:
    """Draw one attractor or several copies of it, as log density [n, S, S]."""
    points = _chaos_game(k, view)  # [n, P, 2]
    centre = points.mean(1, keepdim=True)
    extent = points.std((1, 2), keepdim=True).clamp(min=1e-3)
    points = (points - centre) / extent
    copies = k.octaves(1, 12)[:, 0]
    size = k.octaves(0.12, 0.4)[:, 0] * view.size / view.scale[:, 0]
    u, v = view.turned(points[:, None, :, 0], points[:, None, :, 1])
    copy = (view.uniform(points.shape[1]) * copies).long()
    shift = view.uniform(2, 12) * view.size
    x = u[:, 0] * size / copies.sqrt() + shift[:, 0].gather(1, copy)
    y = v[:, 0] * size / copies.sqrt() + shift[:, 1].gather(1, copy)

    count = _count_points(x, y, view.size)
    soft = 2 * blurred(count)
    sharp = k.unit()[..., None] < 0.5
    return torch.log1p(torch.where(sharp, count, soft))[:, 0]


def _count_points(x: Tensor, y: Tensor, size: int) -> Tensor:
    """Count the points (x, y), [n, P] each, in every pixel: [n, 1, size, size]."""
    # Opposite edges of the image are joined, so that no copy is cut off.
    row = y.floor().long() % size
    column = x.floor().long() % size
    count = torch.zeros(len(x), size**2, device=x.device)
    count = count.scatter_add_(1, row * size + column, torch.ones_like(x))
    return count.view(len(x), 1, size, size)


def _chaos_game(k: ClassParameters, view: View) -> Tensor:
    """Return points of each image's attractor, [n, CHAINS * (STEPS - SETTLE), 2]."""
    maps, offsets, ends = _draw_maps(k)
    draws = view.uniform(STEPS, CHAINS)[..., None]
    which = (draws > ends[:, None, None, :-1]).sum(-1)  # [n, STEPS, CHAINS]
    rows = torch.arange(view.n, device=maps.device)[:, None]
    point = view.normal(CHAINS, 2)
    path = []
    for step in range(STEPS):
        chosen_map = which[:, step]
        point = (maps[rows, chosen_map] @ point[..., None])[..., 0] + offsets[rows, chosen_map]
        if step >= SETTLE:
            path.append(point)
    return torch.cat(path, 1)


def _draw_maps(k: ClassParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps [n, MAPS, 2, 2], their offsets [n, MAPS, 2] and cumulative shares [n, MAPS].

    As in FractalDB, a map is used in proportion to the area that it covers.
    """
    maps = []
    offsets = []
    areas = []
    for _ in range(MAPS):
        left = k.between(0, 2 * math.pi)[:, 0, 0]
        right = k.between(0, 2 * math.pi)[:, 0, 0]
        large = k.between(0.35, 0.85)[:, 0, 0]
        small = k.between(0.05, 0.6)[:, 0, 0]
        singular_values = torch.diag_embed(torch.stack([large, small], -1))
        maps.append(_rotation(left) @ singular_values @ _rotation(right))
        x = k.between(-1, 1)[:, 0, 0]
        y = k.between(-1, 1)[:, 0, 0]
        offsets.append(torch.stack([x, y], -1))
        areas.append(large * small + 0.05)
    ends = torch.stack(areas, 1).cumsum(1)
    ends = ends / ends[:, -1:]
    return torch.stack(maps, 1), torch.stack(offsets, 1), ends


def _rotation(angle: Tensor) -> Tensor:
    """Return rotation matrices [n, 2, 2] by angles [n] in radians."""
    cos = angle.cos()
    sin = angle.sin()
    return torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
