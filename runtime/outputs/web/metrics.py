"""Counters and times of a stream for Prometheus. They are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from flawline import __version__
from flawline.runtime.drift.quantities import CAUSES
from flawline.runtime.outputs.web.board import Board
from flawline.runtime.outputs.web.lane import LATENCY_BOUNDS, LaneView
from flawline.runtime.outputs.web.state import faults_of

PREFIX = "flawline"
# Name, what it counts, and the place of its verdict in the counts of a lane.
VERDICTS = (
    ("reviewed", "frames or parts for review", 1),
    ("rejected", "frames or parts that were judged anomalous", 2),
    ("unjudged", "frames or parts that were rejected because they could not be judged", 3),
)


class StreamCollector(Collector):
    """Reads the board of a page. The stream itself counts nothing for Prometheus."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        views = {name: lane.view() for name, lane in self._board.lanes.items()}
        yield from self._counters(views)
        yield from _gauges(views)
        yield _latency(views)
        yield from self._cameras()
        yield from self._outputs()
        yield self._info()
        healthy = GaugeMetricFamily(f"{PREFIX}_healthy", "1 if /healthz answers with 200")
        healthy.add_metric([], 0 if faults_of(self._board) else 1)
        yield healthy

    def _counters(self, views: Mapping[str, LaneView]) -> Iterator[Metric]:
        judged = _counter("frames_judged", "frames or parts that were judged")
        dropped = _counter("frames_dropped", "frames that were replaced by newer ones")
        for name, view in views.items():
            judged.add_metric([name], view.frames - view.counts[3])
            dropped.add_metric([name], self._board.dropped(name))
        yield judged
        yield dropped
        for key, meaning, place in VERDICTS:
            counter = _counter(f"frames_{key}", meaning)
            for name, view in views.items():
                counter.add_metric([name], view.counts[place])
            yield counter

    def _cameras(self) -> Iterator[Metric]:
        up = _gauge("camera_up", "0 if the camera gives no frames because it stalled or failed")
        reconnects = _counter("camera_reconnects", "how often the camera was opened again")
        for watch in self._board.cameras:
            up.add_metric([watch.name], int(watch.fault is None))
            reconnects.add_metric([watch.name], watch.camera.reconnects)
        yield up
        yield reconnects

    def _outputs(self) -> Iterator[Metric]:
        stream = self._board.stream()
        counts = GaugeMetricFamily(
            f"{PREFIX}_output", "what the outputs have counted", labels=["output", "count"]
        )
        fault = GaugeMetricFamily(
            f"{PREFIX}_output_fault", "1 if something is wrong with the output", labels=["output"]
        )
        for number, (name, state) in enumerate(() if stream is None else stream.outputs, 1):
            label = f"{number} {name}"
            fault.add_metric([label], int(state.fault is not None))
            for key, count in state.counts.items():
                counts.add_metric([label, key], count)
        yield counts
        yield fault

    def _info(self) -> Metric:
        stream = self._board.stream()
        info = InfoMetricFamily(f"{PREFIX}_stream", "what judges")
        facts = {"version": __version__, "bundle": self._board.bundle.short_id}
        if stream is not None:
            facts |= {"engine": stream.engine, "recipe": stream.recipe or ""}
        info.add_metric([], facts)
        return info


def metrics_text(board: Board) -> bytes:
    """Return the metrics of a stream in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StreamCollector(board))
    return generate_latest(registry)


def _gauges(views: Mapping[str, LaneView]) -> Iterable[Metric]:
    score = _gauge("score", "score of the newest frame that was judged")
    threshold = _gauge("threshold", "a frame with a higher score is rejected")
    review = _gauge("review_threshold", "a frame with a higher score is for review")
    fps = _gauge("fps", "frames per second")
    silent = _gauge("seconds_since_frame", "seconds since the newest frame was judged")
    drift = GaugeMetricFamily(
        f"{PREFIX}_drift",
        "1 while the frames are not like the good images of the training",
        labels=["camera", "warning"],
    )
    for name, view in views.items():
        fps.add_metric([name], view.fps)
        if view.silent_s is not None:
            silent.add_metric([name], view.silent_s)
        verdict = view.newest
        if verdict is None:
            continue
        threshold.add_metric([name], verdict.threshold)
        for cause in CAUSES:
            drift.add_metric([name, cause], int(cause in verdict.drift))
        if verdict.judged:
            score.add_metric([name], verdict.score)
        if verdict.review_threshold is not None:
            review.add_metric([name], verdict.review_threshold)
    return score, threshold, review, fps, silent, drift


def _latency(views: Mapping[str, LaneView]) -> Metric:
    histogram = HistogramMetricFamily(
        f"{PREFIX}_latency_seconds",
        "time that preparation and engine took for a frame",
        labels=["camera"],
    )
    for name, view in views.items():
        buckets = []
        total = 0
        for bound, count in zip((*LATENCY_BOUNDS, float("inf")), view.latency, strict=True):
            total += count
            label = "+Inf" if bound == float("inf") else str(bound)
            buckets.append((label, float(total)))
        histogram.add_metric([name], buckets, view.latency_sum)
    return histogram


def _counter(name: str, meaning: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}_{name}", meaning, labels=["camera"])


def _gauge(name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=["camera"])
