"""Times and drift of every call of the study, at growing batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.measure.timing import percentiles
from flawline.benchmarks.studies.gpu_check.calls import Absent
from flawline.runtime.console import describe_failure, log
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.runtime.timing import time_calls

# Images per call: one camera, a few, and what saturates a GPU.
BATCHES = (1, 8, 32)
# Every row is timed in this many turns, for so many seconds in each of them.
TURNS = 2
SECONDS = 1.5
# Untimed calls before each turn: kernels are compiled, graphs recorded and clocks raised. A slow
# call ends them after so many seconds, but not before the second, which records a CUDA graph.
WARM_UP = 20
WARM_UP_S = 2.0
FEWEST_WARM_UP = 2

Key = tuple[str, int]
Row = dict[str, Any]


def measure_calls(
    calls: Mapping[str, InferenceCall], golden: Golden, spread: float, deadline: float
) -> tuple[list[Row], list[Absent]]:
    """Return one row for each call and batch, measured in alternating turns, and what has none.

    Drift is the largest difference of a score from that of `golden`, divided by `spread`. A batch
    that a call does not take, or has too little memory for, has a reason instead of a row; so has
    what cannot begin before `deadline`, a value of time.monotonic().
    """
    rows: dict[Key, Row] = {}
    times: dict[Key, list[float]] = {}
    absent: dict[Key, str] = {}
    for turn in range(TURNS):
        for batch in BATCHES:
            for name, call in calls.items():
                key = (name, batch)
                if key in absent:
                    continue
                if time.monotonic() > deadline:
                    if key not in rows:
                        absent[key] = "out of time; give it more --minutes"
                    continue
                try:
                    if turn == 0:
                        rows[key] = checked_row(name, call, batch, golden, spread)
                    times.setdefault(key, []).extend(_times(call, batch, golden.images))
                except Exception as error:
                    absent[key] = _reason(error)
                    rows.pop(key, None)
                    times.pop(key, None)
    for key, milliseconds in times.items():
        rows[key].update(percentiles(milliseconds))
        images_per_second = 1e3 * key[1] / float(np.median(milliseconds))
        rows[key]["images_per_s"] = round(images_per_second, 1)
    reasons = []
    for (name, batch), reason in absent.items():
        reasons.append(Absent(f"{name}, batch {batch}", reason))
    return list(rows.values()), reasons


def checked_row(name: str, call: InferenceCall, batch: int, golden: Golden, spread: float) -> Row:
    """Return the row of a call without its times: drift, and whether all values are finite."""
    log(f"measuring {name}, batch {batch}")
    drift = 0.0
    finite = True
    for start in range(0, len(golden.images), batch):
        # The images are repeated to fill the last batch.
        indices = np.arange(start, start + batch) % len(golden.images)
        outputs = call(golden.images[indices])
        for output in outputs:
            finite = finite and bool(np.isfinite(output).all())
        # np.max keeps a NaN, which Python's max would lose.
        drift = float(np.max([drift, *np.abs(outputs[0] - golden.scores[indices])]))
    return {"call": name, "batch": batch, "drift": drift / spread, "finite": finite}


def _times(call: InferenceCall, batch: int, images: Image) -> list[float]:
    """Return the milliseconds of the calls of one turn, after a warm-up."""
    timed = partial(call, np.resize(images, (batch, *images.shape[1:])))
    _warm_up(timed)
    return time_calls(timed, warm_up=0, seconds=SECONDS)


def _warm_up(call: Callable[[], object]) -> None:
    end = time.monotonic() + WARM_UP_S
    for number in range(WARM_UP):
        if number >= FEWEST_WARM_UP and time.monotonic() > end:
            return
        call()


def _reason(error: Exception) -> str:
    """Return why a batch has no row. Raises the error again if it is a bug."""
    reason = describe_failure(error)
    if reason is None:
        raise error
    return reason
