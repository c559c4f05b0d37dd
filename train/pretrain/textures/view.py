"""What every family of textures is drawn with: a class's parameters, and one image's view of the plane.

Shapes: n images of S x S pixels. A family's function takes (knobs, view) and returns a field [n, S, S].
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

TABLE = 32  # lattice cells repeat after so many; a power of two


def normalised(field: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 per image; an image without contrast stays 0."""
    field = field - field.mean((-2, -1), keepdim=True)
    return field / field.std((-2, -1), keepdim=True).clamp(min=1e-4)


class Knobs:
    """Parameters of the classes of n images, uniform in 0..1 [n, K], read one after another as [n, 1, 1]."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._next = values, 0

    def unit(self) -> Tensor:
        self._next += 1
        return self._values[:, self._next - 1, None, None]

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * self.unit()

    def octaves(self, low: float, high: float) -> Tensor:
        """Log-uniform from low to high."""
        return low * (high / low) ** self.unit()

    def choice(self, count: int) -> Tensor:
        """An integer below count."""
        return (self.unit() * count).long().clamp(max=count - 1)


class View:
    """How n images look at the plane: rotated, scaled, shifted and warped, on one random stream.

    `angle` and `scale` are [n, 1, 1], `warp` [n, 1, 1] is in pixels. Lengths are pixels at scale 1 whatever the size.
    """

    def __init__(
        self, size: int, angle: Tensor, scale: Tensor, warp: Tensor, generator: torch.Generator
    ) -> None:
        self.n, self.size, self.generator = len(angle), size, generator
        self.scale, self.warp = scale, warp
        self._cos, self._sin = torch.cos(angle), torch.sin(angle)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.n, *shape, generator=self.generator, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)

    def smooth(self, cells: int = 5) -> Tensor:
        """Smooth noise [n, S, S] with about `cells` hills a side and a standard deviation near 1."""
        basis = _spline(cells, self.size, self.generator.device)
        field: Tensor = basis @ self.normal(cells, cells) @ basis.T
        return field

    def turned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos * x + self._sin * y, self._cos * y - self._sin * x

    def plane(self, shift: bool = True) -> tuple[Tensor, Tensor]:
        """Coordinates (u, v) [n, S, S] of the pixels in the texture; without shift (0, 0) is the image's centre."""
        side = (
            torch.arange(self.size, device=self.generator.device, dtype=torch.float32)
            - (self.size - 1) / 2
        )
        u, v = self.turned(side[None, None, :], side[None, :, None])
        u, v = self.scale * u, self.scale * v
        if bool((self.warp > 0).any()):
            u, v = u + self.warp * self.smooth(), v + self.warp * self.smooth()
        if shift:
            u, v = u + 500 * self.uniform(1, 1), v + 500 * self.uniform(1, 1)
        return u, v

    def somewhere(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (u, v) [n, S, S] in pixels about a random place of each image, turned by angle [n, 1, 1]."""
        still = torch.zeros_like(angle)
        u, v = View(self.size, angle, still + 1, still, self.generator).plane(shift=False)
        reach = 0.9 * self.size
        return u + reach * (self.uniform(1, 1) - 0.5), v + reach * (self.uniform(1, 1) - 0.5)

    def frequencies(self) -> tuple[Tensor, Tensor]:
        """(u, v) [n, S, S // 2 + 1] in cycles per pixel of the texture, as rfft2 orders them."""
        device = self.generator.device
        x = torch.fft.rfftfreq(self.size, device=device)[None, None, :]
        y = torch.fft.fftfreq(self.size, device=device)[None, :, None]
        u, v = self.turned(x, y)
        return u / self.scale, v / self.scale

    def filtered(self, noise: Tensor, amplitude: Tensor) -> Tensor:
        """Noise [n, S, S] with its spectrum multiplied by amplitude [n, S, S // 2 + 1]."""
        field: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=noise.shape[-2:])
        return field

    def table(self, row: Tensor, column: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A random number for each cell of a lattice: integer-valued row and column [n, S, S] to [n, S, S]."""
        values = low + (high - low) * self.uniform(TABLE * TABLE)
        return look_up(values, cell_index(row, column))


@lru_cache(maxsize=32)
def _spline(cells: int, size: int, device: torch.device) -> Tensor:
    """Cubic B-splines about `cells` knots from edge to edge, as weights [size, cells] of unit energy."""
    at = torch.linspace(0, cells - 1, size, device=device)[:, None]
    x = (at - torch.arange(cells, device=device)).abs()
    weights = torch.where(x < 1, 2 / 3 - x**2 + x**3 / 2, (2 - x).clamp(min=0) ** 3 / 6)
    unit: Tensor = weights / weights.norm(dim=1, keepdim=True)
    return unit


def blurred(picture: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels of [n, c, S, S], edges repeated; several times as fast as pooling on a CPU."""
    for axis in (2, 3):
        n = picture.shape[axis]
        before = torch.cat([picture.narrow(axis, 0, 1), picture.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([picture.narrow(axis, 1, n - 1), picture.narrow(axis, n - 1, 1)], axis)
        picture = (picture + before + after) / 3
    return picture


def cell_index(row: Tensor, column: Tensor) -> Tensor:
    """Of integer-valued rows and columns, into a table [n, TABLE * TABLE] that is repeated endlessly."""
    return ((row.long() & (TABLE - 1)) * TABLE) | (column.long() & (TABLE - 1))


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """values [n, TABLE * TABLE] at index [n, S, S]."""
    return values.gather(1, index.flatten(1)).view_as(index)


def chosen(which: Tensor, *options: Tensor) -> Tensor:
    """options[which], image by image: which [n, 1, 1], each option [n, S, S]."""
    result = options[0]
    for i, option in enumerate(options[1:], 1):
        result = torch.where(which == i, option, result)
    return result


def wave(x: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * x)
