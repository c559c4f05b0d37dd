"""Random fields: coloured and band-limited noise, sparse kernels, bands of equal level.

Baradad et al., "Learning to see by looking at noise" (2021); Lagae et al., "Procedural noise using
sparse Gabor convolution" (2009).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import Knobs, View, select, standardised, wave


def _radius(k: Knobs, view: View) -> Tensor:
    """Return the frequency in cycles per pixel, [n, S, S // 2 + 1].

    It is anisotropic for half of the classes.
    """
    u, v = view.frequencies()
    stretch = k.between(-1, 0.95).clamp(min=0)
    return torch.sqrt(u**2 + ((1 - stretch) * v) ** 2) + 1e-3


def spectral(k: Knobs, view: View) -> Tensor:
    """Draw noise with a power-law spectrum, or in a band about one frequency."""
    radius = _radius(k, view)
    octaves_off = torch.log(radius / k.octaves(0.03, 0.3))
    band = torch.exp(-(octaves_off**2) / (2 * k.between(0.15, 0.9) ** 2))
    power = radius ** -k.between(0.4, 2.4)
    noise = view.normal(view.size, view.size)
    return view.filtered(noise, torch.where(k.unit() < 0.5, band, power))


def spots(k: Knobs, view: View) -> Tensor:
    """Draw kernels at random places: blobs, rings and Gabor wavelets, of one sign or both."""
    radius = _radius(k, view)
    across, along = view.frequencies()
    width = k.octaves(0.04, 0.25)
    centre = k.octaves(0.06, 0.3)
    blob = torch.exp(-((radius / width) ** 2) / 2)
    ring = torch.exp(-(((radius - centre) / (0.4 * width)) ** 2) / 2)
    across_off = (across.abs() - centre) / (0.5 * width)
    along_off = along / (0.5 * width)
    gabor = torch.exp(-(across_off**2 + along_off**2) / 2)

    impulses = (view.uniform(view.size, view.size) < k.octaves(0.0008, 0.04)).float()
    positive = view.uniform(view.size, view.size) < k.between(0.5, 1.3)
    sign = torch.where(positive, 1.0, -1.0)
    strength = 1 + k.between(0, 0.8) * view.normal(view.size, view.size)
    return view.filtered(impulses * sign * strength, select(k.choice(3), blob, ring, gabor))


def contours(k: Knobs, view: View) -> Tensor:
    """Draw a smooth field through a curve: marble bands, ridges, islands, terraces."""
    radius = _radius(k, view)
    low_pass = torch.exp(-((radius / k.octaves(0.015, 0.08)) ** 2))
    amplitude = low_pass * radius ** -k.between(0, 1.5)
    field = standardised(view.filtered(view.normal(view.size, view.size), amplitude))
    level = k.between(-1, 1)
    count = k.octaves(0.5, 3)
    grain = k.between(-0.3, 0.3).clamp(min=0) * view.normal(view.size, view.size)
    u, _ = view.plane()
    bands = wave(count * field)
    ridges = -torch.log(0.05 + (field - level).abs())
    islands = torch.tanh(8 * (field - level))
    marble = wave(u * k.octaves(0.02, 0.1) + 0.4 * count * field)
    terraces = torch.floor(count * 1.5 * field) + 0.2 * field
    return select(k.choice(5), bands, ridges, islands, marble, terraces) + grain


def strokes(k: Knobs, view: View) -> Tensor:
    """Draw curved lines at random places: fibres, hairs, scratches; parallel or not."""
    u, v = view.plane(shift=False)
    size = view.size
    spread = k.between(-0.6, 1.6).clamp(0, 1) * math.pi / 2
    bend = k.between(0, 0.012)
    width = k.octaves(0.5, 3)
    length = k.octaves(8, 120)
    count = k.octaves(4, 20)
    both_signs = k.unit() < 0.4
    field = torch.zeros_like(u)
    for i in range(20):
        x = (view.uniform(1, 1) - 0.5) * size * 1.2
        y = (view.uniform(1, 1) - 0.5) * size * 1.2
        turn = spread * (2 * view.uniform(1, 1) - 1)
        cos = torch.cos(turn)
        sin = torch.sin(turn)
        along = cos * (u - x) + sin * (v - y)
        across = cos * (v - y) - sin * (u - x) + bend * view.normal(1, 1) * along**2
        beyond = (along.abs() - length / 2).clamp(min=0)
        negative = both_signs & (view.uniform(1, 1) < 0.5)
        strength = torch.where(negative, -1.0, 1.0) * (0.4 + view.uniform(1, 1))
        profile = 1 + ((across**2 + beyond**2) / width**2) ** 2
        field = field + strength * (i < count) / profile
    return field + 0.02 * view.normal(size, size)
