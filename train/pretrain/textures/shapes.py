"""Fields of things: cells about random points, and leaves that fall on each other.

Worley, "A cellular texture basis function" (1996); Lee, Mumford and Huang, "Occlusion models for natural images"
(2001), the dead leaves model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import TABLE, Knobs, View, cell_index, chosen, look_up


def _worley(k: Knobs, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest point of a jittered lattice, to the second nearest, and the nearest's own number in
    -1..1, each [n, S, S]; distances in steps of the lattice."""
    u, v = view.plane()
    period = k.octaves(5, 40)
    u, v = u / period, v / (period * k.octaves(0.4, 1))
    row, column = torch.floor(v), torch.floor(u)
    u, v = u - column, v - row
    jitter, square = k.between(0.2, 1), k.unit() < 0.25
    places = jitter * (view.uniform(2, TABLE * TABLE) - 0.5) + 0.5
    tones = 2 * view.uniform(TABLE * TABLE) - 1
    first, second = torch.full_like(u, 9), torch.full_like(u, 9)
    nearest = torch.zeros_like(u, dtype=torch.long)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            index = cell_index(row + i, column + j)
            x = look_up(places[:, 0], index) + (j - u)
            y = look_up(places[:, 1], index) + (i - v)
            distance = torch.where(square, torch.maximum(x.abs(), y.abs()) ** 2, x**2 + y**2)
            nearest = torch.where(distance < first, index, nearest)
            second = torch.minimum(second, torch.maximum(first, distance))
            first = torch.minimum(first, distance)
    return torch.sqrt(first), torch.sqrt(second), look_up(tones, nearest)


def cells(k: Knobs, view: View) -> Tensor:
    """Cushions, cracks, grains of flat tone, mosaics."""
    first, second, tone = _worley(k, view)
    border = torch.tanh((second - first) * k.octaves(2, 12))
    return chosen(k.choice(4), first, border, tone + 0.15 * border, border * (1 + 0.6 * tone))


def pebbles(k: Knobs, view: View) -> Tensor:
    """Separate grains on a ground: discs, domes and rings of their own tone, some of them missing."""
    first, _, tone = _worley(k, view)
    radius = k.between(0.2, 0.5) * (1 + k.between(0, 0.5) * tone)
    edge = torch.sigmoid((radius - first) * k.octaves(8, 60))
    there = (tone * 7.3 % 1 < k.between(0.3, 1.2)).float()
    own = 1 + k.between(-1.5, 1.5).clamp(min=0) * (tone * 13.7 % 1 - 0.5) * 2
    dome = torch.sqrt((1 - (first / radius) ** 2).clamp(min=0))
    ring = torch.exp(-(((first - radius) * k.octaves(6, 25)) ** 2))
    return there * chosen(k.choice(3), edge * own, dome * own, ring) + 0.03 * view.normal(
        view.size, view.size
    )


def leaves(k: Knobs, view: View) -> Tensor:
    """Ellipses, boxes and polygons that hide one another, flat or shaded, aligned or not."""
    u, v = view.plane(shift=False)
    size, count = k.octaves(0.06, 0.35) * view.size, k.octaves(4, 24)
    loose, slim, sharp = k.unit() < 0.5, k.between(0.25, 1), k.octaves(3, 25)
    shape, shaded, spread = k.choice(3), k.between(-1.2, 1.2).clamp(min=0), k.between(0.1, 0.7)
    field = torch.zeros_like(u)
    for i in range(24):
        x, y = (
            (view.uniform(1, 1) - 0.5) * view.size * 1.1,
            (view.uniform(1, 1) - 0.5) * view.size * 1.1,
        )
        turn = torch.where(loose, math.pi * view.uniform(1, 1), 0.0)
        cos, sin = torch.cos(turn), torch.sin(turn)
        radius = size * torch.exp(spread * view.normal(1, 1))
        p = (cos * (u - x) + sin * (v - y)) / radius
        q = (cos * (v - y) - sin * (u - x)) / (radius * slim)
        a, b = p.abs(), q.abs()
        extent = chosen(
            shape,
            torch.sqrt(p**2 + q**2),
            torch.maximum(a, b),
            torch.maximum(a, 0.5 * a + 0.87 * b),
        )
        cover = torch.sigmoid((1 - extent) * sharp * radius.clamp(min=2) / 4) * (i < count)
        field = field + cover * (view.normal(1, 1) + shaded * p - field)
    return field + 0.01 * view.normal(view.size, view.size)
