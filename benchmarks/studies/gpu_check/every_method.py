"""Measuring many methods in one call, each within its share of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.gpu_check.calls import Absent
from flawline.benchmarks.studies.gpu_check.one_method import (
    DEVICE,
    MEASURE,
    Record,
    Task,
)
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.isolated import CallFailed, IsolatedProcess

# Seconds within which a driver answers.
DRIVER_S = 60.0
# A share of fewer seconds is not begun.
SHORTEST_S = 3.0


@dataclass
class Found:
    """Networks by method, the rows of all, and what is absent of each."""

    networks: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    absent: dict[str, list[Absent]] = field(default_factory=dict)

    def add(self, method: str, record: Record) -> None:
        """Add what a record has of a method."""
        if record.network is not None:
            self.networks[method] = record.network
        self.rows += [{"method": method, **row} for row in record.rows]
        if record.absent:
            self.absent[method] = record.absent


def device_name(device: str) -> str:
    """Return the product name of a device. Raises EngineError where it cannot be used."""
    with IsolatedProcess() as process:
        try:
            answer: Mapping[str, str] = process.call(DEVICE, device, limit_s=DRIVER_S)
        except CallFailed as failure:
            raise EngineError(f"asking for the GPU {failure}; {_REMEDY}") from failure
    if "missing" in answer:
        raise EngineError(f"{answer['missing']}; {_REMEDY}")
    return answer["name"]


_REMEDY = "use a machine with an NVIDIA GPU, or try the command with --device cpu"


def measure_methods(
    methods: Sequence[str], task: Task, folder: Path, records: Path, deadline: float
) -> Iterator[Found]:
    """Measure one method after the other; yield what all have so far after each.

    `task` is that of all, but for method, folder, record and seconds. `folder` has, or gets, a
    folder for the network of each method, and `records` is a folder for files of this call. Each
    gets its share of the time until `deadline`, of time.monotonic(): what it does not need is left
    to those after it.
    """
    found = Found()
    for number, method in enumerate(methods):
        share = (deadline - time.monotonic()) / (len(methods) - number)
        if share < SHORTEST_S:
            found.absent[method] = [Absent("all", "out of time; give it more --minutes")]
            yield found
            continue
        log(f"{method}, {number + 1} of {len(methods)}: at most {share:.0f} s")
        record = records / f"{method}.json"
        own = replace(
            task,
            method=method,
            folder=str(folder / method),
            record=str(record),
            seconds=round(share, 1),
        )
        found.add(method, _in_process(own))
        yield found


def _in_process(task: Task) -> Record:
    """Measure a method in a process that is ended after the task's seconds; return what it has."""
    reason = None
    end = time.monotonic() + task.seconds
    with IsolatedProcess() as process:
        try:
            process.call(MEASURE, asdict(task), limit_s=task.seconds)
        except CallFailed as failure:
            reason = str(failure)
            if time.monotonic() >= end:
                reason = f"{reason}; give it more --minutes"
    record = Record.read(Path(task.record))
    if reason is not None:
        record.absent.append(Absent(record.step or "end", reason))
    return record
