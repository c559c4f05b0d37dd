"""Scores of whole frames by a graph, and the tile of each frame that decides its score."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.export.selection import ImageSelection
from flawline.runtime.engines import Engine, open_reference
from flawline.runtime.good_parts import map_peak
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image
from flawline.runtime.tiles import JoinedTiles
from flawline.train.data.tiles import TileImages
from flawline.train.progress import Progress


@dataclass(frozen=True)
class FrameScores:
    """What an engine gives for n frames.

    Attributes:
        scores: float32 [n].
        peaks: the largest inspected values of the joined maps, float32 [n]; 0 without maps.
        deciding: for each frame the number of the tile with the largest score; 0 without tiles.
    """

    scores: npt.NDArray[Any]
    peaks: npt.NDArray[Any]
    deciding: list[int]


def score_prepared_frames(
    engine: Engine, frames: Sequence[Image], graph_input: GraphInput, progress: Progress
) -> FrameScores:
    """Run an engine on prepared frames, with their tiles one at a time. Raises EngineError."""
    scores = []
    peaks = []
    deciding = []
    for done, frame in enumerate(frames, 1):
        tile_scores = []
        if graph_input.grid is None:
            score, maps = engine(frame[None])
            tile_scores.append(float(score[0]))
            anomaly_map = maps[0]
        else:
            joined = JoinedTiles(graph_input.grid)
            for number in range(len(graph_input.grid)):
                tile = graph_input.grid.tile(frame, number)
                score, maps = engine(np.ascontiguousarray(tile)[None])
                tile_scores.append(float(score[0]))
                joined.add(number, tile_scores[-1], maps[0])
            anomaly_map = joined.anomaly_map
        scores.append(np.max(tile_scores))
        peaks.append(map_peak(graph_input.suppressed(anomaly_map)))
        deciding.append(int(np.argmax(tile_scores)))
        progress(f"{engine.name} {engine.precision}", done, len(frames))
    return FrameScores(np.array(scores, np.float32), np.array(peaks, np.float32), deciding)


def with_deciding_tiles(
    selection: ImageSelection,
    model: bytes,
    map_size: tuple[int, int],
    progress: Progress,
) -> tuple[ImageSelection, FrameScores | None]:
    """Replace the frames of a selection by the tile of each that decides its score.

    So graphs are compared on as many inputs as without tiles, and a flipped decision about one of
    these is one about the frame. `model` is the FP32 graph, and `map_size` is (0, 0) if it gives no
    map. Also returns its scores of the frames. A selection without tiles is returned as it is, with
    None.
    """
    grid = selection.graph_input.grid
    if grid is None:
        return selection, None
    with closing(open_reference(model, map_size)) as engine:
        found = score_prepared_frames(engine, selection.frames, selection.graph_input, progress)
    chosen = []
    for number, tile in enumerate(found.deciding):
        chosen.append(number * len(grid) + tile)
    tiles = TileImages(selection.frames, grid, chosen)
    return replace(selection, images=tiles, inputs=tiles), found
