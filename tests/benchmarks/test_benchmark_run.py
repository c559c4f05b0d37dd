"""The benchmark over engines and precisions: what is run, and what is told about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks import run
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.engines import ENGINES, missing

pytestmark = pytest.mark.torch
HERE = [name for name in ("onnxruntime", "openvino") if missing(name) is None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Good parts are dark, bad ones bright: the tiny model's score is the brightest pixel, its threshold 100."""
    for folder, grey in (("train/good", 20), ("test/good", 20), ("test/bright", 200)):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for i in range(5):
            picture = cv2.imencode(".png", np.full((40, 50, 3), grey + i, np.uint8))[1].tobytes()
            (tmp_path / "parts" / folder / f"{i}.png").write_bytes(picture)
    return tmp_path / "parts"


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ENGINES", {name: ENGINES[name] for name in HERE})
    monkeypatch.setattr(run, "SETTLE_S", 0.0)


def benchmark(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, Any, str]:
    out = data.parent / "results"
    paths = ["--bundles", str(bundle.path), "--data", str(data), "--out", str(out)]
    code = run.main([*paths, "--threads", "1", "--repeats", "1", *flags])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out else [], told.err


def test_all_is_every_engine_here_in_every_precision_it_runs(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    code, rows, told = benchmark(bundle, data, capsys, "--engines", "all")
    assert code == 0
    got = [(row["engine"].split()[0], row["precision"]) for row in rows]
    assert ("onnxruntime", "fp32") in got
    left_out = [
        line for line in told.splitlines() if "left out" in line
    ]  # such as bf16, whose rounding exceeds 0.01
    assert all(line.count(": ") >= 1 for line in left_out)
    tried = len(got) + len(left_out)
    assert tried == sum(len(run.resolve_name(ENGINES[name]).precisions) for name in HERE)
    assert all(row["image_auroc"] == 1 for row in rows)
    assert all((row["flips"], row["clear_flips"]) == (0, 0) for row in rows)
    assert all(row["speedup"] > 0 for row in rows)
    assert [
        row["speedup"]
        for row in rows
        if row["engine"].startswith("onnxruntime") and row["precision"] == "fp32"
    ] == [1]
    table = (data.parent / "results" / "run.md").read_text()
    assert "| flips (clear) | x ORT FP32 |" in table
    assert table.count("| 0 (0) |") == len(rows)


def test_a_graph_that_the_bundle_lacks_is_said_and_left_out(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows, told = benchmark(bundle, data, capsys, "--engines", "all")
    assert code == 0
    assert re.search(
        r"note: left out onnxruntime int8: .*holds no int8 graph; .* --precision int8", told
    )
    assert "int8" not in {row["precision"] for row in rows}


def test_named_engines_run_their_default_and_nothing_is_compared_without_the_reference(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    _, rows, _ = benchmark(bundle, data, capsys)
    assert [(row["precision"], row["speedup"]) for row in rows] == [("fp32", 1)]
    _, rows, _ = benchmark(bundle, data, capsys, "--engine", "onnxruntime", "--precision", "int8")
    assert [(row["precision"], row["speedup"], row["flips"]) for row in rows] == [
        ("int8", None, None)
    ]
    assert "| – | – |" in (data.parent / "results" / "run.md").read_text()


def test_a_named_engine_that_cannot_run_is_an_error(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = benchmark(
        bundle, data, capsys, "--engines", "onnxruntime", "--precision", "bf16"
    )
    assert code == 2
    assert "onnxruntime does not run bf16" in told.splitlines()[-1]


def test_flips_are_counted_and_those_beyond_tolerance_are_clear(bundle: Bundle) -> None:
    """The threshold is 100, the tolerance 0.01."""

    def measured(precision: str, scores: list[float], milliseconds: float) -> Any:
        found = run._Run.__new__(run._Run)
        found.key, found.scores, found.times = ("onnxruntime", precision), scores, [milliseconds]
        return found

    runs = [
        measured("int8", [99.0, 99.0, 101.0], 2.0),
        measured("fp32", [99.0, 100.005, 99.5], 5.0),
    ]
    rows: list[dict[str, Any]] = [{}, {}]
    run._compare(rows, runs, bundle)
    assert rows[0] == {"speedup": 2.5, "flips": 2, "clear_flips": 1}
    assert rows[1] == {"speedup": 1.0, "flips": 0, "clear_flips": 0}


def test_engines_take_turns_on_each_image(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, order = add_model(bundle, "int8", bundle.model().read_bytes()), []
    judge = run._Run.judge
    monkeypatch.setattr(
        run._Run, "judge", lambda self, *a: (order.append(self.key[1]), judge(self, *a))
    )
    benchmark(bundle, data, capsys, "--engines", "onnxruntime", "--precision", "all")
    assert order == ["fp32", "int8"] * 10
