"""The study of teaching: a whole run on small images, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.studies.teach.__main__ import main
from flawline.benchmarks.studies.teach.report import teach_page

pytestmark = pytest.mark.torch


def result(auroc: float) -> dict[str, Any]:
    return {
        "auroc": auroc,
        "threshold": 1.5,
        "good": 10,
        "defective": 20,
        "false_alarms": 2,
        "detected": 19,
        "images": 338,
    }


def counts(rejected: int, rejects: int) -> dict[str, int]:
    return {
        "pictures": 100,
        "judged": 150,
        "rejected": rejected,
        "kept": 149,
        "rejects": rejects,
    }


def test_the_page_says_that_nothing_was_rejected() -> None:
    step = {"step": "before", **counts(0, 0), **result(0.9)}
    row = {"method": "any", "data": "part", "command": "c", **dict.fromkeys(("compared", "time"))}
    page = teach_page([{**row, "append": [step]}])
    assert page.count("| before |") == 1
    assert "It rejects 0 of 150 later ones, so that there is nothing to add." in page


def test_the_page_says_by_what_a_graph_with_exempted_patches_has_grown() -> None:
    growth = {"trained": True, "time_ratio": 1.187, "megabytes": 0.81, "exempted": "512"}
    step = {"step": "after", **counts(45, 40), **result(0.9), **growth}
    row = {"method": "any", "data": "part", "command": "c", **dict.fromkeys(("compared", "time"))}
    page = teach_page([{**row, "append": [step]}])
    assert "any that was trained on the first 100 good images of part." in page
    assert "512 patches are exempted; the FP32 graph has 0.8 MB more, and takes 1.19 times" in page


def test_the_page_has_a_line_for_each_comparison() -> None:
    row = {
        "method": "any",
        "data": "part",
        "other": "another",
        "cpu": "a CPU",
        "cores": 2,
        "compared": {
            "weights": "imagenet",
            "score_std": 0.1,
            "difference": 1e-5,
            "trained": result(0.91234),
            "taught": result(0.9125),
        },
        "time": {"images": 200, "folds": 5, "seconds": 31.0, "cpu_seconds": 50.0, "others": None},
        "append": [{"step": "before", **counts(rejected=45, rejects=40), **result(0.9)}],
        "command": "python -m benchmarks.studies.teach",
    }
    page = teach_page([row, {**row, "method": "other", "append": None}])
    assert (
        "| any | 338 | 0.9123 | 0.9125 | 1.0e-05 | 0.100 | 1.5000 / 1.5000 | 2 / 2 of 10 |" in page
    )
    assert "| other | 200 | 5 | 31.0 | 50.0 | unknown |" in page
    assert page.count("| before | 0.9000 | 1.5000 | 2 of 10 | 19 of 20 |") == 1
    assert "It rejects 45 of 150 later ones, of which 40 are added; 149 others set" in page
    assert page.count("`python -m benchmarks.studies.teach`") == 1


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    counts = {"train/good": 40, "test/good": 4, "test/square": 4}
    data = write_squares(tmp_path / "squares", counts)
    other = write_squares(tmp_path / "other", {"train/good": 8, "test/good": 1, "test/square": 1})
    words = ["--data", str(data), "--other", str(other), "--weights", "random", "--size", "64"]
    words += ["--timed", "8", "--few", "10", "--rejects", "3", "--rate", "0.3"]
    out = tmp_path / "results" / "teach"
    assert main([*words, "--images", "20", "--out", str(out)]) == 0
    rows = json.loads((out.parent / "teach.json").read_text())
    assert [row["method"] for row in rows] == ["patchcore", "padim"]
    for row in rows:
        compared = row["compared"]
        assert compared["taught"]["images"] == compared["trained"]["images"] == 16
        assert row["time"]["images"] == 8
    assert len(rows[0]["append"]) == 4
    assert rows[1]["append"] is None
    assert (out.parent / "teach.md").read_text().startswith("| method |")
