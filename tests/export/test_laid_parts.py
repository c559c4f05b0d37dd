"""From images of parts that do not lie still to a bundle that finds them, with a toy method.

The toy compares the colours of each cell with their mean over the good images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from moved_part import HEIGHT, REGION, WIDTH, draw_part, spotted
from toys.method import MeanImageSettings

from flawline.benchmarks.evaluate import evaluate_bundle
from flawline.cameras.decode import read_image
from flawline.export import ExportError, build
from flawline.export.assemble import ExportOptions, build_bundle
from flawline.export.triton_config import config_text
from flawline.runtime.calibrate import main as calibrate
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.runtime.fixture import FixtureError
from flawline.runtime.image import Geometry, Image
from flawline.runtime.source_frame import SourceFrame
from flawline.train import METHODS
from flawline.train.checkpoint import Checkpoint, load_checkpoint
from flawline.train.data.fixture import FixtureOptions, FixturePlan, parse_fixture
from flawline.train.recipe import Recipe
from flawline.train.training import train

pytestmark = pytest.mark.torch
OPTIONS = ExportOptions(false_alarm_rate=0.2)
REGION_TEXT = ",".join(map(str, REGION))


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", "toys.method:MeanImage")


def save(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def poses(count: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.uniform((-25, -10, -10), (25, 10, 10), (count, 3)).tolist()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 good parts, and 4 good and 4 spotted ones to test, in any pose, and the picture."""
    root = tmp_path_factory.mktemp("moved")
    save(root / "still.png", draw_part())
    for number, pose in enumerate(poses(20, 0)):
        save(root / "parts" / "train" / "good" / f"{number:03d}.png", draw_part(*pose))
    for number, pose in enumerate(poses(4, 1)):
        save(root / "parts" / "test" / "good" / f"{number:03d}.png", draw_part(*pose))
        frame, (x, y) = spotted(*pose)
        save(root / "parts" / "test" / "spot" / f"{number:03d}.png", frame)
        mask = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (round(x), round(y)), 6, 255, -1)
        save(root / "parts" / "ground_truth" / "spot" / f"{number:03d}_mask.png", mask)
    return root


def plan(data: Path, region: str = REGION_TEXT, turn: float = 30.0) -> FixturePlan:
    return FixturePlan(data / "still.png", FixtureOptions(region, turn, 15.0))


def trained(data: Path, out: Path, fixture: FixturePlan | None, **changes: Any) -> Checkpoint:
    settings = MeanImageSettings("", Geometry("stretch", 64, 64), cell=2)
    fields = {"folds": 0, "device": "cpu", "fixture": fixture, **changes}
    return load_checkpoint(train(Recipe("toy", data / "parts", settings, **fields), out))


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toy", "toys.method:MeanImage")
        return trained(data, tmp_path_factory.mktemp("run") / "toy.pt", plan(data))


def test_a_spot_on_moved_parts_is_found_with_a_fixture_alone(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    laid = build_bundle(checkpoint, data / "parts", tmp_path / "laid", OPTIONS)
    plain = trained(data, tmp_path / "plain.pt", None)
    moved = build_bundle(plain, data / "parts", tmp_path / "moved", OPTIONS)
    rows = []
    for bundle in (laid, moved):
        options = EngineOptions(threads=1)
        row = evaluate_bundle(bundle.path, data / "parts", "onnxruntime", options, repeats=1)
        rows.append((row["image_auroc"], row["pixel_auroc"]))
    # The maps and the masks are both those of the frames.
    assert rows[0][0] == 1
    assert rows[0][1] > 0.98
    assert rows[1][0] < 0.9
    assert laid.manifest.fixture == checkpoint.fixture
    assert laid.manifest.provenance["train_fixture"].startswith(f"region {REGION_TEXT} of 320x240")


def test_the_smallest_match_comes_from_all_good_images(checkpoint: Checkpoint, data: Path) -> None:
    fixture = checkpoint.fixture
    assert fixture is not None
    qualities = []
    for path in sorted((data / "parts" / "train" / "good").iterdir()):
        qualities.append(fixture.find(read_image(path)).quality)
    assert fixture.quality == pytest.approx(fixture.with_quality_of(qualities).quality, abs=1e-3)
    assert fixture.quality < min(qualities)


def test_a_threshold_from_the_camera_is_that_of_laid_parts(
    data: Path, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build_bundle(checkpoint, data / "parts", tmp_path / "b", OPTIONS)
    good = tmp_path / "good"
    for number, pose in enumerate(poses(5, 2)):
        save(good / f"{number}.png", draw_part(*pose))
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--camera", str(good)]
    assert calibrate([*words, "--false-alarm-rate", "0.2"]) == 0
    with Detector(bundle.path, "onnxruntime") as detector:
        for pose in poses(4, 3):
            assert detector(spotted(*pose)[0]).name == "anomalous"
    # A part that is not found has no score, so that no threshold can come from it.
    save(good / "5.png", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    assert calibrate([*words, "--false-alarm-rate", "0.2"]) == 2
    assert "5.png: the part was not found" in capsys.readouterr().err


def test_an_image_without_its_part_counts_as_rejected_in_benchmarks(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bundle = build_bundle(checkpoint, data / "parts", tmp_path / "b", OPTIONS)
    parts = tmp_path / "parts"
    for kind, image in (("good", draw_part(3, 4, 5)), ("absent", np.full_like(draw_part(), 90))):
        save(parts / "test" / kind / "000.png", image)
    save(parts / "train" / "good" / "000.png", draw_part())
    row = evaluate_bundle(bundle.path, parts, "onnxruntime", EngineOptions(threads=1), repeats=1)
    assert (row["image_auroc"], row["missed"], row["false_alarms"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn": 5.0}, r"00\d\.png: the part .*; remove the image, or give a larger turn"),
        (
            {"region": "0,0,64,64"},
            r"still\.png: .*shows nothing to find a part by.*see --fixture",
        ),
        ({"region": "300,0,64,64"}, r"still\.png: .* not within 0 to 320; see --fixture"),
    ],
)
def test_a_fixture_that_does_not_find_the_good_images_is_refused(
    data: Path, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(FixtureError, match=message):
        trained(data, tmp_path / "toy.pt", plan(data, **changes))


def test_images_of_another_size_are_no_matter_of_turn_and_shift(data: Path, tmp_path: Path) -> None:
    save(tmp_path / "still.png", draw_part()[:200])
    wrong = FixturePlan(tmp_path / "still.png", FixtureOptions("80,20,160,160", 30.0, 15.0))
    with pytest.raises(FixtureError, match=r"00\d\.png: the image is 320x240") as refusal:
        trained(data, tmp_path / "toy.pt", wrong)
    assert "--fixture picture of 320x240" in str(refusal.value)
    assert "turn or shift" not in str(refusal.value)


def test_another_fixture_is_another_training(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.pt"
    first = trained(data, out, plan(data))
    second = trained(data, out, plan(data, turn=40.0))
    assert first.fixture is not None
    assert second.fixture is not None
    assert (first.fixture.turn, second.fixture.turn) == (30, 40)
    assert trained(data, out, None).fixture is None


def test_frames_that_the_graph_takes_are_not_laid(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = ExportOptions(false_alarm_rate=0.2, source=SourceFrame(HEIGHT, WIDTH))
    with pytest.raises(ExportError, match="--source: the graph prepares whole frames as they lie"):
        build_bundle(checkpoint, data / "parts", tmp_path / "b", options)


def _path(data: Path, fixture: str) -> str:
    return f"{data}/{fixture}" if fixture else "?region=80,40,160,160"


@pytest.mark.parametrize(
    ("fixture", "words", "message"),
    [
        ("still.png?region=80,40,160,160", ["--source", "320x240"], "--source: the graph prepares"),
        ("still.png", [], "region= is not X,Y,WIDTH,HEIGHT"),
        ("still.png?region=80,40", [], "region=80,40 is not X,Y,WIDTH,HEIGHT"),
        ("still.png?region=80,40,160,160&tilt=3", [], "option 'tilt' is unknown"),
        ("", [], "names no reference picture"),
        ("none.png?region=80,40,160,160", [], "none.png"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_trains(
    data: Path,
    tmp_path: Path,
    fixture: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--data", str(data / "parts"), "--method", "toy", "--out", str(tmp_path / "b")]
    try:
        code: Any = build.main([*flags, "--fixture", _path(data, fixture), *words])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_the_flag_is_a_picture_with_its_options() -> None:
    read = parse_fixture("my%20still.png?region=1,2,64,65&turn=180")
    assert read == FixturePlan(Path("my still.png"), FixtureOptions("1,2,64,65", 180.0))


def test_a_server_of_the_graph_is_told_about_the_fixture(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bundle = build_bundle(checkpoint, data / "parts", tmp_path / "b", OPTIONS)
    assert '"fixture"' in config_text(bundle, "toy", "onnxruntime", "fp32", 8, "fp32")
