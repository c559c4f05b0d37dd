"""Maps that are standardised by what good images have at each position."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from flawline.train.method import Fit, Method, Phase

# Added to the deviation at a position, which may be 0.
LEAST_DEVIATION = 0.02


class StandardisedMaps(nn.Module):
    """Maps [N, H, W] minus the mean of good images' maps, divided by their deviation plus 0.02.

    Before `estimate`, the maps stay as they are.
    """

    offset: Tensor  # [H, W]
    scale: Tensor  # [H, W]

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, maps: Tensor) -> Tensor:
        return (maps - self.offset) / self.scale

    @torch.inference_mode()
    def estimate(self, fit: Fit, map_of: Callable[[Tensor], Tensor]) -> None:
        """Set mean and deviation to those of the maps of the images of `fit`.

        map_of: computes maps [1, H, W] of images, uint8 BGR [1, H, W, 3].
        """
        device = self.offset.device
        total = torch.zeros(2, *self.offset.shape, dtype=torch.float64, device=device)
        for number, image in enumerate(fit.images, 1):
            one = map_of(torch.from_numpy(image)[None].to(device))[0].double()
            total[0] += one
            total[1] += one * one
            fit.progress("maps of good images", number, len(fit.images))
        mean, square = total / len(fit.images)
        self.offset.copy_(mean)
        self.scale.copy_((square - mean * mean).clamp_min(0).sqrt() + LEAST_DEVIATION)


class StandardisedMethod(Method):
    """A method that is trained on the pixels and whose maps may be standardised afterwards.

    A subclass creates `standardised` and implements the three methods below.
    """

    trains_on_pixels: ClassVar[bool] = True
    standardised: StandardisedMaps

    def fit(self, fit: Fit) -> int:
        phase = fit.phase("training")
        done = fit.steps
        if not phase.done:
            done = self._train(fit, phase)
        # The second part is short and starts again when it was interrupted.
        if self._standardises:
            self.standardised.estimate(fit, self._map_of)
        return done

    @property
    @abc.abstractmethod
    def _standardises(self) -> bool:
        """Whether the maps of this setting are standardised."""

    @abc.abstractmethod
    def _train(self, fit: Fit, phase: Phase) -> int:
        """Train the networks to the end or the deadline; return the steps done."""

    @abc.abstractmethod
    def _map_of(self, image: Tensor) -> Tensor:
        """Compute maps [N, H, W], not standardised yet, of images, uint8 BGR [N, H, W, 3]."""


class FusedStandardisation(nn.Module):
    """`StandardisedMaps` for export, without the division."""

    offset: Tensor
    factor: Tensor

    def __init__(self, maps: StandardisedMaps) -> None:
        super().__init__()
        self.register_buffer("offset", maps.offset)
        self.register_buffer("factor", 1 / maps.scale)

    def forward(self, maps: Tensor) -> Tensor:
        return (maps - self.offset) * self.factor
