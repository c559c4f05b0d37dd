"""Fields of objects: cells about random points, and leaves that cover each other.

Worley, "A cellular texture basis function" (1996); Lee, Mumford and Huang, "Occlusion models for
natural images" (2001), the dead leaves model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import (
    TABLE,
    ClassParameters,
    View,
    cell_index,
    look_up,
    select,
)

LEAVES = 24


def _worley(k: ClassParameters, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Place a point in each cell of a jittered lattice and search the two nearest of each pixel.

    Returns the distance to the nearest point and to the second nearest, in steps of the lattice,
    and the nearest point's own number in -1..1, [n, S, S] each.
    """
    u, v = view.plane()
    period = k.octaves(5, 40)
    u = u / period
    v = v / (period * k.octaves(0.4, 1))
    row = torch.floor(v)
    column = torch.floor(u)
    u = u - column
    v = v - row
    jitter = k.between(0.2, 1)
    square = k.unit() < 0.25  # these classes measure the distance by the longer axis
    places = jitter * (view.uniform(2, TABLE * TABLE) - 0.5) + 0.5
    tones = 2 * view.uniform(TABLE * TABLE) - 1

    first = torch.full_like(u, 9)
    second = torch.full_like(u, 9)
    nearest = torch.zeros_like(u, dtype=torch.long)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            index = cell_index(row + i, column + j)
            x = look_up(places[:, 0], index) + (j - u)
            y = look_up(places[:, 1], index) + (i - v)
            longer_axis = torch.maximum(x.abs(), y.abs())
            squared = torch.where(square, longer_axis**2, x**2 + y**2)
            nearest = torch.where(squared < first, index, nearest)
            second = torch.minimum(second, torch.maximum(first, squared))
            first = torch.minimum(first, squared)
    return torch.sqrt(first), torch.sqrt(second), look_up(tones, nearest)


def cells(k: ClassParameters, view: View) -> Tensor:
    """Draw cushions, cracks, grains of flat tone, mosaics."""
    first, second, tone = _worley(k, view)
    border = torch.tanh((second - first) * k.octaves(2, 12))
    grains = tone + 0.15 * border
    mosaic = border * (1 + 0.6 * tone)
    return select(k.choice(4), first, border, grains, mosaic)


def pebbles(k: ClassParameters, view: View) -> Tensor:
    """Draw separate grains on a ground: discs, domes and rings of their own tone, some missing."""
    first, _, tone = _worley(k, view)
    radius = k.between(0.2, 0.5) * (1 + k.between(0, 0.5) * tone)
    edge = torch.sigmoid((radius - first) * k.octaves(8, 60))
    # Two further numbers of each grain, from the digits of its first one.
    present = (tone * 7.3 % 1 < k.between(0.3, 1.2)).float()
    own_tone = 1 + k.between(-1.5, 1.5).clamp(min=0) * (tone * 13.7 % 1 - 0.5) * 2
    dome = torch.sqrt((1 - (first / radius) ** 2).clamp(min=0))
    ring = torch.exp(-(((first - radius) * k.octaves(6, 25)) ** 2))
    grains = select(k.choice(3), edge * own_tone, dome * own_tone, ring)
    return present * grains + 0.03 * view.normal(view.size, view.size)


def leaves(k: ClassParameters, view: View) -> Tensor:
    """Draw ellipses, boxes and polygons that hide one another, flat or shaded, aligned or not."""
    u, v = view.plane(shift=False)
    size = k.octaves(0.06, 0.35) * view.size
    count = k.octaves(4, 24)
    turned = k.unit() < 0.5
    slim = k.between(0.25, 1)
    sharp = k.octaves(3, 25)
    shape = k.choice(3)
    shaded = k.between(-1.2, 1.2).clamp(min=0)
    spread = k.between(0.1, 0.7)
    field = torch.zeros_like(u)
    for i in range(LEAVES):
        x = (view.uniform(1, 1) - 0.5) * view.size * 1.1
        y = (view.uniform(1, 1) - 0.5) * view.size * 1.1
        turn = torch.where(turned, math.pi * view.uniform(1, 1), 0.0)
        cos = torch.cos(turn)
        sin = torch.sin(turn)
        radius = size * torch.exp(spread * view.normal(1, 1))
        p = (cos * (u - x) + sin * (v - y)) / radius
        q = (cos * (v - y) - sin * (u - x)) / (radius * slim)
        extent = _leaf_extent(shape, p, q)
        cover = torch.sigmoid((1 - extent) * sharp * radius.clamp(min=2) / 4) * (i < count)
        field = field + cover * (view.normal(1, 1) + shaded * p - field)
    return field + 0.01 * view.normal(view.size, view.size)


def _leaf_extent(shape: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return 1 at the edge of a leaf and less inside; (p, q) are in units of its radii."""
    a = p.abs()
    b = q.abs()
    ellipse = torch.sqrt(p**2 + q**2)
    box = torch.maximum(a, b)
    hexagon = torch.maximum(a, 0.5 * a + 0.87 * b)
    return select(shape, ellipse, box, hexagon)
