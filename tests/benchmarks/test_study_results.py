"""The rows of a study's earlier run: read again, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawline.benchmarks.studies.results import StudyError, read_rows, write_rows


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    stem = tmp_path / "a.study"
    assert read_rows(stem) == []
    write_rows(stem, [{"share": 0.1}])
    assert read_rows(stem) == [{"share": 0.1}]


@pytest.mark.parametrize("content", [b'[{"share": ', b"\xff", b"{}", b"[1]"])
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.json .*give another --out"):
        read_rows(tmp_path / "study")
