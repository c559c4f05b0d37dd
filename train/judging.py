"""Scores and maps of a method for images, also of a method that has no map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image, Map
from flawline.runtime.tiles import JoinedTiles, TileGrid
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
        score, anomaly_map = method(torch.from_numpy(np.ascontiguousarray(image))[None].to(device))
        scores.append(score.cpu().numpy()[0])
        maps.append(anomaly_map.cpu().numpy()[0])
        progress(label, index + 1, len(images))
    return np.array(scores, np.float32), np.array(maps, np.float32)


@torch.inference_mode()
def evaluate_frames(
    method: Method,
    frames: Sequence[Image],
    graph_input: GraphInput,
    progress: Progress = no_progress,
    label: str = "torch reference",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Compute the scores and the largest inspected values of the maps, [n] each, of frames.

    `frames` are uint8 [h, w, 3], as `graph_input.prepared` returns them. With tiles, the results
    are those of the joined tiles. The largest values are 0 in a method without map.
    """
    scores = []
    peaks = []
    for done, frame in enumerate(frames, 1):
        score, anomaly_map = _judge(method, frame, graph_input.grid)
        scores.append(score)
        peaks.append(map_peaks(graph_input.suppressed(anomaly_map)[None])[0])
        progress(label, done, len(frames))
    return np.array(scores, np.float32), np.array(peaks, np.float32)


def _judge(method: Method, frame: Image, grid: TileGrid | None) -> tuple[float, Map]:
    """Return the score and the map of a prepared frame."""
    if grid is None:
        scores, maps = evaluate(method, [frame])
        return float(scores[0]), maps[0]
    joined = JoinedTiles(grid)
    for number in range(len(grid)):
        scores, maps = evaluate(method, [grid.tile(frame, number)])
        joined.add(number, float(scores[0]), maps[0])
    return joined.score, joined.anomaly_map


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
