"""Runs the tiles of frames in an engine, and joins their results to those of the frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawline.runtime.engines.base import Engine, EngineError
from flawline.runtime.image import Image, Map
from flawline.runtime.tiles import JoinedTiles, TileGrid

# Tiles of one call of an engine that gains from batches: more of them take more memory, and are
# hardly faster.
MOST_PER_CALL = 16


class TileRunner:
    """Takes prepared frames where an engine takes inputs of the graph, in the same ways.

    A call turns uint8 [N, h, w, 3] of the grid of the tiles into scores float32 [N] and maps
    float32 [N, h, w], or [N, 0, 0] without maps. The tiles of all frames of a batch share calls of
    the engine if it gains from batches. Any other engine gets as many tiles in a call as there are
    frames in the batch.
    """

    def __init__(self, engine: Engine, grid: TileGrid) -> None:
        self._engine = engine
        self._grid = grid
        self.largest_batch = engine.largest_batch
        self.in_flight = engine.in_flight
        # Frames whose result was not taken yet, and calls that the engine computes.
        self._batches: deque[_Batch] = deque()
        self._calls: deque[_Call] = deque()

    def __call__(self, frames: Image) -> tuple[Map, Map]:
        """Run a batch of frames. Raises EngineError."""
        self.submit(frames)
        return self.result()

    def submit(self, frames: Image) -> None:
        """Start a batch, whose results `result` returns. An error is raised there, too."""
        batch = _Batch([JoinedTiles(self._grid) for _ in frames])
        self._batches.append(batch)
        tiles = []
        for frame in range(len(frames)):
            for tile in range(len(self._grid)):
                tiles.append((frame, tile))
        most = self._most(len(frames))
        for first in range(0, len(tiles), most):
            chosen = tiles[first : first + most]
            inputs = np.stack([self._grid.tile(frames[frame], tile) for frame, tile in chosen])
            while len(self._calls) >= self._engine.in_flight:
                self._collect()
            if batch.error is not None:
                # The batch has no results, and each further call may last until a time-out.
                return
            try:
                self._engine.submit(inputs)
            except EngineError as error:
                batch.error = error
                return
            batch.calls += 1
            self._calls.append(_Call(batch, chosen, inputs))

    def result(self) -> tuple[Map, Map]:
        """Wait for the oldest batch of frames; return its scores [N] and maps, both float32.

        The arrays are new. Raises EngineError, and RuntimeError if no batch was submitted.
        """
        if not self._batches:
            raise RuntimeError("no batch was submitted")
        batch = self._batches.popleft()
        while batch.calls:
            self._collect()
        if batch.error is not None:
            raise batch.error
        scores = np.array([joined.score for joined in batch.frames], np.float32)
        return scores, np.stack([joined.anomaly_map for joined in batch.frames])

    def _most(self, frames: int) -> int:
        """Return how many tiles the engine gets in one call, for a batch of so many frames."""
        most = MOST_PER_CALL if self._engine.gains_from_batches else max(frames, 1)
        if self._engine.largest_batch is None:
            return most
        return min(most, self._engine.largest_batch)

    def _collect(self) -> None:
        """Take the oldest result of the engine."""
        call = self._calls.popleft()
        call.batch.calls -= 1
        try:
            scores, maps = self._engine.result()
        except EngineError as error:
            # The results of the other calls must be taken all the same.
            call.batch.error = error
            return
        for (frame, tile), score, tile_map in zip(call.tiles, scores.tolist(), maps, strict=True):
            call.batch.frames[frame].add(tile, score, tile_map)


@dataclass
class _Batch:
    """Frames, how many calls of the engine they still wait for, and the error of one of these."""

    frames: list[JoinedTiles]
    calls: int = 0
    error: EngineError | None = None


@dataclass
class _Call:
    """One call of the engine: for each of its inputs the numbers of the frame and of the tile.

    The engine reads the inputs until the result is taken.
    """

    batch: _Batch
    tiles: Sequence[tuple[int, int]]
    inputs: Image
