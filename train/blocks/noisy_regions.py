"""Irregular regions of feature maps that get noise, and the loss of a map that must show them.

Rolih et al., "SuperSimpleNet" (ICPR 2024), with the constants of the authors' code.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.train.anomalies import Mask
from flawline.train.anomalies.perlin import perlin_noise

EXPONENTS = 6  # Perlin noise has 2 to the power of 0 to 5 cells along an axis
MARGIN = 0.5  # of the truncated L1 loss, on either side
FOCUS = 4  # exponent of the focal loss


def draw_region(shape: tuple[int, int], threshold: float, rng: np.random.Generator) -> Mask:
    """Draw where Perlin noise of a random fineness exceeds a threshold, bool [H, W].

    It is empty with a probability of a half, and where no noise is above the threshold.
    """
    rows, columns = (2 ** rng.integers(0, EXPONENTS, 2)).tolist()
    noise = perlin_noise(shape, (rows, columns), rng)
    if rng.random() > 0.5:
        return np.zeros(shape, bool)
    return np.asarray(noise > threshold, bool)


def segmentation_loss(logits: Tensor, anomalous: Tensor) -> Tensor:
    """Return the truncated L1 loss plus the focal loss of logits [n]; anomalous: bool [n].

    The first is the mean over normal values plus that over anomalous ones, the second the mean over
    all.
    """
    total = torch.zeros((), device=logits.device)
    for chosen, beyond in ((~anomalous, logits), (anomalous, -logits)):
        if chosen.any():
            total = total + F.relu(beyond[chosen] + MARGIN).mean()
    target = anomalous.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = torch.sigmoid(torch.where(anomalous, -logits, logits))
    return total + (missed**FOCUS * cross_entropy).mean()
