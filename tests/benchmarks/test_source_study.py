"""The study of graphs that take a camera's frame; times are never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("tqdm", reason="needs the train extra")

from conftest import SIZE, write_levels, write_tiny_bundle

from flawline.benchmarks.studies.source.__main__ import main


def test_the_scores_are_those_of_prepare_and_every_engine_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    levels = {"train/good": range(80, 92), "test/good": [90, 95], "test/bright": [101, 140]}
    data = write_levels(tmp_path / "levels", levels, 2 * SIZE)
    words = ["--bundle", str(bundle.path), "--data", str(data), "--frame", "192x128:bayer-bggr"]
    assert main([*words, "--rounds", "1", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    (row,) = result["scores"]
    assert (row["images"], row["equal"], row["largest_difference"]) == (4, 4, 0)
    assert (row["clear_flips"], row["near_flips"]) == (0, 0)
    (source,) = row["sources"]
    assert source.startswith(f"{2 * SIZE}x{2 * SIZE}:")
    assert row["most_nodes"] == row["fewest_nodes"] > 0
    assert result["frame_nodes"] > 0
    assert result["times"][0]["engine"].startswith("onnxruntime")
    for timed in result["times"]:
        assert timed["difference"] <= timed["tolerance"]
        assert min(timed["prepare_ms"], timed["prepared_ms"], timed["source_ms"]) > 0
    assert capsys.readouterr().out == (tmp_path / "out.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "D"], "one --data for each --bundle"),
        (["--data", "D", "--data", "D", "--frame", "9"], "argument --frame: '9' is not WIDTHx"),
        (["--data", "D", "--data", "D", "--rounds", "0"], "take 1 or more"),
    ],
)
def test_wrong_flags_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--bundle", "B", "--bundle", "C", *words])
    assert message in capsys.readouterr().err
