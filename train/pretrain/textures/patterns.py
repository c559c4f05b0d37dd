"""Regular patterns: gratings, weaves, lattices of tiles and holes, rings and spokes.

In the manner of Baradad et al., "Procedural image programs for representation learning" (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import Knobs, View, chosen, wave


def gratings(k: Knobs, view: View) -> Tensor:
    """One wave or two across each other, from soft to square, with a period that may wander."""
    u, v = view.plane()
    period = k.octaves(3, 30)
    wander = k.between(-0.25, 0.25).clamp(min=0)
    first = wave(u / period + wander * view.smooth(7))
    second = wave(v / (period * k.octaves(0.5, 2)) + k.between(-0.5, 0.5) * u / period)
    mixed = chosen(k.choice(4), first, torch.maximum(first, second), first * second, first + second)
    return torch.sign(mixed) * (mixed.abs() + 1e-4) ** k.octaves(0.2, 3)


def weave(k: Knobs, view: View) -> Tensor:
    """Warp and weft: plain, twill and satin, with threads of their own tone and thickness."""
    u, v = view.plane()
    period = k.octaves(4, 20)
    u, v = u / period, v / (period * k.octaves(0.6, 1.7))
    column, row = torch.floor(u), torch.floor(v)
    repeat, step, over = 2 + k.choice(4), 1 + k.choice(2), 1 + k.choice(2)
    up = (column.long() + step * row.long()) % repeat < over
    thick, tone, contrast = (
        k.between(0.35, 0.6),
        k.between(-0.8, 0.8).clamp(min=0),
        k.between(-0.8, 0.8),
    )
    warp_thread = torch.sqrt((1 - ((u - column - 0.5) / thick) ** 2).clamp(min=0))
    weft_thread = torch.sqrt((1 - ((v - row - 0.5) / thick) ** 2).clamp(min=0))
    bulge_u, bulge_v = wave(0.5 * (v - row)), wave(0.5 * (u - column))
    top = warp_thread * (0.4 + 0.6 * bulge_u) * (1 + contrast) + tone * view.table(
        column, column * 0
    )
    below = weft_thread * (0.4 + 0.6 * bulge_v) * (1 - contrast) + tone * view.table(row * 0, row)
    return torch.where(up, top, below)


def lattice(k: Knobs, view: View) -> Tensor:
    """Tiles, bricks, dots, rings and crosses in rows, each with its own tone, size and place."""
    u, v = view.plane()
    period = k.octaves(6, 40)
    u, v = u / period, v / (period * k.octaves(0.4, 1.6))
    row = torch.floor(v)
    u = u + k.choice(3) * 0.25 * row  # in line, quarter bond, half bond
    column = torch.floor(u)
    scatter = k.between(-0.25, 0.25).clamp(min=0)
    x = u - column - 0.5 + scatter * view.table(row, column, -1, 1)
    y = v - row - 0.5 + scatter * view.table(row, column, -1, 1)
    radius = k.between(0.2, 0.48) * (1 + scatter * view.table(row, column, -1, 1))
    box = torch.maximum(x.abs(), y.abs())
    disc = torch.sqrt(x**2 + y**2)
    inner, thin = k.between(0.3, 0.7) * radius, k.between(0.05, 0.12)
    cross = torch.maximum(torch.minimum(x.abs(), y.abs()) - thin + radius, box)
    distance = chosen(
        k.choice(4), box - radius, disc - radius, (disc - radius).abs() - thin, cross - radius
    )
    hole = (k.unit() < 0.3) & (disc < inner)
    shape = torch.sigmoid(-distance * period / k.octaves(0.5, 3)) * torch.where(hole, 0.3, 1.0)
    tone = k.between(-0.9, 0.9).clamp(min=0) * view.table(row, column, -1, 1)
    slope = k.between(-1.5, 1.5)
    return shape * (1 + tone + slope * (x + y) * (slope.abs() > 0.7))


def rings(k: Knobs, view: View) -> Tensor:
    """Circles about a centre in or beside the image: turning marks, rims, spokes, spirals."""
    u, v = view.plane(shift=False)
    away = k.between(0, 1.2) * view.size
    u, v = u + away * view.normal(1, 1) * 0.7, v + away * view.normal(1, 1) * 0.7
    r = torch.sqrt(u**2 + (v * k.between(0.7, 1)) ** 2) + 1e-3
    angle = torch.atan2(v, u) / 6.2832
    marks = wave(r / k.octaves(3, 24) + k.choice(3) * angle + 0.1 * view.smooth(7))
    rim = torch.tanh((r - k.octaves(10, 60) * (0.8 + 0.4 * view.uniform(1, 1))) / k.octaves(0.7, 4))
    spokes = torch.tanh(3 * wave(angle * (3 + k.choice(14)) + view.uniform(1, 1)))
    # a random profile over the radius, the same all around: what a lathe leaves
    groove = view.table((r / k.octaves(1.5, 8)).floor(), r * 0, -1, 1)
    return chosen(
        k.choice(5),
        marks,
        rim,
        spokes * torch.sigmoid(r - 12),
        groove,
        rim + 0.5 * marks + 0.5 * groove,
    )
