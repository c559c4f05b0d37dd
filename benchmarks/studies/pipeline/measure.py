"""Times of a stream, of the engine alone, and of a loop that does one thing after the other."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.studies.results import StudyError
from flawline.cameras import open_camera
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import log, printable
from flawline.runtime.cores import allowed_cores
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.outputs import Judgement, Output, open_output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally
from flawline.train.data.demo import render

CAMERA_FPS = 100
# Of the engine's frames per second, so that it always finds a frame.
SATURATION = 1.5
FASTEST_CAMERA = 1000
FILE_SIZE = (1920, 1080)
JPEG_QUALITY = 90
# Different pictures; further files are copies of them.
PICTURES = 8


def measure_pipeline(
    bundles: Sequence[Path],
    engine: str,
    options: EngineOptions,
    frames: int,
    rounds: int,
    folder: Path,
) -> dict[str, Any]:
    """Measure the stream of each bundle, in `rounds` turns of `frames` frames.

    `folder` is empty, and gets the files that are judged. Raises BundleError, EngineError
    and StudyError.
    """
    files = folder / "files"
    write_files(files, frames)
    start = read_cpu()
    rows = []
    for path in bundles:
        bundle = read_bundle(path)
        with Detector(bundle, engine, options, accept_size=True) as detector:
            row = _measure(bundle, detector, files, frames, rounds, folder)
        rows.append(row)
        log(f"{row['bundle']}: {row}")
    others = share_of_others(start, read_cpu())
    return {
        "rows": rows,
        "frames": frames,
        "rounds": rounds,
        "cores": allowed_cores(),
        "machine": machine_facts(),
        "other_processes": None if others is None else round(others, 3),
    }


def write_files(folder: Path, count: int) -> None:
    """Write `count` JPEG files of FILE_SIZE with pictures of the demo data."""
    folder.mkdir()
    encoded = []
    for seed in range(min(PICTURES, count)):
        picture, _ = render("board", None, seed)
        large = cv2.resize(picture, FILE_SIZE, interpolation=cv2.INTER_CUBIC)
        # A camera's noise, which takes its time to decode.
        noise = np.random.default_rng(seed).normal(0.0, 3.0, large.shape)
        noisy = np.clip(large + noise, 0, 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        encoded.append(data.tobytes())
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(encoded[number % len(encoded)])


def _measure(
    bundle: Bundle, detector: Detector, files: Path, frames: int, rounds: int, folder: Path
) -> dict[str, Any]:
    lines = f"jsonl:{folder / 'lines.jsonl'}"

    def alone() -> float:
        return engine_fps(detector, frames)

    def from_camera(fps: float) -> float:
        uri = f"synthetic://?fps={fps:.0f}&frames={max(2, round(frames * fps / CAMERA_FPS))}"
        return stream_fps(detector, uri, open_output(lines, bundle))

    def from_files() -> float:
        return stream_fps(detector, str(files), open_output(lines, bundle))

    def one_after_the_other() -> float:
        return sequential_fps(detector, files, open_output(lines, bundle))

    saturated = min(FASTEST_CAMERA, SATURATION * alone())
    camera = _turns({"engine": alone, "stream": lambda: from_camera(CAMERA_FPS)}, rounds)
    full = _turns({"engine": alone, "stream": lambda: from_camera(saturated)}, rounds)
    from_disk = _turns({"sequential": one_after_the_other, "stream": from_files}, rounds)
    return {
        "bundle": printable(bundle.path.name),
        "method": bundle.manifest.method,
        "engine": detector.engine.description,
        "input": f"{bundle.manifest.geometry.width}x{bundle.manifest.geometry.height}",
        "camera": _compared(camera, "engine", CAMERA_FPS),
        "saturated": {"camera_fps": round(saturated), **_compared(full, "engine", saturated)},
        "files": _compared(from_disk, "sequential", None),
    }


def _turns(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the results of measurements that take turns, after one turn that is not counted."""
    results: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds + 1):
        for name, measure in measurements.items():
            fps = measure()
            if number > 0:
                results[name].append(fps)
    return results


def _compared(
    turns: Mapping[str, Sequence[float]], reference: str, limit: float | None
) -> dict[str, Any]:
    """Return the median frames per second of both, and the median ratio to the reference.

    The reference cannot give more than `limit` frames per second.
    """
    ratios = []
    for fps, expected in zip(turns["stream"], turns[reference], strict=True):
        ratios.append(fps / min(expected, limit or expected))
    return {
        f"{reference}_fps": round(statistics.median(turns[reference]), 2),
        "stream_fps": round(statistics.median(turns["stream"]), 2),
        "ratio": round(statistics.median(ratios), 4),
        "lowest_ratio": round(min(ratios), 4),
        "highest_ratio": round(max(ratios), 4),
    }


def engine_fps(detector: Detector, count: int) -> float:
    """Return how often per second the engine judges one prepared image."""
    prepared = np.zeros((1, *detector.graph_input.frame_shape), np.uint8)
    start = time.perf_counter()
    for _ in range(count):
        detector.runner(prepared)
    return count / (time.perf_counter() - start)


def stream_fps(detector: Detector, uri: str, output: Output) -> float:
    """Return the frames per second of a stream, from the first to the last verdict.

    The time until the first verdict, in which a camera is opened, does not count.
    """
    tally = _Stamps()
    with open_camera(uri) as camera, output:
        run_stream(camera, detector, [output], None, threading.Event(), tally)
    _require_judged(tally)
    return (len(tally.stamps) - 1) / max(tally.stamps[-1] - tally.stamps[0], 1e-9)


class _Stamps(Tally):
    """Remembers when each verdict was there."""

    def __init__(self) -> None:
        super().__init__()
        self.stamps: list[float] = []

    def add(self, *arguments: Any) -> float:
        self.stamps.append(time.perf_counter())
        return super().add(*arguments)


def sequential_fps(detector: Detector, files: Path, output: Output) -> float:
    """Return the frames per second of a loop that judges and delivers one file after the other."""
    stamps = []
    tally = Tally()
    with_regions = detector.bundle.calibration.pixel_threshold is not None
    with open_camera(str(files)) as camera, output:
        for frame in camera:
            verdict = detector.judge(frame)
            stamps.append(time.perf_counter())
            regions = None
            if with_regions and frame.image is not None and verdict.judged:
                regions = detector.regions(frame.image, verdict.anomaly_map)
            output.write(Judgement(frame, verdict, tally.add(verdict), regions=regions))
    _require_judged(tally)
    return (len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-9)


def _require_judged(tally: Tally) -> None:
    """Raise StudyError if frames were not judged, which takes no time, or are fewer than two."""
    if tally.unjudged:
        raise StudyError(
            f"{tally.unjudged} of {tally.frames} frames could not be judged; give a bundle that "
            f"takes frames of any size and content"
        )
    if tally.frames < 2:
        raise StudyError(
            "fewer than 2 frames were judged, which give no rate: the camera dropped the others, "
            "as this machine is busy; end other programs, or give more --frames"
        )
