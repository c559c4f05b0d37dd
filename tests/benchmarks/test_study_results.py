"""The rows of a study's earlier run: read again, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flawline.benchmarks.studies.results import (
    StudyError,
    differing_versions,
    read_rows,
    stated,
    write_rows,
)


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    stem = tmp_path / "a.study"
    assert read_rows(stem) == []
    write_rows(stem, [{"share": 0.1}])
    assert read_rows(stem) == [{"share": 0.1}]


@pytest.mark.parametrize("content", [b'[{"share": ', b"\xff", b"{}", b"[1]", b"[" * 100_000])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.json .*give another --out"):
        read_rows(tmp_path / "study")


def test_rows_of_another_study_are_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "study", [{"share": 0.1}, {"share": "0.1"}])
    assert len(read_rows(tmp_path / "study")) == 2
    message = r"no.* result of this study \(\[1\]\.share is '0\.1', not of type float\); delete it"
    with pytest.raises(StudyError, match=message):
        read_rows(tmp_path / "study", {"share": float})


def test_facts_that_differ_are_stated_with_their_rows() -> None:
    rows = [
        {"name": "a", "engine": "x", "versions": {"torch": "1", "numpy": "2"}},
        {"name": "b", "engine": "x", "versions": {"torch": "1"}},
        {"name": "b", "engine": "y", "versions": {"torch": "1"}},
    ]

    def of(row: dict[str, Any]) -> str:
        return str(row["name"])

    assert stated(rows[:2], lambda row: f"engine {row['engine']}", of) == "engine x"
    assert (
        stated(rows, lambda row: f"engine {row['engine']}", of) == "engine x (a, b); engine y (b)"
    )
    assert differing_versions(rows[1:], of) == []
    assert differing_versions(rows, of) == ["numpy 2 (a); numpy absent (b)"]
