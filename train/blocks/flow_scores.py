"""Scores of the latent of a flow, literally, in the exported form, and chosen on anomalies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.train.anomalies import SyntheticAnomalies
from flawline.train.method import Fit
from flawline.train.metrics import auroc

# Added to an energy before its logarithm is taken, which 0 has not.
SMALLEST_ENERGY = 1e-4


def literal_score(z: Tensor, by_energy: bool) -> Tensor:
    """Compute the score of every position of a latent: [N, C, h, w] to [N, h, w].

    It is the mean energy z^2 / 2 over the channels, or the negative mean of the standard normal
    density, which saturates far from good images.
    """
    if by_energy:
        return z.square().mean(1) / 2
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return -density.mean(1)


def judge_positions(
    per_position: Tensor, size: tuple[int, int], window: int
) -> tuple[Tensor, Tensor]:
    """Compute score [N] and map [N, *size] from the scores of positions [N, h, w].

    window: see `LargestWindow`.
    """
    planes = per_position[:, None]
    anomaly_map = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[:, 0]
    return LargestWindow(window)(planes, anomaly_map), anomaly_map


def log_energy(energy: Tensor) -> Tensor:
    """Return the logarithms of energies [N], which are 0 or more, as scores [N].

    The order of the images stays as it is. Energies of defects are up to a million times those of
    good images, and rounding errors are in proportion to them: after the logarithm, the same share
    of an energy is the same difference of a score for all images. log(1 + energy) does not reach
    that for good images with energies below 1, whose scores it brings close together.
    """
    return torch.log(energy + SMALLEST_ENERGY)


class LargestWindow(nn.Module):
    """The score [N] from the scores of positions [N, 1, h, w] and the map [N, H, W] made of them.

    As published, with a window of 1, it is the largest value of the map. With a larger, odd window
    it is the largest mean over so many positions per side, fewer at the border: a defect covers
    several positions, and good images have single ones that are unlikely.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, per_position: Tensor, anomaly_map: Tensor) -> Tensor:
        if self.window == 1:
            return anomaly_map.amax((1, 2))
        side = self.window
        means = F.avg_pool2d(per_position, side, 1, side // 2, count_include_pad=False)
        return means.amax((1, 2, 3))


def fused_score(scale: Tensor, by_energy: bool) -> nn.Module:
    """Return `literal_score` for export: unscaled latent [N, C, h, w] to [N, 1, h, w].

    scale: [C], the factor that the latent lacks (`FusedFlow.scale`).
    """
    if by_energy:
        return MeanEnergy(scale)
    return NegativeMeanDensity(scale)


class MeanEnergy(nn.Module):
    """Mean of z^2 / 2 over the channels; see `fused_score`."""

    weight: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        weight = scale.square() / (2 * len(scale))
        self.register_buffer("weight", weight[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x * x, self.weight)


class NegativeMeanDensity(nn.Module):
    """Negative mean of the standard normal density over the channels; see `fused_score`."""

    half_square: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("half_square", -0.5 * scale.square()[:, None, None])
        self.factor = -1 / (len(scale) * math.sqrt(2 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        density = torch.exp(x * x * self.half_square)
        return density.sum(1, keepdim=True) * self.factor


def choose_score(
    both_scores: Callable[[Image], tuple[float, float]],
    anomalies: SyntheticAnomalies,
    draws: int,
    fit: Fit,
) -> bool:
    """Choose between energy and density by their AUROC on synthetic anomalies.

    both_scores: energy and density of an image, uint8 [H, W, 3]. Returns whether the energy is
    better, and notes the choice for the user.
    """
    labels = []
    scores = []
    empty = 0
    for draw in range(draws):
        normal, synthetic, mask = anomalies.sample(draw)
        labels += [False, True]
        scores += [both_scores(normal), both_scores(synthetic)]
        if not mask.any():
            empty += 1
        fit.progress("choosing the score", draw + 1, draws)
    energies, densities = np.array(scores).T
    energy = auroc(np.array(labels), energies)
    density = auroc(np.array(labels), densities)
    better = "energy" if energy > density else "density"
    fit.notes.append(
        f"score: mean {better} (AUROC on synthetic anomalies: energy {energy:.3f}, "
        f"density {density:.3f}; {anomalies.description})"
    )
    if empty:
        fit.notes.append(
            f"note: {empty} of {draws} synthetic anomalies are empty; see them, and try other "
            "settings, with python -m flawline.train.anomalies"
        )
    return energy > density
