"""Comparisons with another library: the protocol with a fake process, and what runs without it."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")


from builders import write_squares

from flawline.benchmarks.peers import __main__ as peers
from flawline.benchmarks.peers import measure, theirs
from flawline.benchmarks.peers.process import Peer, PeerError
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.train import METHODS, metrics

pytestmark = pytest.mark.torch


def test_the_accuracy_is_that_of_the_projects_own_metric() -> None:
    random = np.random.default_rng(0)
    labels = random.random(60) > 0.4
    # With ties, and far outside [0, 1].
    scores = np.round(5 * random.random(60) + labels, 1) * 100
    expected = metrics.auroc(labels, scores)
    assert theirs.auroc(labels.tolist(), scores.tolist()) == pytest.approx(expected, abs=1e-12)


def test_every_model_is_compared_with_a_method() -> None:
    assert set(theirs.MODELS) <= set(METHODS)


def test_it_runs_in_an_environment_without_this_project() -> None:
    """It imports nothing but the standard library before its arguments are read."""
    tree = ast.parse(Path(theirs.__file__).read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    standard = {"argparse", "collections.abc", "json", "os", "pathlib", "sys", "time", "typing"}
    assert imported == {"__future__", *standard}
    assert "flawline" not in {name.partition(".")[0] for name in imported}


# ---------------------------------------------------------------- the other side

FAKE = Path(__file__).resolve().parents[1] / "fakes" / "peer.py"


def fake(mode: str) -> list[str]:
    return [sys.executable, str(FAKE), mode]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "data", {"train/good": 5, "test/good": 3, "test/square": 3})


def test_both_sides_judge_the_same_images(
    data: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SETTLE_S", 0.0)
    monkeypatch.chdir(data)
    options = EngineOptions(1, "fp32")
    with Detector(bundle, "onnxruntime", options) as detector, Peer(fake("good")) as peer:
        row = measure.compare(detector, peer, Path(), None, 2)
    assert row["data"] == "data"
    sizes = [path.stat().st_size for path in sorted((data / "test").rglob("*.png"))]
    labels = np.array([False] * 3 + [True] * 3)
    theirs_row = row["theirs"]
    assert theirs_row["library"] == "fake 1.0"
    assert theirs_row["image_auroc"] == pytest.approx(metrics.auroc(labels, np.array(sizes)), 1e-3)
    assert theirs_row["p50_ms"] == pytest.approx(2.0 + np.median(sizes) / 1e6, abs=1e-3)
    # The tiny detector scores the brightest pixel, and the squares are white.
    assert row["ours"]["image_auroc"] == 1.0
    assert row["images"] == 6
    assert row["defective_images"] == 3
    assert row["ratio"] == pytest.approx(theirs_row["p50_ms"] / row["ours"]["p50_ms"], abs=0.006)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dies", r"ended with status 1 \(it ran out of memory\); run its command by hand: "),
        ("fails", "the other side failed: ValueError: wrong size"),
        ("not finite", "the score nan"),
        ("few times", r"was asked for 2 times of .*, and answered \[\]"),
        ("no score", "has score None"),
        ("no json", "answered 'hello', which is no answer"),
    ],
)
def test_a_wrong_answer_is_one_line(mode: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"12")
    with Peer(fake(mode)) as peer, pytest.raises(PeerError, match=message) as caught:
        peer.judge(path, 2, 0.0)
    assert "\n" not in str(caught.value)


def test_one_that_does_not_start_says_why() -> None:
    with pytest.raises(PeerError, match=r"ended with status 1 \(it has no library\)"):
        Peer(fake("dies at once"))
    with pytest.raises(PeerError, match=r"nosuchpython cannot be run .*; see --theirs"):
        Peer(["nosuchpython"])
    with pytest.raises(PeerError, match=r"did not answer within 0\.2 s"):
        Peer(fake("silent"), start_s=0.2)


def test_a_peer_may_be_closed_twice() -> None:
    peer = Peer(fake("good"))
    peer.close()
    peer.close()


def test_the_command_writes_a_page(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    monkeypatch.setattr(measure, "SETTLE_S", 0.0)
    (tmp_path / "model" / "weights" / "onnx").mkdir(parents=True)
    (tmp_path / "model" / "weights" / "onnx" / "model.onnx").write_bytes(b"")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {FAKE} good\n")
    python.chmod(0o755)
    flags = ["--theirs", str(python), "--model", next(iter(theirs.MODELS)), "--engine"]
    flags += ["onnxruntime", "--exported", str(tmp_path / "model"), "--bundle", str(bundle.path)]
    assert peers.main([*flags, "--data", str(data), "--out", str(tmp_path / "page")]) == 0
    (row,) = json.loads((tmp_path / "page.json").read_text())
    assert row["images"] == 6
    text = (tmp_path / "page.md").read_text()
    assert "| fake 1.0 |" in text
    assert f"{row['ratio']:.2f} times as long" in text


def test_a_model_that_is_not_exported_needs_a_training(
    data: Path, tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    model = next(iter(theirs.MODELS))
    flags: list[Any] = ["--theirs", "python", "--model", model, "--exported", tmp_path / "none"]
    flags += ["--bundle", bundle.path, "--data", data]
    assert peers.main([str(flag) for flag in flags]) == 2
    assert "give --weights and --epochs to train it" in capsys.readouterr().err
