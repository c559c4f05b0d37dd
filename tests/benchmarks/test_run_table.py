"""The table of the benchmark: errors beside the accuracy, and the marks of a busy machine."""

from __future__ import annotations

import pytest
from measured_rows import row

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.evaluate import _decisions
from flawline.benchmarks.interleaved import EngineRun
from flawline.benchmarks.measure.timing import slowest_and_fastest
from flawline.benchmarks.run_table import busy_note, run_table
from flawline.runtime.bundle import Bundle

pytestmark = pytest.mark.torch


def cells_of(table: str, line: int) -> dict[str, str]:
    lines = [text.strip("| ").split("|") for text in table.splitlines()]
    titles = [title.strip() for title in lines[0]]
    return dict(zip(titles, [cell.strip() for cell in lines[line]], strict=True))


def test_false_alarms_and_missed_defects_stand_beside_the_accuracy() -> None:
    cells = cells_of(run_table([row()]), 2)
    assert cells["I-AUROC"] == "0.95"
    assert cells["false alarms"] == "3 of 147"
    assert cells["missed defects"] == "129 of 313"
    titles = list(cells)
    assert titles.index("false alarms") == titles.index("I-AUROC") + 1


def test_decisions_are_those_at_the_threshold_of_the_bundle(bundle: Bundle) -> None:
    """The threshold is 100. A score that equals it is not above it."""
    import numpy as np

    run = EngineRun("onnxruntime", "fp32", scores=[99.0, 101.0, 100.0, 102.0, 103.0, 98.0])
    labels = np.array([False, False, True, True, True, True])
    assert _decisions(labels, run, bundle) == {
        "threshold": 100.0,
        "good_images": 2,
        "false_alarms": 1,
        "defective_images": 4,
        "missed": 2,
    }


def test_speeds_of_a_busy_machine_are_marked() -> None:
    table = run_table([row(), row(data="other", other_processes=0.35)])
    assert cells_of(table, 2)["FPS"] == "80.0"
    assert cells_of(table, 3)["FPS"] == "80.0 ‡"
    assert "‡ Busy machine: other processes used 35% of the CPU. Measure again" in table
    assert "not known" not in table


def test_an_idle_machine_is_not_marked_and_an_unknown_load_is_said() -> None:
    assert "‡" not in run_table([row()])
    assert busy_note([row()]) is None
    unknown = run_table([row(other_processes=None)])
    assert "‡" not in unknown
    assert "Whether other processes disturbed the times is not known." in unknown


def test_several_loads_are_summed_up_by_the_largest() -> None:
    rows = [row(other_processes=0.2), row(other_processes=0.6), row()]
    assert busy_note(rows) == "busy machine: other processes used up to 60% of the CPU"


def test_columns_are_aligned_for_a_terminal() -> None:
    lines = run_table([row(bundle="a|b"), row(bundle="a longer name")]).splitlines()[:4]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("| a\\|b ")


def test_the_spread_is_that_of_the_repeats() -> None:
    """Two images, three repeats: the medians of the repeats are 10, 20 and 30 ms."""
    times = [10.0, 20.0, 25.0, 10.0, 20.0, 35.0]
    assert slowest_and_fastest(times, 3) == (33.3, 100.0)
    assert slowest_and_fastest(times, 1) == (None, None)
