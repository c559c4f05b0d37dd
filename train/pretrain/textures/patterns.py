"""Regular patterns: gratings, weaves, lattices of tiles and holes, rings and spokes.

In the style of Baradad et al., "Procedural image programs for representation learning" (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import ClassParameters, View, select, wave


def gratings(k: ClassParameters, view: View) -> Tensor:
    """Draw one wave or two across each other, from soft to square, with a period that may vary."""
    u, v = view.plane()
    period = k.octaves(3, 30)
    wander = k.between(-0.25, 0.25).clamp(min=0)
    first = wave(u / period + wander * view.smooth(7))
    second = wave(v / (period * k.octaves(0.5, 2)) + k.between(-0.5, 0.5) * u / period)
    larger = torch.maximum(first, second)
    mixed = select(k.choice(4), first, larger, first * second, first + second)
    return torch.sign(mixed) * (mixed.abs() + 1e-4) ** k.octaves(0.2, 3)


def weave(k: ClassParameters, view: View) -> Tensor:
    """Draw warp and weft: plain, twill and satin, each thread with its own tone and thickness."""
    u, v = view.plane()
    period = k.octaves(4, 20)
    u = u / period
    v = v / (period * k.octaves(0.6, 1.7))
    column = torch.floor(u)
    row = torch.floor(v)
    repeat = 2 + k.choice(4)
    step = 1 + k.choice(2)
    over = 1 + k.choice(2)
    warp_on_top = (column.long() + step * row.long()) % repeat < over

    thickness = k.between(0.35, 0.6)
    tone = k.between(-0.8, 0.8).clamp(min=0)
    contrast = k.between(-0.8, 0.8)
    warp = torch.sqrt((1 - ((u - column - 0.5) / thickness) ** 2).clamp(min=0))
    weft = torch.sqrt((1 - ((v - row - 0.5) / thickness) ** 2).clamp(min=0))
    warp_bulge = wave(0.5 * (v - row))
    weft_bulge = wave(0.5 * (u - column))
    warp = warp * (0.4 + 0.6 * warp_bulge) * (1 + contrast)
    warp = warp + tone * view.table(column, column * 0)
    weft = weft * (0.4 + 0.6 * weft_bulge) * (1 - contrast)
    weft = weft + tone * view.table(row * 0, row)
    return torch.where(warp_on_top, warp, weft)


def lattice(k: ClassParameters, view: View) -> Tensor:
    """Draw rows of tiles, bricks, dots, rings or crosses of varying tone, size and place."""
    u, v = view.plane()
    period = k.octaves(6, 40)
    u = u / period
    v = v / (period * k.octaves(0.4, 1.6))
    row = torch.floor(v)
    u = u + k.choice(3) * 0.25 * row  # in line, quarter bond, half bond
    column = torch.floor(u)
    scatter = k.between(-0.25, 0.25).clamp(min=0)
    x = u - column - 0.5 + scatter * view.table(row, column, -1, 1)
    y = v - row - 0.5 + scatter * view.table(row, column, -1, 1)
    radius = k.between(0.2, 0.48) * (1 + scatter * view.table(row, column, -1, 1))

    box = torch.maximum(x.abs(), y.abs())
    disc = torch.sqrt(x**2 + y**2)
    hole_radius = k.between(0.3, 0.7) * radius
    thin = k.between(0.05, 0.12)
    arm = torch.minimum(x.abs(), y.abs()) - thin + radius
    cross = torch.maximum(arm, box)
    ring = (disc - radius).abs() - thin
    distance = select(k.choice(4), box - radius, disc - radius, ring, cross - radius)

    hole = (k.unit() < 0.3) & (disc < hole_radius)
    shape = torch.sigmoid(-distance * period / k.octaves(0.5, 3)) * torch.where(hole, 0.3, 1.0)
    tone = k.between(-0.9, 0.9).clamp(min=0) * view.table(row, column, -1, 1)
    slope = k.between(-1.5, 1.5)
    shading = slope * (x + y) * (slope.abs() > 0.7)
    return shape * (1 + tone + shading)


def rings(k: ClassParameters, view: View) -> Tensor:
    """Draw circles about a centre in or outside the image: turning marks, rims, spokes, spirals."""
    u, v = view.plane(shift=False)
    away = k.between(0, 1.2) * view.size
    u = u + away * view.normal(1, 1) * 0.7
    v = v + away * view.normal(1, 1) * 0.7
    r = torch.sqrt(u**2 + (v * k.between(0.7, 1)) ** 2) + 1e-3
    angle = torch.atan2(v, u) / 6.2832
    marks = wave(r / k.octaves(3, 24) + k.choice(3) * angle + 0.1 * view.smooth(7))
    rim_radius = k.octaves(10, 60) * (0.8 + 0.4 * view.uniform(1, 1))
    rim = torch.tanh((r - rim_radius) / k.octaves(0.7, 4))
    spokes = torch.tanh(3 * wave(angle * (3 + k.choice(14)) + view.uniform(1, 1)))
    spokes = spokes * torch.sigmoid(r - 12)
    # A random profile over the radius that is the same all around, as a lathe leaves it.
    groove = view.table((r / k.octaves(1.5, 8)).floor(), r * 0, -1, 1)
    together = rim + 0.5 * marks + 0.5 * groove
    return select(k.choice(5), marks, rim, spokes, groove, together)
