"""The share of the CPU that other processes used, from injected readings."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawline.runtime.load import (
    CpuReading,
    busy_and_total,
    is_busy,
    read_cpu,
    share_of_others,
)

START = CpuReading(clock=100.0, cpus=2, busy=50.0, total=200.0, own=10.0)
#       user nice system idle iowait irq softirq steal guest guest_nice
STAT = """\
cpu  111 0 0 0 0 0 0 0 0 0
cpu0 10 20 30 400 50 6 7 8 9 9
cpu1 1 0 0 99 0 0 0 0 0 0
cpu10 1000 0 0 0 0 0 0 0 0 0
intr 5 0 0
"""


def later(**changes: float) -> CpuReading:
    """Ten seconds of two CPUs after START, all of them idle unless stated."""
    values = {"busy": 0.0, "total": 20.0, "own": 0.0} | changes
    return CpuReading(
        clock=START.clock + values.get("clock", 10.0),
        cpus=2,
        busy=START.busy + values["busy"],
        total=START.total + values["total"],
        own=START.own + values["own"],
    )


def test_the_busy_time_of_this_process_is_not_that_of_others() -> None:
    assert share_of_others(START, later(busy=17, own=10)) == pytest.approx(0.35)
    assert share_of_others(START, later(busy=10, own=10)) == 0
    assert share_of_others(START, later(busy=20, own=0)) == 1
    # The two clocks have different resolutions.
    assert share_of_others(START, later(busy=10, own=10.2)) == 0


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, START),
        (START, None),
        # Too short for counters of hundredths of a second.
        (START, later(clock=0.4, total=0.8)),
        # The counters do not change, or are those of another machine.
        (START, later(total=0.0)),
        (START, later(busy=400.0, total=640.0)),
        # The process was moved to other CPUs.
        (START, later()._replace(cpus=3)),
    ],
)
def test_what_cannot_be_told_is_none(start: CpuReading | None, end: CpuReading | None) -> None:
    assert share_of_others(start, end) is None
    assert not is_busy(share_of_others(start, end))


def test_only_the_cpus_of_the_process_are_read() -> None:
    """The counters of guests are part of user time, and waiting for a disk is idle."""
    assert busy_and_total(STAT, {0}) == (81, 531)
    assert busy_and_total(STAT, {0, 1}) == (82, 631)
    assert busy_and_total(STAT, {0, 2}) is None
    assert busy_and_total("", {0}) is None


def test_a_system_without_counters_is_not_measured(tmp_path: Path) -> None:
    assert read_cpu(tmp_path / "stat") is None
    (tmp_path / "stat").write_text("cpu  1 2 3\n")
    assert read_cpu(tmp_path / "stat") is None


def test_a_machine_is_busy_above_a_tenth() -> None:
    assert is_busy(0.11)
    assert not is_busy(0.1)
    assert not is_busy(None)
