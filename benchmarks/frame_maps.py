"""The anomaly maps of images where their masks are."""

from __future__ import annotations

import numpy as np

from flawline.runtime.detector import Detector
from flawline.runtime.image import Image, Map
from flawline.runtime.verdict import Verdict

# What stands for the score of a part that was not found, which is rejected: the metrics compare
# finite numbers.
HIGHEST_SCORE = float(np.finfo(np.float32).max)


def lacks_part(detector: Detector, image: Image) -> bool:
    """Tell whether the fixture of a detector does not find the part in an image."""
    fixture = detector.graph_input.fixture
    return fixture is not None and fixture.fault(fixture.find(image)) is not None


def map_on_frame(detector: Detector, image: Image, verdict: Verdict) -> Map:
    """Return the map of a verdict at the places of its image, a copy: float32 [H, W].

    It differs from the verdict's where a fixture laid the part. A place without a value has the
    lowest one of the map, and all have the lowest number if the part was not found.
    """
    graph_input = detector.graph_input
    if verdict.anomaly_map is None:
        return np.full(graph_input.map_size, -HIGHEST_SCORE, np.float32)
    if graph_input.fixture is None or not verdict.anomaly_map.size:
        # The engine overwrites its map in the next call.
        kept: Map = verdict.anomaly_map.copy()
        return kept
    moved: Map = graph_input.map_of_frame(verdict.anomaly_map, image)
    moved[np.isnan(moved)] = verdict.anomaly_map.min()
    return moved
