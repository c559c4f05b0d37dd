"""The bank of patches that are known as harmless, and what it does to anomaly values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
# The share of the squared radius within which a position is exempted completely.
INNER = 0.5
# Above every value.
NO_CAP = np.float32(3e38)
# Constants of the graph.
MEAN = "exempt.mean"
ROWS = "exempt.rows"
BIAS = "exempt.bias"
CAP = "exempt.cap"


@dataclass(frozen=True)
class PatchBank:
    """Rows [M, d] with their squared radii [M], float64, of features [d] less the `mean` [d].

    `cap` is the anomaly value of an ordinary position.
    """

    mean: Doubles
    rows: Doubles
    radii: Doubles
    cap: float

    @classmethod
    def without_rows(cls, channels: int) -> PatchBank:
        """Return a bank that exempts nothing."""
        return cls(np.zeros(channels), np.empty((0, channels)), np.empty(0), float(NO_CAP))

    @classmethod
    def of_constants(cls, constants: dict[str, npt.NDArray[np.float32]]) -> PatchBank:
        """Read what `constants` returned."""
        values = {name: value.astype(np.float64) for name, value in constants.items()}
        table = values[ROWS].reshape(len(values[ROWS]), -1)
        # One that fills an empty bank has no radius.
        table = table[table[:, -1] < 0]
        radii = -1 / (table[:, -1] * (1 - INNER))
        rows = table[:, :-1] * (1 - INNER) * radii[:, None] / 2
        return cls(values[MEAN].reshape(-1), rows, radii, float(values[CAP].item()))

    def constants(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the constants of the graph.

        Its last convolution reads the centred features [d] and their squared length.
        """
        channels = len(self.mean)
        scale = 1 / ((1 - INNER) * self.radii[:, None])
        rows = np.hstack([2 * self.rows * scale, -scale])
        lengths = np.square(self.rows).sum(1)
        bias = (1 - lengths / self.radii) / (1 - INNER)
        if not len(rows):
            rows = np.zeros((1, channels + 1))
            bias = np.array([-1.0])
        constants = {
            MEAN: self.mean.reshape(-1, 1, 1),
            ROWS: rows[:, :, None, None],
            BIAS: bias,
            CAP: np.array([self.cap]),
        }
        return {name: value.astype(np.float32) for name, value in constants.items()}

    def with_rows(self, rows: Doubles, radii: Doubles) -> PatchBank:
        """Return a bank with further rows."""
        return replace(
            self,
            rows=np.concatenate([self.rows, rows]),
            radii=np.concatenate([self.radii, radii]),
        )

    def share(self, features: Floats) -> Doubles:
        """Return how far each patch [P, d] is exempted, from 0 to 1, by differences in float64."""
        if not len(self.rows):
            return np.zeros(len(features))
        patches = features.astype(np.float64) - self.mean
        squared = np.square(self.rows).sum(1) - 2 * (patches @ self.rows.T)
        squared += np.square(patches).sum(1)[:, None]
        nearest = (squared / self.radii).argmin(1)
        exact = np.square(patches - self.rows[nearest]).sum(1)
        inside: Doubles = (1 - exact / self.radii[nearest]) / (1 - INNER)
        return inside.clip(0, 1)

    def lowered(self, values: Doubles, share: Doubles) -> Doubles:
        """Return anomaly values, of which each is exempted to a share."""
        lowered: Doubles = values - share * np.maximum(values - self.cap, 0)
        return lowered
