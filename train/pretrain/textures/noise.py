"""Random fields: coloured and band-limited noise, sparse kernels, bands of equal level.

Baradad et al., "Learning to see by looking at noise" (2021); Lagae et al., "Procedural noise using
sparse Gabor convolution" (2009).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flawline.train.pretrain.textures.view import ClassParameters, View, select, standardised, wave


def _radius(k: ClassParameters, view: View) -> Tensor:
    """Return the frequency in cycles per pixel, [n, S, S // 2 + 1].

    It is anisotropic for half of the classes.
    """
    u, v = view.frequencies()
    stretch = k.between(-1, 0.95).clamp(min=0)
    return torch.sqrt(u**2 + ((1 - stretch) * v) ** 2) + 1e-3


def spectral(k: ClassParameters, view: View) -> Tensor:
    """Draw noise with a power-law spectrum, or in a band about one frequency."""
    radius = _radius(k, view)
    from_centre = torch.log(radius / k.octaves(0.03, 0.3))
    width = k.between(0.15, 0.9)
    band = torch.exp(-(from_centre**2) / (2 * width**2))
    power = radius ** -k.between(0.4, 2.4)
    amplitude = torch.where(k.unit() < 0.5, band, power)
    noise = view.normal(view.size, view.size)
    return view.filtered(noise, amplitude)


def spots(k: ClassParameters, view: View) -> Tensor:
    """Draw kernels at random places: blobs, rings and Gabor wavelets, of one sign or both."""
    radius = _radius(k, view)
    across, along = view.frequencies()
    width = k.octaves(0.04, 0.25)
    centre = k.octaves(0.06, 0.3)
    blob = torch.exp(-((radius / width) ** 2) / 2)
    from_ring = (radius - centre) / (0.4 * width)
    ring = torch.exp(-(from_ring**2) / 2)
    x = (across.abs() - centre) / (0.5 * width)
    y = along / (0.5 * width)
    gabor = torch.exp(-(x**2 + y**2) / 2)

    size = view.size
    impulses = view.uniform(size, size) < k.octaves(0.0008, 0.04)
    positive = view.uniform(size, size) < k.between(0.5, 1.3)
    sign = torch.where(positive, 1.0, -1.0)
    strength = 1 + k.between(0, 0.8) * view.normal(size, size)
    kernel = select(k.choice(3), blob, ring, gabor)
    return view.filtered(impulses.float() * sign * strength, kernel)


def contours(k: ClassParameters, view: View) -> Tensor:
    """Draw a smooth field through a curve: marble bands, ridges, islands, terraces."""
    radius = _radius(k, view)
    low_pass = torch.exp(-((radius / k.octaves(0.015, 0.08)) ** 2))
    amplitude = low_pass * radius ** -k.between(0, 1.5)
    noise = view.normal(view.size, view.size)
    field = standardised(view.filtered(noise, amplitude))
    level = k.between(-1, 1)
    count = k.octaves(0.5, 3)
    roughness = k.between(-0.3, 0.3).clamp(min=0)
    grain = roughness * view.normal(view.size, view.size)
    u, _ = view.plane()
    bands = wave(count * field)
    ridges = -torch.log(0.05 + (field - level).abs())
    islands = torch.tanh(8 * (field - level))
    marble = wave(u * k.octaves(0.02, 0.1) + 0.4 * count * field)
    terraces = torch.floor(count * 1.5 * field) + 0.2 * field
    field = select(k.choice(5), bands, ridges, islands, marble, terraces)
    return field + grain


def strokes(k: ClassParameters, view: View) -> Tensor:
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
        across = cos * (v - y) - sin * (u - x)
        across = across + bend * view.normal(1, 1) * along**2
        beyond = (along.abs() - length / 2).clamp(min=0)
        negative = both_signs & (view.uniform(1, 1) < 0.5)
        sign = torch.where(negative, -1.0, 1.0)
        strength = sign * (0.4 + view.uniform(1, 1))
        profile = 1 + ((across**2 + beyond**2) / width**2) ** 2
        field = field + strength * (i < count) / profile
    return field + 0.02 * view.normal(size, size)
