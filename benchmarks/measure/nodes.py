"""The nodes of an ONNX graph as ONNX Runtime runs them: their time and the bytes they write."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import SessionOptions

from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.image import Image


@dataclass(frozen=True)
class Node:
    """A node after ONNX Runtime's own fusions: median time, and bytes of its output."""

    name: str
    kind: str
    milliseconds: float
    bytes_written: int


def profile_nodes(model: bytes, images: Image, threads: int | None, runs: int = 20) -> list[Node]:
    """Return the nodes of a serialised model in order of execution, from ONNX Runtime's profiler.

    `images` is uint8 [N, H, W, 3]. The first quarter of the runs warms up and is left out of the
    medians.
    """
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in _profile(model, images, threads, runs):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            events[event["name"].removesuffix("_kernel_time")].append(event)
    nodes = []
    for name, calls in events.items():
        arguments = calls[-1]["args"]
        # Durations are in microseconds.
        durations = [call["dur"] for call in calls[runs // 4 :]]
        nodes.append(
            Node(
                name,
                kind=arguments["op_name"],
                milliseconds=statistics.median(durations) / 1e3,
                bytes_written=int(arguments.get("output_size", 0)),
            )
        )
    return nodes


def bytes_written(nodes: Iterable[Node]) -> int:
    """Return the sum of the bytes that the nodes write."""
    total = 0
    for node in nodes:
        total += node.bytes_written
    return total


def _profile(model: bytes, images: Image, threads: int | None, runs: int) -> list[dict[str, Any]]:
    """Run the model and return the profiler's events."""
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        options = SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, threads, options)
        for _ in range(runs):
            session.run(None, {"image": np.asarray(images)})
        # The profiler writes its file when it ends, and returns the name.
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events
