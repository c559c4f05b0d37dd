"""Teaching on the box: variants of a graph, false rejects, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, fit_method

from flawline.export.assemble import manifest_of
from flawline.export.exported import export_graph, for_source
from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.log import AUDIT_LOG
from flawline.runtime.bundle import Bundle, read_bundle, write_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.drift.learn import learn_reference
from flawline.runtime.engines import EngineError
from flawline.runtime.golden import Golden
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.image import Geometry, Image
from flawline.runtime.inspected_area import InspectedArea
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.teach import main
from flawline.runtime.teaching import new_bundle
from flawline.runtime.teaching.coreset import distances_at_start, greedy_k_centre, project
from flawline.runtime.teaching.torch_random import TorchRandom
from flawline.runtime.threshold import set_threshold
from flawline.runtime.tiles import Tiling
from flawline.runtime.trained_images import content_hash
from flawline.train.blocks import coreset, memory_bank
from flawline.train.judging import evaluate, map_peaks
from flawline.train.method import Method
from flawline.train.methods.patchcore import PatchCore, PatchCoreSettings
from flawline.train.progress import no_progress

pytestmark = pytest.mark.torch
SIZE = 64
FOLDS = ["--folds", "2"]


def noise(count: int, seed: int, level: int = 120) -> list[Image]:
    """Grey noise around a level, uint8 [64, 64, 3] each."""
    rng = np.random.default_rng(seed)
    shape = (count, SIZE, SIZE, 3)
    return list(rng.normal(level, 12, shape).clip(0, 255).astype(np.uint8))


def write(folder: Path, images: list[Image]) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{number:02d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def patchcore(images: list[Image], **options: Any) -> PatchCore:
    geometry = Geometry("stretch", SIZE, SIZE)
    settings = {"level_dim": 48, "target_dim": 48, "coreset": 0.3, **options}
    method = PatchCore(PatchCoreSettings("resnet18", geometry, **settings))
    method.backbone.load("random", 0)
    fit_method(method, images)
    return method.eval()


def bundle_of(
    method: Method,
    images: list[Image],
    path: Path,
    outputs: tuple[str, ...] | None = None,
    batch: int | None = None,
    **changes: Any,
) -> Bundle:
    """Write a bundle of a fitted method; `images` set its threshold and are its golden ones."""
    exported = export_graph(method, outputs, batch)
    source = changes.get("source")
    if source is not None:
        exported = for_source(exported, source, method.geometry)
    scores, maps = evaluate(method, images)
    if exported.outputs == ("score",):
        maps = maps[:, :0, :0]
    good = GoodScores([Path(str(number)) for number in range(len(images))], scores, map_peaks(maps))
    manifest = replace(manifest_of(method, exported, good), **changes)
    golden = Golden(np.stack(images[:1]), scores[:1], maps[:1])
    if source is not None:
        golden = Golden(np.stack(images[:1])[..., 0], scores[:1], maps[:1])
    calibration = set_threshold(scores, None, manifest.score_tolerance)
    return write_bundle(path, manifest, calibration, {"fp32": exported.model}, golden)


def scores(bundle: Bundle, images: list[Image]) -> np.ndarray:
    with Detector(bundle, "onnxruntime") as detector:
        return np.array([detector(image).score for image in images])


def several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search of the bank have parts of 64 rows."""
    limit = 4 * memory_bank.LARGEST_BATCH * 64 * memory_bank.BLOCK
    monkeypatch.setattr(memory_bank, "LARGEST_TENSOR", limit)


# Name -> settings of PatchCore, and fields of the bundle.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "several parts of a search that adds its levels": (
        {"reweight": 3, "target_dim": 47, "level_dim": 47},
        {},
    ),
    "the score alone, one image per call": (
        {"reweight": 4, "coreset": 70.0},
        {"outputs": ("score",), "batch": 1},
    ),
    "a camera's frames": ({}, {"source": SourceFrame(SIZE, SIZE, "mono")}),
    "principal components": ({"components": 20}, {}),
    "principal components of features with taps of both levels": (
        {"components": 40, "target_dim": 47, "level_dim": 47, "reweight": 3},
        {},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_a_graph_becomes_that_of_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("several parts"):
        several_parts(monkeypatch)
    settings, fields = VARIANTS[name]
    before = bundle_of(
        patchcore(board_images(SIZE, 6), **settings), noise(3, 9), tmp_path / "old", **fields
    )
    images = noise(6, 1)
    if "source" in fields:
        images = [cv2.cvtColor(image[..., 0], cv2.COLOR_GRAY2BGR) for image in images]
    folder = write(tmp_path / "good", images)
    words = [str(before.path), "--source", str(folder), "--out", str(tmp_path / "new"), *FOLDS]
    assert main(words) == 0
    taught = read_bundle(tmp_path / "new")
    expected, _ = evaluate(patchcore(images, **settings), noise(3, 2, 150))
    judged = noise(3, 2, 150)
    if "source" in fields:
        judged = [image[..., 0] for image in judged]
        expected, _ = evaluate(
            patchcore(images, **settings),
            [cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) for image in judged],
        )
    np.testing.assert_allclose(scores(taught, judged), expected, rtol=2e-4)


def test_tiles_and_an_inspected_area_are_taught_as_the_bundle_has_them(tmp_path: Path) -> None:
    mask = np.ones((80, 200), bool)
    mask[:20] = False
    parts = {"tiles": Tiling(2, 1), "inspected_area": InspectedArea.of_mask(mask)}
    images = [np.hstack([image] * 3)[:, :180] for image in noise(6, 1)]
    images = [cv2.resize(image, (200, 80)) for image in images]
    before = bundle_of(patchcore(board_images(SIZE, 4)), noise(3, 9), tmp_path / "old", **parts)
    folder = write(tmp_path / "good", images)
    words = [str(before.path), "--source", str(folder), "--out", str(tmp_path / "new"), *FOLDS]
    assert main(words) == 0
    taught = read_bundle(tmp_path / "new")
    assert taught.manifest.tiles == Tiling(2, 1)
    graph_input = taught.manifest.graph_input
    inputs = []
    for image in images:
        prepared = graph_input.of_frame(image)
        assert graph_input.grid is not None
        inputs += [np.ascontiguousarray(tile) for tile in graph_input.grid.cut(prepared)]
    reference = patchcore(inputs)
    other = cv2.resize(np.hstack(noise(3, 5)), (200, 80))
    tiles = list(graph_input.grid.cut(graph_input.of_frame(other)))
    expected, _ = evaluate(reference, tiles)
    assert scores(taught, [other])[0] == pytest.approx(float(expected.max()), rel=2e-4)


# ---------------------------------------------------------------- false rejects


@pytest.fixture(scope="module")
def taught_bank(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose bank knows noise around 120, with two hashes of its training."""
    path = tmp_path_factory.mktemp("bank") / "bundle"
    return bundle_of(patchcore(noise(6, 1)), noise(6, 2), path, trained_images=("0" * 16, "1" * 16))


def append(bundle: Bundle, folder: Path, good: list[Image], *flags: str) -> int:
    rejected = write(folder / "rejected", noise(4, 3, 180))
    good_parts = write(folder / "good", good)
    words = [str(bundle.path), "--append", str(rejected), "--good", str(good_parts)]
    return main([*words, "--out", str(folder / "new"), *flags])


def test_false_rejects_are_added_to_the_bank_and_good_parts_set_the_thresholds(
    taught_bank: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = [*noise(10, 4), *noise(10, 5, 180)]
    rates = ["--false-alarm-rate", "0.05", "--review-rate", "0.3"]
    assert append(taught_bank, tmp_path, mixed, *rates) == 0
    logged = capsys.readouterr().err
    assert "the bundle rejects 4 of the 4 false rejects" in logged
    assert "bank: 115 rows and 76 of 256 new patches (limit 230)" in logged
    new = read_bundle(tmp_path / "new")
    like_rejected = noise(5, 6, 180)
    before = scores(taught_bank, like_rejected)
    after = scores(new, like_rejected)
    assert (before > taught_bank.calibration.threshold).all()
    assert (after < before).all()
    assert (after <= new.calibration.threshold).all()
    assert new.calibration.good_images == 20
    assert new.calibration.review is not None
    assert new.manifest.folds == 0
    # Of the good parts, which are a fair sample of later ones, and not of the false rejects.
    drift = learn_reference(mixed, scores(new, mixed), new.manifest.graph_input)
    assert drift is not None
    assert new.drift is not None
    assert new.drift.ranges["brightness"] == drift.ranges["brightness"]
    hashes = {content_hash(path) for path in (tmp_path / "rejected").iterdir()}
    assert set(new.manifest.trained_images) == hashes | {"0" * 16, "1" * 16}
    assert [entry.what for entry in check_log(new.path / AUDIT_LOG).entries] == ["teach"]
    defect = noise(1, 7)[0]
    defect[20:40, 20:40] = 255
    assert scores(new, [defect])[0] > new.calibration.threshold


def test_false_rejects_are_added_along_the_directions_of_the_bank(tmp_path: Path) -> None:
    trained = patchcore(noise(6, 1), components=10)
    known = bundle_of(trained, noise(6, 2), tmp_path / "known")
    flags = ("--false-alarm-rate", "0.2")
    assert append(known, tmp_path, noise(20, 4), *flags) == 0
    new = read_bundle(tmp_path / "new")
    rejected = noise(4, 3, 180)
    assert (scores(new, rejected) < scores(known, rejected)).all()
    # The rows that were there are compared as before.
    good = noise(5, 5)
    assert (scores(new, good) <= scores(known, good) * (1 + 1e-5)).all()


def test_a_bank_has_at_most_as_many_rows_as_the_limit(
    taught_bank: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert append(taught_bank, tmp_path, noise(10, 4), "--bank-limit", "130") == 0
    assert "bank: 115 rows and 15 of 256 new patches (limit 130)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("good", "flags", "message"),
    [
        (noise(10, 4), ["--bank-limit", "115"], "the bank has 115 rows already"),
        (noise(4, 3, 180), [], "4 of 4 good images are among the false rejects"),
        (noise(10, 4), ["--false-alarm-rate", "0.01"], "needs 99 good images, there are 10"),
    ],
)
def test_what_would_make_a_wrong_threshold_is_refused(
    taught_bank: Bundle,
    tmp_path: Path,
    good: list[Image],
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert append(taught_bank, tmp_path, good, *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_painted_pictures_are_no_false_rejects(
    taught_bank: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painted = [np.pad(image, ((0, 20), (0, 0), (0, 0))) for image in noise(4, 3, 180)]
    rejected = write(tmp_path / "rejected", painted)
    good = write(tmp_path / "good", noise(10, 4))
    words = ["--append", str(rejected), "--good", str(good), "--out", str(tmp_path / "new")]
    assert main([str(taught_bank.path), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the false rejects are 64x84, and the good pictures are 64x64" in error
    assert "frames=rejected&paint=0" in error
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- refusals and the source


def source_error(
    bundle: Path, source: Path | str, out: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> str:
    assert main([str(bundle), "--source", str(source), "--out", str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not out.exists()
    return error.splitlines()[-1]


def test_bundles_that_cannot_be_taught_say_what_can_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "good", noise(5, 1))
    older = write_tiny_bundle(tmp_path / "older", method="padim")
    message = source_error(older.path, folder, tmp_path / "new", capsys)
    assert "does not say where its features are" in message
    words = ["--append", str(folder), "--good", str(folder), "--out", str(tmp_path / "new")]
    assert main([str(older.path), *words]) == 2
    assert "padim learns statistics of all pictures" in capsys.readouterr().err


def test_without_onnx_the_pip_line_is_printed(
    taught_bank: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "flawline.runtime.teaching.graph", raising=False)
    message = source_error(taught_bank.path, tmp_path, tmp_path / "new", capsys)
    assert "needs onnx; run: pip install" in message or "-m pip install" in message
    assert "[teach]" in message


def test_pictures_are_checked_before_anything_is_learned(
    taught_bank: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    few = write(tmp_path / "few", noise(4, 1))
    assert "only 4 good images" in source_error(taught_bank.path, few, out, capsys)
    rate = ["--false-alarm-rate", "0.01"]
    many = write(tmp_path / "many", noise(6, 1))
    assert "needs 99 good images" in source_error(taught_bank.path, many, out, capsys, *rate)
    equal = write(tmp_path / "equal", noise(1, 1) * 5)
    assert "copies of one image" in source_error(taught_bank.path, equal, out, capsys)
    (many / "03.png").write_bytes(b"")
    assert "03.png: the file is empty" in source_error(taught_bank.path, many, out, capsys)
    message = source_error(taught_bank.path, "synthetic://", out, capsys)
    assert "give the number of pictures, such as --images 200" in message
    assert "is not a bundle; choose another --out" in source_error_at(
        taught_bank.path, few, tmp_path / "few", capsys
    )


def test_folders_of_defective_parts_are_refused(
    taught_bank: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "test"
    write(folder / "good", noise(6, 1))
    write(folder / "scratch", noise(1, 2))
    rejected = write(tmp_path / "false-rejects", noise(2, 3))
    message = "scratch shows that not every image here is a good part"
    new = tmp_path / "new"
    assert message in source_error(taught_bank.path, folder, new, capsys)
    words = ["--append", str(rejected), "--good", str(folder), "--out", str(new)]
    assert main([str(taught_bank.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_pictures_of_different_sizes_are_noted(
    taught_bank: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "mixed", [*noise(6, 1), np.zeros((200, 90, 3), np.uint8)])
    assert (
        main([str(taught_bank.path), "--source", str(folder), "--out", str(tmp_path / "new")]) == 0
    )
    assert "the pictures differ in size" in capsys.readouterr().err


def source_error_at(
    bundle: Path, source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    assert main([str(bundle), "--source", str(source), "--out", str(out)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_frames_of_a_camera_have_no_files(taught_bank: Bundle, tmp_path: Path) -> None:
    words = ["--source", "synthetic://?fps=100", "--images", "6", *FOLDS]
    assert main([str(taught_bank.path), *words, "--out", str(tmp_path / "new")]) == 0
    manifest = read_bundle(tmp_path / "new").manifest
    assert manifest.trained_images == ()
    assert manifest.provenance["train_good_images"] == "6 taught, 0 held out"


def test_a_bundle_that_fails_its_self_test_replaces_nothing(
    taught_bank: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise EngineError("the self-test failed")

    monkeypatch.setattr(new_bundle, "open_engine", fails)
    folder = write(tmp_path / "good", noise(6, 1))
    old = write_tiny_bundle(tmp_path / "out")
    words = [str(taught_bank.path), "--source", str(folder), "--out", str(old.path), *FOLDS]
    assert main(words) == 2
    assert "the self-test failed" in capsys.readouterr().err
    assert read_bundle(old.path).sha256 == old.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "out"]


def test_a_graph_that_is_not_what_was_learned_is_refused(
    taught_bank: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flawline.runtime.teaching import patchcore as module

    def wrong(bank: Any, directions: Any) -> Callable[[Any], Any]:
        return lambda features: np.zeros(len(features))

    monkeypatch.setattr(module, "_Literal", wrong)
    folder = write(tmp_path / "good", noise(6, 1))
    message = source_error(taught_bank.path, folder, tmp_path / "new", capsys, *FOLDS)
    assert "the taught graph's distances are off by" in message


def test_features_that_are_not_those_of_the_whole_graph_are_noticed(
    taught_bank: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flawline.runtime.teaching.patchcore import PatchCoreTeacher

    # The features are then without the mean that the graph subtracts.
    monkeypatch.setattr(PatchCoreTeacher, "raw", lambda teacher: {})
    folder = write(tmp_path / "good", noise(6, 1))
    message = source_error(taught_bank.path, folder, tmp_path / "new", capsys, *FOLDS)
    assert "the taught graph's scores are off by" in message


# ---------------------------------------------------------------- numbers as in torch


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_random_numbers_are_those_of_torch(seed: int) -> None:
    for count in (16, 17, 31, 1000):
        generator = torch.Generator().manual_seed(seed)
        expected = torch.randn(count, generator=generator).numpy()
        np.testing.assert_allclose(TorchRandom(seed).normal(count), expected, atol=3e-6)
    for items in (1, 2, 9, 10, 5000):
        generator = torch.Generator().manual_seed(seed)
        expected = torch.randperm(items, generator=generator)[:10].tolist()
        assert TorchRandom(seed).first_of_permutation(items, 10) == expected


def test_the_coreset_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(2, 1, (3000, 160)) * rng.uniform(0.1, 3, 160)).astype(np.float32)
    theirs = coreset.project(features, 3)
    ours = project(features, 3)
    ours -= ours.mean(0)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
    expected = coreset.greedy_k_centre(theirs, 400, 3, no_progress).tolist()
    monkeypatch.setattr("flawline.runtime.teaching.coreset.POOL", 50)
    monkeypatch.setattr("flawline.runtime.teaching.coreset.CHUNK", 999)
    assert greedy_k_centre(ours, 400, distances_at_start(ours, 3)).tolist() == expected
