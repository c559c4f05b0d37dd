"""Rows of a CSV table."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from flawline.cameras import Frame
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement, OutputError, ViewVerdict, open_output
from flawline.runtime.outputs.csv_table import COLUMNS
from flawline.runtime.verdict import Verdict

IMAGE = np.zeros((48, 64, 3), np.uint8)
GOOD = Judgement(
    Frame("line", 3, IMAGE, captured_at=10.25),
    Verdict(80.0, 100.0, False, None, {"prepare": 1.0, "infer": 2.5}),
    12.5,
)


def rows(bundle: Bundle, path: Path, *judgements: Judgement) -> list[dict[str, str]]:
    with open_output(f"csv:{path}", bundle) as output:
        for judgement in judgements:
            output.write(judgement)
        output.finish({"frames": len(judgements)})
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    for row in table:
        assert tuple(row) == COLUMNS
    return table


def test_a_row_has_the_values_of_the_json_line(bundle: Bundle, tmp_path: Path) -> None:
    (row,) = rows(bundle, tmp_path / "a.csv", GOOD)
    assert row == {
        **dict.fromkeys(COLUMNS, ""),
        "source": "line",
        "index": "3",
        "captured_at": "10.25",
        "score": "80.0",
        "threshold": "100.0",
        "verdict": "good",
        "rejected": "false",
        "prepare_ms": "1.0",
        "infer_ms": "2.5",
        "fps": "12.5",
        "bundle": bundle.short_id,
    }


def test_every_kind_of_line_has_the_same_columns(bundle: Bundle, tmp_path: Path) -> None:
    reason = 'torn; "half", of it\nis missing'
    frame = Frame("line", 4, None, fault=reason, part="SN, 7")
    unjudged = Judgement(frame, Verdict(math.nan, 100.0, True, None, {}, reason), 12.5, live=True)
    views = (ViewVerdict(0, 3, 80.0, "good"), ViewVerdict(1, 4, math.nan, "unjudged", reason))
    grouped = dataclasses.replace(GOOD, views=views, camera="left", live=True, age=0.5, dropped=2)
    first, second = rows(bundle, tmp_path / "a.csv", unjudged, grouped)
    assert first["reason"] == reason
    assert (first["score"], first["prepare_ms"], first["rejected"]) == ("", "", "true")
    assert first["part"] == "SN, 7"
    assert (second["views"], second["camera"]) == ("2", "left")
    assert (second["age_ms"], second["dropped"]) == ("500.0", "2")


@pytest.mark.parametrize("part", ["=1+1", "+1", "-1", "@sum", "\tx"])
def test_a_part_is_never_a_formula(bundle: Bundle, tmp_path: Path, part: str) -> None:
    judgement = dataclasses.replace(GOOD, frame=Frame("line", 3, IMAGE, part=part))
    (row,) = rows(bundle, tmp_path / "a.csv", judgement)
    assert row["part"] == f"'{part}"


def test_negative_numbers_stay_numbers(bundle: Bundle, tmp_path: Path) -> None:
    judgement = dataclasses.replace(GOOD, verdict=dataclasses.replace(GOOD.verdict, score=-2.5))
    (row,) = rows(bundle, tmp_path / "a.csv", judgement)
    assert row["score"] == "-2.5"


def test_a_run_without_a_judgement_leaves_an_older_table(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("older\n")
    open_output(f"csv:{path}", bundle).close()
    assert path.read_text() == "older\n"


def test_the_command_writes_the_table(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = "synthetic://?width=64&height=48&fps=500&frames=5&trigger=line1"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--output", "csv"]
    assert infer_stream.main(flags) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["part"] for row in table] == ["1", "2", "3", "4", "5"]


def test_a_file_takes_the_lines_of_one_output_only(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with open_output(f"csv:{path}", bundle) as output:
        output.write(GOOD)
        with pytest.raises(OutputError, match=r"another output or process writes .* already"):
            open_output(f"jsonl:{path}", bundle)
        output.write(GOOD)
    assert path.read_text().count("line,3") == 2
    # It is free again.
    open_output(f"jsonl:{path}", bundle).close()
