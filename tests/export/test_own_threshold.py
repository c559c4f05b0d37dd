"""A new bundle whose engine was asked for in a lossy precision gets that engine's threshold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares
from toys.timed_engines import Second

from flawline.export import build
from flawline.runtime.bundle import read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import ENGINES, open_engine
from flawline.runtime.scored_by import ScoredBy
from flawline.train import fit

pytestmark = pytest.mark.torch
RATES = ("--false-alarm-rate", "0.2", "--review-rate", "0.5")
LIGHT = ["--weights", "random", "--size", "64", "--steps", "3"]


def build_command(checkpoint: Path, out: Path, *flags: str) -> int:
    return build.main(["--checkpoint", str(checkpoint), "--out", str(out), *flags])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/good": 24, "test/good": 5, "test/square": 5}
    return write_squares(tmp_path_factory.mktemp("data") / "squares", counts)


@pytest.fixture(scope="module", params=["0", "2"], ids=["hold-out", "out-of-fold"])
def trained(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a checkpoint and a bundle whose threshold is from the FP32 scores."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--data", str(data), "--out", str(folder / "c.pt"), *LIGHT, "--folds", request.param]
    assert fit.main(words) == 0
    flags = ("--engine", "none", *RATES)
    assert build_command(folder / "c.pt", folder / "plain", *flags) == 0
    return folder


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "second", "toys.timed_engines:Second")


def test_the_threshold_is_from_the_scores_of_the_engine(
    second: None, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_bundle(trained / "plain").calibration
    # Within the tolerance of the precision, so that the self-test passes.
    drift = 5 * read_bundle(trained / "plain").manifest.score_tolerance
    monkeypatch.setattr(Second, "drift", drift)
    flags = ("--engine", "second", "--precision", "bf16", *RATES)
    assert build_command(trained / "c.pt", tmp_path / "own", *flags) == 0
    own = read_bundle(tmp_path / "own")
    # Every score of the engine is higher by the drift.
    assert own.calibration.threshold == pytest.approx(plain.threshold + drift, rel=1e-4)
    assert own.calibration.review is not None
    assert plain.review is not None
    assert own.calibration.review.threshold < own.calibration.threshold
    expected = pytest.approx(plain.review.threshold + drift, rel=1e-4)
    assert own.calibration.review.threshold == expected
    assert own.calibration.review.interval == plain.review.interval
    # Its maps are those of the reference.
    assert own.calibration.pixels is not None
    assert plain.pixels is not None
    assert own.calibration.pixels.threshold == pytest.approx(plain.pixels.threshold, rel=1e-4)
    assert own.calibration.scored_by == ScoredBy("second", "bf16")
    assert own.calibration.folds == plain.folds
    assert own.calibration.good_images == plain.good_images
    engine = open_engine(own)
    assert (engine.name, engine.precision) == ("second", "bf16")
    engine.close()


@pytest.mark.parametrize("trained", ["0"], indirect=True)
def test_without_the_images_or_the_engine_the_command_is_named(
    second: None,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(trained / "plain", out)
    monkeypatch.setattr(Second, "drift", 0.0)
    flags = ["--engine", "second", "--precision", "bf16"]
    assert build.main(["--bundle", str(out), *flags]) == 0
    expected = f"calibrate --bundle {out} --images GOOD_PARTS --engine second --precision bf16"
    assert expected in capsys.readouterr().err
    # It compiles for another machine.
    monkeypatch.setitem(ENGINES, "second", "toys.timed_engines:Elsewhere")
    assert build_command(trained / "c.pt", out, *flags) == 0
    assert expected in capsys.readouterr().err
    assert read_bundle(out).calibration.scored_by is None


def test_out_of_fold_scores_become_those_of_mosaics(
    second: None,
    trained: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = read_bundle(trained / "plain")
    if not plain.calibration.folds:
        pytest.skip("held-out images are scored as mosaics by the graph")
    flags = ("--source", "90x80:bayer-rggb", *RATES)
    assert build_command(trained / "c.pt", tmp_path / "mosaics", *flags, "--engine", "none") == 0
    mosaics = read_bundle(tmp_path / "mosaics")
    changes = []
    with Detector(plain, "onnxruntime") as images, Detector(mosaics, "onnxruntime") as frames:
        for path in sorted((data / "train" / "good").iterdir()):
            image = frames.read_image(path)
            changes.append(frames(image).score - images(image).score)
    # The noise of the images is colourful, so that a mosaic changes the scores.
    assert np.abs(changes).mean() > 2 * plain.manifest.score_tolerance
    mean = plain.manifest.score.mean + np.mean(changes)
    assert mosaics.manifest.score.mean == pytest.approx(mean, rel=1e-4)
    assert mosaics.manifest.map_peak.mean != plain.manifest.map_peak.mean
    # The threshold of an engine adds what it changes to the scores of the mosaics.
    drift = 5 * mosaics.manifest.score_tolerance
    monkeypatch.setattr(Second, "drift", drift)
    engine = ("--engine", "second", "--precision", "bf16")
    assert build_command(trained / "c.pt", tmp_path / "own", *flags, *engine) == 0
    own = read_bundle(tmp_path / "own").calibration
    assert own.threshold == pytest.approx(mosaics.calibration.threshold + drift, rel=1e-4)
