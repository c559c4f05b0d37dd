"""The speed of all bundles of a data set, which take turns on a few of its test images.

A disturbance of the machine then affects all of them. Two times are measured: of the engine alone,
from the prepared image to score and map, and from the encoded file to the verdict, with decoding
and resizing, which are timed alone, too. The engine alone is also measured in batches, on machines
and engines that take them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.benchmarks.interleaved import SETTLE_S, WARM_UP, EngineChoice
from flawline.benchmarks.measure.energy import EnergyMeter, energy_meter
from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.measure.timing import percentiles, slowest_and_fastest
from flawline.benchmarks.sweep.measure_cell import (
    REFUSED,
    facts_of_row,
    has_rows,
    identity_of_rows,
    known_reasons,
    other_rows,
    public_reason,
)
from flawline.benchmarks.sweep.plan import Cell
from flawline.benchmarks.sweep.store import Row, Store, read_rows, write_json
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.timing import time_calls
from flawline.train.data import open_data

# Test images, spread over the test set, and timed calls on each.
IMAGES = 10
REPEATS = 3
BATCHES = (1, 4, 8)
# Calls with each batch in a turn, and turns.
BATCH_CALLS = 3
BATCH_TURNS = 2
# NVML renews its count of energy every 100 ms or so.
ENERGY_S = 1.0

# A trained cell with its facts.
Trained = tuple[Cell, dict[str, Any]]


@dataclass
class _Runner:
    """A detector with its times in milliseconds, those of batches per image."""

    detector: Detector
    row: Row
    store: Store
    cell: Cell
    engine_ms: list[float] = field(default_factory=list)
    end_to_end_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    prepare_ms: list[float] = field(default_factory=list)
    batch_ms: dict[int, list[float]] = field(default_factory=dict)
    joules: float | None = None

    def reason(self, error: EngineError) -> str:
        return public_reason(error, self.store, self.cell)

    def prepared(self, path: Path) -> npt.NDArray[np.uint8]:
        """Return a file as the input of the engine, uint8 [1, H, W, 3]."""
        image = self.detector.read_image(path)
        return self.detector.bundle.manifest.graph_input.of_frame(image)[None]


def has_speed(store: Store, trained: Sequence[Trained], choices: Sequence[EngineChoice]) -> bool:
    """Whether the file of a data set has a row for each of its bundles and engines."""
    rows = read_rows(store.speed(trained[0][0].data_name))
    for cell, facts in trained:
        of_cell = [row for row in rows if row.get("cell") == cell.name]
        if not has_rows(of_cell, identity_of_rows(cell, facts), choices):
            return False
    return True


def measure_speed(
    store: Store, trained: Sequence[Trained], choices: Sequence[EngineChoice]
) -> list[Row]:
    """Measure the bundles of one data set by turns, write the rows and return them.

    The rows of other machines stay in the file. Raises DataError for unsuitable data.
    """
    rows: list[Row] = []
    paths = _some_images(Path(trained[0][0].data))
    with ExitStack() as stack:
        runners = _open(store, trained, choices, rows, stack)
        start = read_cpu()
        _run_guarded(runners, rows, lambda runner, turn: _judge(runner, paths[turn]), len(paths))
        _run_guarded(runners, rows, lambda runner, turn: _batches(runner, paths), BATCH_TURNS)
        meter = energy_meter()
        if meter is not None:
            _run_guarded(runners, rows, lambda runner, turn: _energy(runner, paths[0], meter), 1)
        others = share_of_others(start, read_cpu())
    machine = machine_facts()
    for runner in runners:
        rows.append({**runner.row, **_figures(runner, meter), "images": len(paths)})
    for row in rows:
        row["machine"] = machine
        row["other_processes"] = None if others is None else round(others, 3)
    path = store.speed(trained[0][0].data_name)
    kept = []
    for cell, facts in trained:
        kept += other_rows(read_rows(path), identity_of_rows(cell, facts))
    write_json(path, [*kept, *rows])
    return rows


def _some_images(data: Path) -> list[Path]:
    """Return a few test images, good and defective ones as the test set has them."""
    samples = open_data(data).test
    places = np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).round().astype(int)
    return [samples[place].path for place in places]


def _open(
    store: Store,
    trained: Sequence[Trained],
    choices: Sequence[EngineChoice],
    rows: list[Row],
    stack: ExitStack,
) -> list[_Runner]:
    """Open each bundle in each engine; one that cannot be opened gets its row at once."""
    runners = []
    for cell, facts in trained:
        reasons = known_reasons(store, cell, facts)
        for choice in choices:
            row = facts_of_row(cell, facts, choice)
            reason = reasons.get((choice.name, choice.options.precision))
            if reason is not None:
                rows.append({**row, "status": REFUSED, "reason": reason})
                continue
            try:
                bundle = read_bundle(store.bundle(cell.name))
                detector = stack.enter_context(Detector(bundle, choice.name, choice.options))
            except (EngineError, BundleError) as error:
                rows.append({**row, "status": REFUSED, "reason": public_reason(error, store, cell)})
                continue
            row["engine"] = detector.engine.description
            row["threads"] = choice.options.threads or "all"
            runners.append(_Runner(detector, row, store, cell))
    return runners


def _run_guarded(
    runners: list[_Runner], rows: list[Row], work: Callable[[_Runner, int], None], turns: int
) -> None:
    """Give every runner its turns; one that fails is removed and gets its row."""
    for turn in range(turns):
        for runner in list(runners):
            try:
                work(runner, turn)
            except EngineError as error:
                runners.remove(runner)
                rows.append({**runner.row, "status": REFUSED, "reason": runner.reason(error)})


def _judge(runner: _Runner, path: Path) -> None:
    """Time the engine alone and the way from the file to the verdict, on one image."""
    detector = runner.detector
    image = runner.prepared(path)
    warm_up = 0 if runner.engine_ms else WARM_UP
    # The threads of the engine before may still be spinning.
    time_calls(lambda: detector.runner(image), warm_up=warm_up, seconds=SETTLE_S)
    runner.engine_ms += time_calls(lambda: detector.runner(image), warm_up=0, repeats=REPEATS)
    runner.end_to_end_ms += time_calls(
        lambda: detector(detector.read_image(path)), warm_up=0, repeats=REPEATS
    )
    source = detector.read_image(path)
    to_input = detector.bundle.manifest.graph_input.of_frame
    runner.decode_ms += time_calls(lambda: detector.read_image(path), warm_up=0, repeats=REPEATS)
    runner.prepare_ms += time_calls(lambda: to_input(source), warm_up=0, repeats=REPEATS)


def _batches(runner: _Runner, paths: Sequence[Path]) -> None:
    """Time the engine on batches of different sizes, as far as it takes them."""
    engine = runner.detector.runner
    images = [runner.prepared(path) for path in paths]
    for size in BATCHES:
        if runner.detector.batch_size(size) < size:
            continue
        batch = np.concatenate([images[place % len(images)] for place in range(size)])
        call = partial(engine, batch)
        time_calls(call, warm_up=1, seconds=SETTLE_S)
        times = time_calls(call, warm_up=0, repeats=BATCH_CALLS)
        runner.batch_ms.setdefault(size, []).extend(time_ms / size for time_ms in times)


def _energy(runner: _Runner, path: Path, meter: EnergyMeter) -> None:
    """Measure the energy of one image: the engine alone, batch 1, for about a second."""
    image = runner.prepared(path)
    calls = 0

    def work() -> None:
        nonlocal calls
        end = time.perf_counter() + ENERGY_S
        while time.perf_counter() < end:
            runner.detector.runner(image)
            calls += 1

    joules = meter.measure(work)
    runner.row["gpu"] = meter.state()
    if joules is not None:
        runner.joules = joules / calls


def _figures(runner: _Runner, meter: EnergyMeter | None) -> Row:
    row: Row = {"calls": len(runner.engine_ms)}
    for prefix, times in (("engine", runner.engine_ms), ("end_to_end", runner.end_to_end_ms)):
        for key, value in percentiles(times).items():
            row[f"{prefix}_{key}"] = value
        slowest, fastest = slowest_and_fastest(times, REPEATS)
        row[f"{prefix}_fps_slowest"], row[f"{prefix}_fps_fastest"] = slowest, fastest
    row["decode_p50_ms"] = percentiles(runner.decode_ms)["p50_ms"]
    row["prepare_p50_ms"] = percentiles(runner.prepare_ms)["p50_ms"]
    batch_fps = {}
    for size, times in runner.batch_ms.items():
        batch_fps[str(size)] = percentiles(times)["fps"]
    best = max(batch_fps, key=batch_fps.__getitem__)
    row["batch_fps"] = batch_fps
    row["best_batch"] = int(best)
    row["best_batch_fps"] = batch_fps[best]
    row["energy_per_frame_mj"] = None
    if runner.joules is not None:
        row["energy_per_frame_mj"] = round(1e3 * runner.joules, 2)
    row["energy_of"] = None if meter is None else meter.source
    row.setdefault("gpu", runner.row.get("gpu"))
    return row
