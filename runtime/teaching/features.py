"""Features of pictures from a graph, and what the rest of the graph makes of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.console import first_line, log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.good_parts import PROGRESS_EVERY, map_peak
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image, Map
from flawline.runtime.large_array import allocate
from flawline.runtime.teaching.base import Floats, Learned
from flawline.runtime.teaching.pictures import no_space
from flawline.runtime.tiles import JoinedTiles


@dataclass(frozen=True)
class Features:
    """The raw features of n frames.

    `values` are float32 [inputs, P, d]: those of each input of the graph. A frame has `per_frame`
    inputs, one after the other. `grid` is the shape of the P positions in the graph.
    """

    values: Floats
    grid: tuple[int, ...]
    per_frame: int

    def inputs_of(self, frames: Iterable[int]) -> list[int]:
        """Return the indices of the inputs of these frames."""
        inputs: list[int] = []
        for frame in frames:
            first = frame * self.per_frame
            inputs += range(first, first + self.per_frame)
        return inputs


@dataclass(frozen=True)
class FrameScores:
    """Results of n frames: scores and largest inspected map values, float64 [n].

    `deciding` is for each frame the index of the input that has the largest score.
    """

    scores: npt.NDArray[np.float64]
    peaks: npt.NDArray[np.float64]
    deciding: list[int]


def inputs_of_frame(frame: Image, graph_input: GraphInput) -> Sequence[Image]:
    """Return the inputs of the graph for a prepared frame: the frame itself, or its tiles."""
    if graph_input.grid is None:
        return [frame]
    return [graph_input.grid.tile(frame, number) for number in range(len(graph_input.grid))]


def compute_features(
    backbone: bytes, frames: Image, graph_input: GraphInput, folder: Path, threads: int | None
) -> Features:
    """Run the part of a graph before its features on prepared frames, one input at a time.

    Large features are stored in `folder`. Raises EngineError, and TeachError without space.
    """
    session = open_session(backbone, threads)
    values: Floats | None = None
    grid: tuple[int, ...] = ()
    done = 0
    for number, frame in enumerate(frames, 1):
        for image in inputs_of_frame(frame, graph_input):
            (found,) = _run(session, {"image": np.ascontiguousarray(image)[None]})
            if values is None:
                grid = found.shape[2:]
                count = len(frames) * graph_input.inputs_per_frame
                values = _allocate((count, int(np.prod(grid)), found.shape[1]), folder)
            values[done] = found[0].reshape(found.shape[1], -1).T
            done += 1
        if number % PROGRESS_EVERY == 0:
            log(f"features of {number} of {len(frames)} pictures")
    assert values is not None
    return Features(values, grid, graph_input.inputs_per_frame)


class Head:
    """The part of a graph from its features on.

    A call turns raw features [P, d] of an input into its score, its map [H, W], which is [0, 0] in
    a graph without one, and the distances [P]. `learned` says what the graph makes of raw features.
    """

    def __init__(
        self,
        head: bytes,
        features: Features,
        learned: Learned,
        has_map: bool,
        threads: int | None,
    ) -> None:
        self._session = open_session(head, threads)
        self._name = self._session.get_inputs()[0].name
        self._grid = features.grid
        self._directions = learned.directions
        self._shift = learned.shift
        self._has_map = has_map

    def __call__(self, values: Floats) -> tuple[float, Map, Floats]:
        if self._directions is not None:
            values = values @ self._directions
        if self._shift is not None:
            values = values + self._shift
        batch = np.ascontiguousarray(values.T).reshape(1, -1, *self._grid)
        score, *maps, distances = _run(self._session, {self._name: batch})
        anomaly_map = maps[0][0] if self._has_map else np.zeros((0, 0), np.float32)
        return float(score[0]), anomaly_map, distances.reshape(-1)


def score_frames(
    head: Head, features: Features, frames: Iterable[int], graph_input: GraphInput
) -> FrameScores:
    """Score frames by their features, with their tiles joined. Raises EngineError."""
    scores = []
    peaks = []
    deciding = []
    for frame in frames:
        inputs = features.inputs_of([frame])
        score, anomaly_map, chosen = _score(head, features, inputs, graph_input)
        scores.append(score)
        peaks.append(map_peak(graph_input.suppressed(anomaly_map)))
        deciding.append(chosen)
    return FrameScores(np.array(scores), np.array(peaks), deciding)


def _score(
    head: Head, features: Features, inputs: Sequence[int], graph_input: GraphInput
) -> tuple[float, Map, int]:
    """Return the score and the map of a frame, and the input that decides its score."""
    if graph_input.grid is None:
        score, anomaly_map, _ = head(features.values[inputs[0]])
        return score, anomaly_map, inputs[0]
    joined = JoinedTiles(graph_input.grid)
    scores = []
    for number, place in enumerate(inputs):
        score, anomaly_map, _ = head(features.values[place])
        joined.add(number, score, anomaly_map)
        scores.append(score)
    return joined.score, joined.anomaly_map, inputs[int(np.argmax(scores))]


def _run(session: Any, inputs: dict[str, Any]) -> list[Any]:
    try:
        results: list[Any] = session.run(None, inputs)
    except Exception as error:
        # The exceptions of ONNX Runtime share no public base class.
        raise EngineError(
            f"onnxruntime cannot run a part of this graph ({first_line(error)}); build the bundle "
            f"again"
        ) from error
    return results


def _allocate(shape: tuple[int, ...], folder: Path) -> Floats:
    try:
        values: Floats = allocate(shape, folder)
    except OSError as error:
        raise no_space(shape, error) from error
    return values
