"""Attractors of random iterated function systems, splatted onto the image.

Kataoka et al., "Pre-training without natural images" (2020), FractalDB; the maps are drawn by their singular values as
in Anderson and Farrell, "Improving fractal pre-training" (2022), so that every system contracts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import Knobs, View, blurred

MAPS = 4
CHAINS, STEPS, SETTLE = 192, 40, 8


def fractal(k: Knobs, view: View) -> Tensor:
    """One attractor or several copies of it, as log density."""
    points = _chaos_game(k, view)  # [n, P, 2]
    points = (points - points.mean(1, keepdim=True)) / points.std((1, 2), keepdim=True).clamp(
        min=1e-3
    )
    copies, extent = (
        k.octaves(1, 12)[:, 0],
        k.octaves(0.12, 0.4)[:, 0] * view.size / view.scale[:, 0],
    )
    u, v = view.turned(points[:, None, :, 0], points[:, None, :, 1])
    copy = (view.uniform(points.shape[1]) * copies).long()
    shift = view.uniform(2, 12) * view.size
    x = u[:, 0] * extent / copies.sqrt() + shift[:, 0].gather(1, copy)
    y = v[:, 0] * extent / copies.sqrt() + shift[:, 1].gather(1, copy)
    # the image's edges are joined, so that no copy is cut off
    index = (y.floor().long() % view.size) * view.size + x.floor().long() % view.size
    count = torch.zeros(view.n, view.size**2, device=x.device).scatter_add_(
        1, index, torch.ones_like(x)
    )
    count = count.view(view.n, 1, view.size, view.size)
    soft = blurred(count)
    return torch.log1p(torch.where(k.unit()[..., None] < 0.5, count, 2 * soft))[:, 0]


def _chaos_game(k: Knobs, view: View) -> Tensor:
    """Points [n, CHAINS * (STEPS - SETTLE), 2] of each image's attractor, which is its class's."""
    linear, shift, weight = [], [], []
    for _ in range(MAPS):
        a, b = k.between(0, 2 * math.pi)[:, 0, 0], k.between(0, 2 * math.pi)[:, 0, 0]
        large, small = k.between(0.35, 0.85)[:, 0, 0], k.between(0.05, 0.6)[:, 0, 0]
        left = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], -1).view(-1, 2, 2)
        right = torch.stack([b.cos(), -b.sin(), b.sin(), b.cos()], -1).view(-1, 2, 2)
        linear.append(left @ torch.diag_embed(torch.stack([large, small], -1)) @ right)
        shift.append(torch.stack([k.between(-1, 1)[:, 0, 0], k.between(-1, 1)[:, 0, 0]], -1))
        weight.append(large * small + 0.05)
    maps, offsets = torch.stack(linear, 1), torch.stack(shift, 1)  # [n, MAPS, 2, 2], [n, MAPS, 2]
    ends = torch.stack(weight, 1).cumsum(1)
    ends = ends / ends[:, -1:]
    # the maps are drawn by their share of the area, as FractalDB does
    which = (view.uniform(STEPS, CHAINS)[..., None] > ends[:, None, None, :-1]).sum(
        -1
    )  # [n, STEPS, CHAINS]
    rows = torch.arange(view.n, device=maps.device)[:, None]
    point, path = view.normal(CHAINS, 2), []
    for step in range(STEPS):
        chosen_map = which[:, step]
        point = (maps[rows, chosen_map] @ point[..., None])[..., 0] + offsets[rows, chosen_map]
        if step >= SETTLE:
            path.append(point)
    return torch.cat(path, 1)
