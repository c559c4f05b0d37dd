"""The study of resizing; times are printed, never asserted."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import pytest

from flawline.benchmarks.studies.resize.__main__ import main
from flawline.benchmarks.studies.resize.measure import PIL, measure_resizing


@pytest.fixture(autouse=True)
def threads_of_opencv() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


def test_prepare_is_near_the_reference_and_nearer_than_plain_sampling() -> None:
    pytest.importorskip("PIL")
    rows = {row.name: row for row in measure_resizing(rounds=1)}
    assert next(iter(rows)) == "prepare()"
    assert list(rows)[-1] == PIL
    assert rows[PIL].distance == 0
    assert rows["prepare()"].distance < rows["cv2 INTER_LINEAR"].distance
    assert all(row.ms > 0 for row in rows.values())


def test_the_command_prints_one_line_per_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("prepare()")
    assert len(lines) >= 5
