"""The inputs of every family of textures: the parameters of a class, and a view of the plane.

Shapes: n images of S x S pixels. A family's function takes (parameters, view) and returns a field
[n, S, S]. A place or a parameter of each image is [n, 1, 1].
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

TABLE = 32  # lattice cells repeat after this many; a power of two


class ClassParameters:
    """Parameters of the classes of n images: uniform in 0..1, [n, K], read one after another.

    Every method returns [n, 1, 1] and advances by one parameter, so the order of calls matters.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._next = 0

    def unit(self) -> Tensor:
        """Read a parameter that is uniform in 0..1."""
        value = self._values[:, self._next, None, None]
        self._next += 1
        return value

    def between(self, low: float, high: float) -> Tensor:
        """Read a parameter that is uniform from `low` to `high`."""
        return low + (high - low) * self.unit()

    def octaves(self, low: float, high: float) -> Tensor:
        """Read a parameter that is log-uniform from `low` to `high`."""
        return low * (high / low) ** self.unit()

    def choice(self, count: int) -> Tensor:
        """Read an integer from 0 to `count` - 1."""
        return (self.unit() * count).long().clamp(max=count - 1)


class View:
    """The way n images show the plane: rotated, scaled, shifted and warped, from one random stream.

    `angle` in radians, `scale` and `warp` in pixels are [n, 1, 1]. Lengths are pixels at scale 1;
    they do not depend on the size of the image.
    """

    def __init__(
        self, size: int, angle: Tensor, scale: Tensor, warp: Tensor, generator: torch.Generator
    ) -> None:
        self.n = len(angle)
        self.size = size
        self.generator = generator
        self.scale = scale
        self.warp = warp
        self._cos = torch.cos(angle)
        self._sin = torch.sin(angle)

    @classmethod
    def upright(cls, n: int, size: int, generator: torch.Generator) -> View:
        """Create a view that is neither rotated nor scaled nor warped."""
        zero = torch.zeros(n, 1, 1, device=generator.device)
        return cls(size, zero, zero + 1, zero, generator)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers in 0..1, [n, *shape]."""
        return torch.rand(self.n, *shape, generator=self.generator, device=self.generator.device)

    def normal(self, *shape: int) -> Tensor:
        """Draw normally distributed numbers, [n, *shape]."""
        return torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)

    def smooth(self, cells: int = 5) -> Tensor:
        """Draw smooth noise [n, S, S], about `cells` hills a side, standard deviation near 1."""
        basis = _spline(cells, self.size, self.generator.device)
        field: Tensor = basis @ self.normal(cells, cells) @ basis.T
        return field

    def turned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate coordinates that broadcast with [n, 1, 1] by the view's angle."""
        return self._cos * x + self._sin * y, self._cos * y - self._sin * x

    def plane(self, shift: bool = True) -> tuple[Tensor, Tensor]:
        """Return the coordinates (u, v) of the pixels in the texture, [n, S, S] each.

        Without `shift`, (0, 0) is the image's centre.
        """
        device = self.generator.device
        side = torch.arange(self.size, device=device, dtype=torch.float32) - (self.size - 1) / 2
        u, v = self.turned(side[None, None, :], side[None, :, None])
        u = self.scale * u
        v = self.scale * v
        if bool((self.warp > 0).any()):
            u = u + self.warp * self.smooth()
            v = v + self.warp * self.smooth()
        if shift:
            u = u + 500 * self.uniform(1, 1)
            v = v + 500 * self.uniform(1, 1)
        return u, v

    def somewhere(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates (u, v) in pixels about a random place of each image, [n, S, S] each.

        They are turned by `angle` [n, 1, 1].
        """
        zero = torch.zeros_like(angle)
        u, v = View(self.size, angle, zero + 1, zero, self.generator).plane(shift=False)
        reach = 0.9 * self.size
        u = u + reach * (self.uniform(1, 1) - 0.5)
        v = v + reach * (self.uniform(1, 1) - 0.5)
        return u, v

    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Return (u, v) in cycles per pixel of the texture, [n, S, S // 2 + 1] as in rfft2."""
        device = self.generator.device
        x = torch.fft.rfftfreq(self.size, device=device)[None, None, :]
        y = torch.fft.fftfreq(self.size, device=device)[None, :, None]
        u, v = self.turned(x, y)
        return u / self.scale, v / self.scale

    def filtered(self, noise: Tensor, amplitude: Tensor) -> Tensor:
        """Multiply the spectrum of noise [n, S, S] by an amplitude [n, S, S // 2 + 1]."""
        spectrum = torch.fft.rfft2(noise) * amplitude
        field: Tensor = torch.fft.irfft2(spectrum, s=noise.shape[-2:])
        return field

    def table(self, row: Tensor, column: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw a number from `low` to `high` for each cell of a lattice.

        `row` and `column` are integer-valued [n, S, S], and so is the shape of the result.
        """
        values = low + (high - low) * self.uniform(TABLE * TABLE)
        return look_up(values, cell_index(row, column))


@lru_cache(maxsize=32)
def _spline(cells: int, size: int, device: torch.device) -> Tensor:
    """Return the weights [size, cells] of cubic B-splines about `cells` knots, of unit energy."""
    position = torch.linspace(0, cells - 1, size, device=device)[:, None]
    x = (position - torch.arange(cells, device=device)).abs()
    near = 2 / 3 - x**2 + x**3 / 2
    far = (2 - x).clamp(min=0) ** 3 / 6
    weights = torch.where(x < 1, near, far)
    unit: Tensor = weights / weights.norm(dim=1, keepdim=True)
    return unit


def standardised(field: Tensor) -> Tensor:
    """Scale each field of [n, S, S] to mean 0 and standard deviation 1.

    A field without contrast becomes 0.
    """
    field = field - field.mean((-2, -1), keepdim=True)
    return field / field.std((-2, -1), keepdim=True).clamp(min=1e-4)


def blurred(images: Tensor) -> Tensor:
    """Average [n, c, S, S] over 3 x 3 pixels, with the edges repeated.

    On a CPU this is several times as fast as pooling.
    """
    for axis in (2, 3):
        n = images.shape[axis]
        before = torch.cat([images.narrow(axis, 0, 1), images.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([images.narrow(axis, 1, n - 1), images.narrow(axis, n - 1, 1)], axis)
        images = (images + before + after) / 3
    return images


def cell_index(row: Tensor, column: Tensor) -> Tensor:
    """Return the index of each lattice cell in a table [n, TABLE * TABLE] that repeats endlessly.

    `row` and `column` are integer-valued [n, S, S].
    """
    wrapped_row = row.long() & (TABLE - 1)
    wrapped_column = column.long() & (TABLE - 1)
    return (wrapped_row * TABLE) | wrapped_column


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """Return the values [n, TABLE * TABLE] at an index [n, S, S]."""
    return values.gather(1, index.flatten(1)).view_as(index)


def select(which: Tensor, *options: Tensor) -> Tensor:
    """Return options[which], image by image: which [n, 1, 1], each option [n, S, S]."""
    result = options[0]
    for number, option in enumerate(options[1:], 1):
        result = torch.where(which == number, option, result)
    return result


def wave(x: Tensor) -> Tensor:
    """Return a sine with period 1."""
    return torch.sin(2 * math.pi * x)
