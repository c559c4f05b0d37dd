"""What every listed teacher must do, over TEACHERS: as the training in torch, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, write_squares

from flawline.cameras.decode import read_image
from flawline.export.assemble import ExportOptions, build_bundle
from flawline.runtime import teach
from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.log import AUDIT_LOG
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.teaching import TEACHERS
from flawline.runtime.trained_images import content_hash
from flawline.train.checkpoint import load_checkpoint
from flawline.train.recipe import plan
from flawline.train.training import train

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"train/good": 10, "test/good": 2, "test/square": 2}
FOLDS = ["--folds", "2"]
# As a program on the box runs, where an import of these packages fails.
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "matplotlib", "tqdm", "timm", "FrEIA"):
    sys.modules[name] = None
from flawline.runtime.teach import main
status = main(sys.argv[1:])
assert not any(name.startswith("flawline.train") for name in sys.modules)
sys.exit(status)
"""


@dataclass(frozen=True)
class Taught:
    """A bundle that torch trained, and one that was taught from the same images.

    `before` is the bundle that was taught: of the same backbone, for other images.
    """

    trained: Bundle
    before: Bundle
    taught: Bundle
    data: Path


@pytest.fixture(scope="module", params=TEACHERS)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    folder = tmp_path_factory.mktemp(request.param)
    data = write_squares(folder / "squares", IMAGES)
    other = folder / "other"
    other.mkdir()
    for number, image in enumerate(board_images(64, 6)):
        (other / f"{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    recipe = plan(request.param, data, size=64, weights="random", seed=5, folds=2)
    checkpoint = load_checkpoint(train(recipe, folder / "c.pt"))
    trained = build_bundle(checkpoint, data, folder / "trained", ExportOptions(parity_images=4))
    before = taught(trained.path, other, folder / "before", *FOLDS)
    command = [str(before.path), "--source", str(data / "train/good"), *FOLDS]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command, "--out", str(folder / "taught")],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Taught(trained, before, read_bundle(folder / "taught"), data)


def taught(bundle: Path, source: Path, out: Path, *flags: str) -> Bundle:
    assert teach.main([str(bundle), "--source", str(source), "--out", str(out), *flags]) == 0
    return read_bundle(out)


def scores(bundle: Bundle, images: list[Path]) -> np.ndarray:
    with Detector(bundle, "onnxruntime") as detector:
        return np.array([detector(detector.read_image(path)).score for path in images])


def test_a_taught_bundle_judges_as_the_trained_one(result: Taught) -> None:
    images = sorted((result.data / "test").rglob("*.png"))
    expected = scores(result.trained, images)
    tolerance = result.trained.manifest.score_tolerance
    np.testing.assert_allclose(scores(result.taught, images), expected, atol=tolerance)
    # The bundle that was taught judges otherwise.
    assert np.abs(scores(result.before, images) - expected).min() > 10 * tolerance


def test_its_thresholds_and_statistics_are_those_of_the_training(result: Taught) -> None:
    trained, taught = result.trained, result.taught
    tolerance = trained.manifest.score_tolerance
    assert taught.calibration.threshold == pytest.approx(
        trained.calibration.threshold, abs=tolerance
    )
    assert taught.calibration.false_alarm_rate == trained.calibration.false_alarm_rate
    assert taught.calibration.folds == trained.calibration.folds == 2
    pixels = (taught.calibration.pixel_threshold, trained.calibration.pixel_threshold)
    assert pixels[0] == pytest.approx(pixels[1], rel=1e-3)
    for name in ("mean", "std", "min", "max"):
        expected = getattr(trained.manifest.score, name)
        assert getattr(taught.manifest.score, name) == pytest.approx(expected, abs=tolerance)
    assert taught.manifest.map_tolerance == pytest.approx(trained.manifest.map_tolerance, rel=1e-2)


def test_a_stream_compares_its_frames_with_the_statistics_of_the_pictures(result: Taught) -> None:
    expected, drift = result.trained.drift, result.taught.drift
    assert expected is not None
    assert drift is not None
    assert (drift.step, drift.picture, drift.texture) == (
        expected.step,
        expected.picture,
        expected.texture,
    )
    assert drift.ranges.keys() == expected.ranges.keys()
    for name, good in expected.ranges.items():
        learned = drift.ranges[name]
        assert (learned.low, learned.high) == pytest.approx((good.low, good.high), rel=1e-3)
    # That of the bundle before is of other pictures.
    assert result.before.drift is None


def test_it_is_a_whole_bundle_of_its_own_images(result: Taught) -> None:
    taught = result.taught
    files = sorted((result.data / "train/good").iterdir())
    assert set(taught.manifest.trained_images) == {content_hash(path) for path in files}
    assert taught.manifest.source_sizes == result.trained.manifest.source_sizes
    assert taught.precisions == ("fp32",)
    assert taught.short_id != result.trained.short_id
    provenance = taught.manifest.provenance
    assert provenance["taught_from"] == result.before.short_id
    assert provenance["train_seed"] == "5"
    assert provenance["train_good_images"] == "10 taught, 0 held out"
    assert "squares" not in provenance["command"]
    golden = taught.golden()
    assert golden.scores.min() < taught.calibration.threshold < golden.scores.max()
    own = golden.images[golden.scores < taught.calibration.threshold]
    prepare = taught.manifest.graph_input.of_frame
    pictures = {prepare(read_image(path)).tobytes() for path in files}
    assert all(image.tobytes() in pictures for image in own)
    report = check_log(taught.path / AUDIT_LOG)
    assert [entry.what for entry in report.entries] == ["teach"]


def test_held_out_images_set_the_threshold_on_request(result: Taught, tmp_path: Path) -> None:
    source = result.data / "train/good"
    held_out = taught(result.before.path, source, tmp_path / "new", "--folds", "0")
    assert len(held_out.manifest.trained_images) == 8
    assert (held_out.calibration.good_images, held_out.calibration.folds) == (2, 0)
