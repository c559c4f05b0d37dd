"""Measuring the images per second of an engine in throughput mode."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from flawline.runtime.ahead import Ahead, Prepared
from flawline.runtime.detector import Detector
from flawline.runtime.graph_input import Laid
from flawline.runtime.image import Image
from flawline.runtime.throughput import judge_in_flight
from flawline.runtime.verdict import Verdict

# The fewest images of a turn. At its end fewer batches are in flight, which costs about the time of
# half an image for each.
SHORTEST_TURN = 32


def images_of_turn(batch: int, streams: int | None) -> int:
    """Return how many images one turn of an engine needs, so that it has all batches in flight."""
    return max(SHORTEST_TURN, 4 * batch * (streams or 1))


def judge_passes(
    detector: Detector, images: Sequence[Image], passes: int, batch: int, keeps_maps: bool
) -> tuple[list[float], list[Verdict]]:
    """Judge all images `passes` times, without a pause between two passes.

    Returns the milliseconds per image of each pass, with the resizing, and the verdicts of the last
    pass. With `keeps_maps` these have maps of their own, and otherwise none. `images` are uint8
    [h, w, 3] BGR or [h, w]. A last batch that would be smaller than the others is filled up,
    because some engines compile for each size; this is part of the time.
    """
    count = len(images)
    total = passes * count
    filled = math.ceil(total / batch) * batch

    def prepared(number: int) -> Image | Laid | Verdict:
        return detector.prepare_image(images[number % count])

    times = []
    verdicts = []
    start = time.perf_counter()
    # As `flawline stream` does.
    with Ahead(iter(range(filled)), prepared, stop=lambda: None, depth=batch) as items:
        for number, verdict in judge_in_flight(detector, items, batch):
            if number >= total:
                continue
            if number >= total - count:
                verdicts.append(_kept(verdict, keeps_maps))
            if number % count == count - 1:
                end = time.perf_counter()
                times.append(1e3 * (end - start) / count)
                start = end
    return times, verdicts


def _kept(verdict: Verdict, keeps_maps: bool) -> Verdict:
    """Return a verdict that stays valid: the engine overwrites its map."""
    anomaly_map = None
    if keeps_maps and verdict.anomaly_map is not None:
        anomaly_map = verdict.anomaly_map.copy()
    return replace(verdict, anomaly_map=anomaly_map)


def warm_up(detector: Detector, image: Image, batch: int, seconds: float) -> None:
    """Judge an image untimed for at least `seconds`, in full batches that are all in flight."""
    prepared = detector.graph_input.of_image(image)
    end = time.perf_counter() + seconds
    count = batch * detector.runner.in_flight
    while True:
        for _ in judge_in_flight(detector, [Prepared(None, prepared)] * count, batch):
            pass
        if time.perf_counter() >= end:
            return
