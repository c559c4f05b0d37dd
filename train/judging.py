"""Scores and maps of a method for images, also of a method that has no map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.method import Method
from flawline.train.progress import Progress, no_progress


@torch.inference_mode()
def evaluate(
    method: Method,
    images: Sequence[Image],
    progress: Progress = no_progress,
    label: str = "torch reference",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Compute scores [n] and maps [n, H, W] of prepared images, one at a time, on its device.

    Maps are [n, 0, 0] in a method without map.
    """
    device = method.device
    scores, maps = [], []
    for index, image in enumerate(images):
        score, anomaly_map = method(torch.from_numpy(np.asarray(image))[None].to(device))
        scores.append(score.cpu().numpy()[0])
        maps.append(anomaly_map.cpu().numpy()[0])
        progress(label, index + 1, len(images))
    return np.array(scores, np.float32), np.array(maps, np.float32)


def no_map(score: Tensor) -> Tensor:
    """Return what takes the place of maps in a method without: [N, 0, 0] for scores [N]."""
    # Slices, because their sizes are constants of a graph whose N is not.
    return score[:, None, None][:, :0, :0]


def map_peaks(maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the largest value of each map [n, H, W]; 0 for maps [n, 0, 0] of a method without."""
    if maps.size == 0:
        return np.zeros(len(maps), np.float32)
    peaks: npt.NDArray[Any] = maps.max((1, 2))
    return peaks
