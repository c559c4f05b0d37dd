"""Tables of engines and precisions: speed, drift of scores, changed verdicts, time per stage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from flawline.benchmarks.sweep.report.results import Machine, Result, reference_results
from flawline.benchmarks.sweep.report.tables import Cell, Table, decimals, speed, text, with_bars
from flawline.benchmarks.tables import UNKNOWN

DRIFT = (
    "Drift: the largest difference of a score from that of the reference engine, in standard "
    "deviations of the scores of good images."
)
FLIPS = (
    "Flips: test images whose verdict differs from that of the reference engine at the same "
    "threshold; clear ones are those whose score is farther from the threshold than the tolerance."
)


def engine_table(machine: Machine, data: str) -> Table:
    """Return all cells of one data set: each detector in each engine and precision."""
    results = machine.of_data(data)
    references = {result.name: result for result in reference_results(machine, data)}
    columns: dict[str, list[Cell]] = {
        "detector": [text(result.name) for result in results],
        "engine": [text(result.variant) for result in results],
        "image AUROC": [decimals(result.mean("image_auroc")) for result in results],
        "change": [change(result, references[result.name]) for result in results],
        "drift": [decimals(_largest(result, "drift"), 3) for result in results],
        "flips (clear)": [flips(result) for result in results],
    }
    frames = [result.speed("fps") for result in results]
    columns["FPS"] = with_bars([speed(value) for value in frames], frames, 0)
    for key, title in (("p50_ms", "p50 ms"), ("p95_ms", "p95 ms"), ("p99_ms", "p99 ms")):
        columns[title] = [speed(result.speed(key)) for result in results]
    columns["file to verdict, ms"] = [speed(result.time("end_to_end_p50_ms")) for result in results]
    columns["best batch: FPS"] = [_best_batch(result) for result in results]
    columns["mJ per frame"] = [
        decimals(result.time("energy_per_frame_mj"), 1) for result in results
    ]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    table = Table(
        title=f"Every engine: {data}", header=list(columns), rows=rows, words=2, folded=True
    )
    return table.without_empty_columns()


def drift_table(machine: Machine) -> Table | None:
    """Return what each engine and precision changes, over all detectors and data sets.

    Returns None if all results are of one engine.
    """
    variants = list(dict.fromkeys(result.variant for result in machine.results))
    if len(variants) < 2:
        return None
    rows = []
    for variant in variants:
        results = [result for result in machine.results if result.variant == variant]
        rows.append(_drift_row(machine, variant, results))
    header = [
        "engine",
        "bundles",
        "median change of image AUROC",
        "largest loss",
        "largest drift",
        "flips",
        "clear flips",
        "median speed-up",
    ]
    table = Table("What engines and precisions change", header, rows, [FLIPS, DRIFT])
    return table.without_empty_columns()


def stage_table(machine: Machine, data: str) -> Table | None:
    """Return the time of each stage from the file to the verdict; None where it is not known.

    Each detector has the line of its fastest engine.
    """
    rows = []
    totals = []
    for result in fastest_results(machine, data):
        stages = stages_of(result)
        if stages is None:
            continue
        total = sum(stages.values())
        totals.append(total)
        cells = [text(result.name), text(result.variant)]
        rows.append([*cells, *(speed(value) for value in stages.values()), speed(total)])
        titles = list(stages)
    if not rows:
        return None
    bars = with_bars([row[-1] for row in rows], totals, 0)
    for row, bar in zip(rows, bars, strict=True):
        row[-1] = bar
    header = ["detector", "fastest engine", *(f"{title}, ms" for title in titles), "sum, ms"]
    note = "Medians, one image per call. Decoding is that of the files of this data set."
    return Table(f"Time per stage: {data}", header, rows, [note], words=2)


def fastest_results(machine: Machine, data: str) -> list[Result]:
    """Return the result of the fastest engine of each detector, the fastest detector first."""
    best: dict[str, Result] = {}
    for result in machine.of_data(data):
        fps = result.speed("fps")
        if fps is None:
            continue
        known = best.get(result.name)
        if known is None or fps > (known.speed("fps") or 0):
            best[result.name] = result
    return sorted(best.values(), key=lambda result: -(result.speed("fps") or 0))


def stages_of(result: Result) -> dict[str, float] | None:
    """Return the milliseconds of each stage, in their order; None where they are not known."""
    engine = result.time("engine_p50_ms")
    if engine is None:
        return None
    decode = result.time("decode_p50_ms")
    prepare = result.time("prepare_p50_ms")
    if decode is not None and prepare is not None:
        return {"decode": decode, "prepare": prepare, "engine": engine}
    total = result.time("end_to_end_p50_ms")
    if total is None:
        return None
    return {"decode and prepare": max(0.0, total - engine), "engine": engine}


def change(result: Result, reference: Result) -> Cell:
    """Return by how much the image AUROC differs from that of the first engine."""
    difference = difference_of(result, reference)
    if difference is None or result is reference:
        return Cell(UNKNOWN)
    return Cell(f"{difference:+.4f}")


def difference_of(result: Result, reference: Result) -> float | None:
    """Return the image AUROC minus that of the reference; None where one is not known."""
    own = result.mean("image_auroc")
    expected = reference.mean("image_auroc")
    return None if own is None or expected is None else own - expected


def flips(result: Result) -> Cell:
    """Return the changed verdicts of all seeds, with the clear ones in brackets."""
    counts = result.values("flips")
    if not counts:
        return Cell(UNKNOWN)
    return Cell(f"{sum(counts):g} ({sum(result.values('clear_flips')):g})")


def _drift_row(machine: Machine, variant: str, results: Sequence[Result]) -> list[Cell]:
    differences = []
    worst = (0.0, UNKNOWN)
    for result in results:
        for reference in reference_results(machine, result.data):
            difference = difference_of(result, reference)
            if reference.name != result.name or difference is None:
                continue
            differences.append(difference)
            if difference < worst[0]:
                worst = (difference, f"{difference:+.4f} ({result.name}, {result.data})")
    drifts = [value for result in results if (value := _largest(result, "drift")) is not None]
    speedups = [value for result in results for value in result.values("speedup")]
    counts = [value for result in results for value in result.values("flips")]
    clear = [value for result in results for value in result.values("clear_flips")]
    images = sum(row["images"] for result in results for row in result.rows)
    return [
        text(variant),
        text(sum(len(result.rows) for result in results)),
        Cell(f"{statistics.median(differences):+.4f}" if differences else UNKNOWN),
        Cell(worst[1]),
        decimals(max(drifts, default=None), 3),
        Cell(f"{sum(counts)} of {images}" if counts else UNKNOWN),
        Cell(f"{sum(clear)}" if counts else UNKNOWN),
        Cell(f"{statistics.median(speedups):.2f}" if speedups else UNKNOWN),
    ]


def _largest(result: Result, key: str) -> float | None:
    return max(result.values(key), default=None)


def _best_batch(result: Result) -> Cell:
    batch = result.time("best_batch")
    fps = result.time("best_batch_fps")
    if batch is None or fps is None:
        return Cell(UNKNOWN)
    return Cell(f"{batch:g}: {speed(fps).text}")
