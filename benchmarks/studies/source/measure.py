"""Scores and times of a bundle's graph that takes a camera's frame, against prepare()."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.measure.timing import alternate
from flawline.benchmarks.studies.whole_frames import require_whole_frames
from flawline.cameras.decode import read_image
from flawline.export.graphs import evenly_spaced
from flawline.export.graphs.prologue import PROLOGUE
from flawline.export.graphs.source import SourceGraph, with_source
from flawline.export.parity import ScoresAndMaps, compare, score_images, score_with
from flawline.runtime.bundle import Bundle, read_bundle, write_bundle
from flawline.runtime.console import log, printable
from flawline.runtime.detector import Detector
from flawline.runtime.engines import (
    ENGINES,
    EngineError,
    EngineOptions,
    engine_class,
    open_reference,
    unusable_here,
)
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.source_frame import BGR, MONO, SourceFrame
from flawline.runtime.tolerances import Tolerances
from flawline.train.data import PreparedImages, open_data
from flawline.train.progress import Bars, no_progress

# Seconds of untimed calls before each turn.
SETTLE_S = 0.05
# A bundle of the study is only timed, so that no self-test may refuse its lossy precisions.
TOLERANCE_FACTOR = 100.0


def measure_source(
    pairs: Sequence[tuple[Path, Path]],
    frame: SourceFrame,
    count: int | None,
    threads: int,
    rounds: int,
    folder: Path,
) -> dict[str, Any]:
    """Compare the scores of each bundle on its data set, then time all of them on a frame.

    `count` limits the test images of a data set. The bundles that take frames are written to
    `folder`. Sets the threads of OpenCV. Raises BundleError, DataError and EngineError.
    """
    scores = []
    times = []
    cv2.setNumThreads(threads)
    start = read_cpu()
    for number, (path, data) in enumerate(pairs):
        bundle = read_bundle(path)
        require_whole_frames(bundle)
        paths = [sample.path for sample in evenly_spaced(open_data(data).test, count or 10**9)]
        row = _compare(bundle, paths)
        scores.append({"data": printable(data.name), **row})
        image = read_image(paths[0], bundle.manifest.file_bit_depth)
        framed = _framed(bundle, frame, image, folder / str(number))
        times += _times(bundle, framed, threads, rounds)
    others = share_of_others(start, read_cpu())
    graph = _graph(read_bundle(pairs[0][0]), frame)
    return {
        "frame": str(frame),
        # Of the first bundle; others with an input of this size have the same.
        "frame_nodes": graph.nodes,
        "frame_macs": graph.macs,
        "threads": threads,
        "scores": scores,
        "times": times,
        "machine": machine_facts(),
        "other_processes": None if others is None else round(others, 3),
    }


def _by_frame(paths: Sequence[Path], bit_depth: int | None) -> dict[SourceFrame, list[Path]]:
    """Return the images of each size and layout, as the frames of a camera."""
    found: dict[SourceFrame, list[Path]] = {}
    for path in paths:
        shape = read_image(path, bit_depth).shape
        source = SourceFrame(shape[0], shape[1], BGR if len(shape) == 3 else MONO)
        found.setdefault(source, []).append(path)
    return found


def _compare(bundle: Bundle, paths: Sequence[Path]) -> dict[str, Any]:
    """Compare the scores of test images, as frames of their own size, in both ways."""
    manifest = bundle.manifest
    ordered: list[Path] = []
    expected: list[ScoresAndMaps] = []
    results: list[ScoresAndMaps] = []
    graphs: dict[SourceFrame, SourceGraph] = {}
    with Bars() as bars, closing(open_reference(bundle.model(), bundle.map_size)) as plain:
        for source, images in _by_frame(paths, manifest.file_bit_depth).items():
            graphs[source] = _graph(bundle, source)
            graph_input = dataclasses.replace(manifest.graph_input, source=source)
            frames = _images(bundle, images, graph_input.of_image)
            prepared = _images(bundle, images, graph_input.prepared)
            model = graphs[source].model
            expected.append(score_with(plain, prepared, no_progress))
            results.append(score_images(model, "fp32", bundle.map_size, frames, no_progress))
            ordered += images
            bars("images", len(ordered), len(paths))
    return _scores_row(bundle, graphs, ordered, _joined(expected), _joined(results))


def _scores_row(
    bundle: Bundle,
    graphs: Mapping[SourceFrame, SourceGraph],
    paths: Sequence[Path],
    expected: ScoresAndMaps,
    results: ScoresAndMaps,
) -> dict[str, Any]:
    manifest = bundle.manifest
    parity = compare(
        paths,
        expected,
        results,
        bundle.calibration.threshold,
        Tolerances.of(manifest),
        manifest.score.std,
    )
    nodes = [graph.nodes for graph in graphs.values()]
    return {
        "bundle": printable(bundle.path.name),
        "method": manifest.method,
        "input": f"{manifest.geometry.width}x{manifest.geometry.height}",
        "sources": sorted(str(source) for source in graphs),
        "images": len(paths),
        "fewest_nodes": min(nodes),
        "most_nodes": max(nodes),
        "most_macs": max(graph.macs for graph in graphs.values()),
        "largest_difference": parity.worst_score,
        "tolerance": manifest.score_tolerance,
        "equal": int(np.count_nonzero(expected.scores == results.scores)),
        "clear_flips": len(parity.clear_flips),
        "near_flips": len(parity.near_flips),
    }


def _joined(parts: Sequence[ScoresAndMaps]) -> ScoresAndMaps:
    scores = np.concatenate([part.scores for part in parts])
    return ScoresAndMaps(scores, np.concatenate([part.maps for part in parts]))


def _images(
    bundle: Bundle, paths: Sequence[Path], convert: Callable[[Image], Image]
) -> PreparedImages:
    manifest = bundle.manifest
    return PreparedImages(paths, manifest.geometry, manifest.file_bit_depth, convert)


def _graph(bundle: Bundle, source: SourceFrame, precision: str = "fp32") -> SourceGraph:
    model = bundle.model(precision).read_bytes()
    return with_source(model, source, bundle.manifest.geometry)


def _framed(bundle: Bundle, source: SourceFrame, image: Image, path: Path) -> Bundle:
    """Write the bundle that takes frames; its self-test is one frame, made of an image."""
    manifest = bundle.manifest
    graph_input = dataclasses.replace(manifest.graph_input, source=source)
    with Bars() as bars:
        expected: ScoresAndMaps = score_images(
            bundle.model().read_bytes(),
            "fp32",
            bundle.map_size,
            [graph_input.prepared(image)],
            bars,
        )
    golden = Golden(graph_input.of_image(image)[None], expected.scores, expected.maps)
    models: dict[str, bytes] = {}
    for precision in ("fp32", "int8"):
        if precision in bundle.precisions:
            models[precision] = _graph(bundle, source, precision).model
    manifest = dataclasses.replace(
        manifest,
        source=source,
        fp32_islands=(*manifest.fp32_islands, PROLOGUE),
        score_tolerance=TOLERANCE_FACTOR * manifest.score_tolerance,
        map_tolerance=TOLERANCE_FACTOR * manifest.map_tolerance,
    )
    return write_bundle(path, manifest, bundle.calibration, models, golden)


def _times(bundle: Bundle, framed: Bundle, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time both ways in every engine of this machine that compiles no plan, by turns."""
    frame = framed.golden().images[0]
    picture = framed.manifest.graph_input.picture(frame)
    rows = []
    for name in ENGINES:
        if unusable_here(name) is not None or engine_class(name).compiles:
            continue
        for precision in engine_class(name).precisions:
            options = EngineOptions(threads, precision)
            if not framed.has_graph(precision):
                continue
            try:
                with ExitStack() as stack:
                    prepares = stack.enter_context(Detector(bundle, name, options))
                    takes = stack.enter_context(Detector(framed, name, options))
                    row = _timed(prepares, takes, picture, frame, rounds)
            except EngineError as error:
                log(f"note: left out {name} {precision}: {error}")
                continue
            rows.append({"bundle": printable(bundle.path.name), **row})
    return rows


def _timed(
    prepares: Detector, takes: Detector, picture: Image, frame: Image, rounds: int
) -> dict[str, Any]:
    """Return the median times of both ways, and how far the scores of the frame differ."""
    verdict = prepares(picture)
    expected = verdict.score
    score = takes(frame).score
    to_input = prepares.bundle.manifest.graph_input
    calls: dict[str, Callable[[], object]] = {
        "prepare_ms": lambda: to_input.of_frame(picture),
        "prepared_ms": lambda: prepares(picture),
        "source_ms": lambda: takes(frame),
    }
    medians = alternate(calls, rounds, repeats=3, settle_s=SETTLE_S)
    return {
        "engine": prepares.engine.description,
        **{name: round(milliseconds, 3) for name, milliseconds in medians.items()},
        "difference": abs(score - expected),
        "tolerance": prepares.bundle.manifest.score_tolerance,
    }
