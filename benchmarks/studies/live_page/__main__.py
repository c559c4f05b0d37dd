"""python -m benchmarks.studies.live_page: what the live page costs the stream.

    python -m benchmarks.studies.live_page --bundle bundles/part --engine openvino --threads 1

A stream of a synthetic camera takes turns: without the page, with the page and no browser, and with
the page and a program that asks for what a browser asks for. First the camera gives 25 frames per
second, and then more than the engine can judge. Use two cores.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.live_page.report import CLOSED, VARIANTS, WITHOUT, live_page_report
from flawline.benchmarks.studies.running_stream import (
    SIZES,
    measure_and_write,
    stream_study_parser,
)
from flawline.cameras import open_camera
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, run_command
from flawline.runtime.detector import Detector
from flawline.runtime.engines import engine_options
from flawline.runtime.outputs import Output, open_output
from flawline.runtime.outputs.web.output import LivePage
from flawline.runtime.recent_values import RecentValues
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

# In a process of its own, whose time does not count.
WATCH = "from flawline.benchmarks.studies.live_page.watcher import watch; watch({port})"
# Frames per second of the camera; the last one is more than any engine judges.
RATES = (25, 1000)
SETTLE_S = 1.0  # before a turn is measured


def main(argv: Sequence[str] | None = None) -> int:
    parser = stream_study_parser("live_page", __doc__, "live-page")
    parser.add_argument("--seconds", type=float, default=5, help="of a turn; default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns; default %(default)s")
    args = parser.parse_args(argv)
    if args.seconds <= 0 or args.rounds < 1:
        parser.error("--seconds takes more than 0, and --rounds 1 or more")
    return run_command(parser.prog, lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    def measure(bundle: Bundle) -> dict[str, Any]:
        rows = []
        with Detector(bundle, args.engine, engine_options(args), accept_size=True) as detector:
            for width, height in SIZES:
                for fps in RATES:
                    uri = f"synthetic://?width={width}&height={height}&fps={fps}"
                    turns = _turns(detector, uri, args.seconds, args.rounds)
                    rows.append({"size": f"{width}x{height}", "camera_fps": fps, **turns})
                    log(f"{uri}: {turns}")
            engine = detector.engine.description
        return {"rows": rows, "engine": engine, "seconds": args.seconds, "rounds": args.rounds}

    measure_and_write(args, measure, live_page_report)


def _turns(detector: Detector, uri: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the medians of each variant, after one turn that is not counted."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds + 1):
        for name in VARIANTS:
            turn = _turn(detector, uri, seconds, name)
            if number > 0:
                turns[name].append(turn)
    return {name: _medians(turns[name], turns) for name in VARIANTS}


def _medians(
    turns: Sequence[Mapping[str, float]], others: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, float]:
    found = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    ratios = []
    for turn, reference in zip(turns, others[WITHOUT], strict=True):
        ratios.append(turn["fps"] / reference["fps"])
    found |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {key: round(value, 4) for key, value in found.items()}


def _turn(detector: Detector, uri: str, seconds: float, variant: str) -> dict[str, float]:
    """Return the frames per second of a stream, its CPU time and memory, in one variant."""
    # What the turn before held.
    gc.collect()
    tally = _Window()
    stop = threading.Event()
    with open_camera(uri) as camera, _outputs(detector.bundle, variant, tally) as outputs:

        def end() -> None:
            # The page and its browser need a moment.
            stop.wait(SETTLE_S)
            tally.begin()
            stop.wait(seconds)
            tally.finish()
            stop.set()
            camera.stop()

        thread = threading.Thread(target=end)
        thread.start()
        run_stream(camera, detector, outputs, None, stop, tally)
        thread.join()
    return tally.result()


class _Window(Tally):
    """Measures between `begin` and `finish`, which another thread calls."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: list[tuple[int, float, float]] = []
        self._megabytes = 0.0

    def begin(self) -> None:
        self.latency = RecentValues()
        self._mark()

    def finish(self) -> None:
        self._mark()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._megabytes = 1e-6 * pages * resource.getpagesize()

    def _mark(self) -> None:
        self._marks.append((self.frames, time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, float]:
        (first, start, cpu), (last, end, cpu_end) = self._marks
        frames = max(1, last - first)
        return {
            "fps": frames / (end - start),
            "p95_ms": float(self.latency.percentiles([95])[0]) if self.latency else 0.0,
            "cpu_ms": 1e3 * (cpu_end - cpu) / frames,
            "cores": (cpu_end - cpu) / (end - start),
            "megabytes": self._megabytes,
        }


@contextmanager
def _outputs(bundle: Bundle, variant: str, tally: Tally) -> Iterator[list[Output]]:
    """Open the outputs of a variant, and let a program watch the page if it has one."""
    with open_output(f"jsonl:{os.devnull}", bundle) as lines:
        if variant == WITHOUT:
            yield [lines]
            return
        page = LivePage("127.0.0.1:0", LivePage.Options(), bundle)
        with page:
            if variant == CLOSED:
                yield [lines, page]
                return
            command = [sys.executable, "-c", WATCH.format(port=page.port)]
            watcher = subprocess.Popen(command, stdout=subprocess.PIPE)
            try:
                assert watcher.stdout is not None
                watcher.stdout.readline()
                yield [lines, page]
            finally:
                watcher.kill()
                watcher.communicate()


if __name__ == "__main__":
    sys.exit(main())
