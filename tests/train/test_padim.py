"""PaDiM against numpy, the size of its Gaussians, and what is exported of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import exported, fit_method, random_images, write_squares
from oracles import assert_fused_equals_literal, assert_onnxruntime_agrees

from flawline.export import build
from flawline.export.graphs.to_onnx import node_types
from flawline.runtime.bundle import read_bundle
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.train import TrainError
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.patches import smoothed_map
from flawline.train.method import Fit
from flawline.train.methods.padim import RIDGE, PaDiM, PaDiMSettings, gaussians

pytestmark = pytest.mark.torch


def unfitted(size: int = 64, channels: int = 20, stride: int = 8) -> PaDiM:
    geometry = Geometry("stretch", size, size)
    model = PaDiM(PaDiMSettings("resnet18", geometry, channels, stride)).eval()
    model.backbone.load("random", 0)
    return model


def training_images(size: int = 64) -> Any:
    return random_images(size, 12, 1)


def fitted(size: int = 64, channels: int = 20, stride: int = 8, seed: int = 0) -> PaDiM:
    """Fitted on twelve images of noise."""
    model = unfitted(size, channels, stride)
    fit_method(model, training_images(size).numpy(), seed=seed)
    return model


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize(("size", "stride"), [(64, 4), (64, 8), (90, 8)])
def test_features_by_loops(size: int, stride: int) -> None:
    """Each cell of the grid reads the cell of every level that covers its corner."""
    model = fitted(size, 30, stride)
    image = random_images(size, 1)
    with torch.inference_mode():
        got = model.features(image)[0]
        levels = [level[0] for level in model.backbone.extract(image)]
    rows, columns = model.grid
    for position in (0, 1, columns, rows * columns // 2 + 3, rows * columns - 1):
        y, x = divmod(position, columns)
        cells = []
        for level in levels:
            height, width = level.shape[1:]
            cells.append(level[:, y * height // rows, x * width // columns])
        torch.testing.assert_close(got[position], torch.cat(cells)[model.chosen])


def mahalanobis(good: Any, one: Any) -> Any:
    distances = []
    for position in range(good.shape[1]):
        covariance = np.cov(good[:, position].T) + RIDGE * np.eye(good.shape[2])
        offset = one[position] - good[:, position].mean(0)
        distances.append(np.sqrt(offset @ np.linalg.solve(covariance, offset)))
    return np.array(distances)


def test_distance_and_map_by_numpy() -> None:
    """Mean and covariance by numpy's own functions, position by position."""
    model = fitted().double()
    image = random_images(count=1)
    with torch.inference_mode():
        good = model.features(training_images()).numpy()
        bad = model.features(image)[0].numpy()
        score, anomaly_map = model(image)
    distance = torch.from_numpy(mahalanobis(good, bad)).view(1, 8, 8)
    expected = smoothed_map(distance, (64, 64), 4.0)
    assert float(score) == pytest.approx(float(anomaly_map.max()))
    np.testing.assert_allclose(anomaly_map.numpy(), expected.numpy(), rtol=1e-3)


def test_gaussians_in_batches_are_those_of_the_whole() -> None:
    """Far from zero, where sums of squares would cancel."""
    features = np.random.default_rng(0).normal(300, 1, (45, 3, 5)).astype(np.float32)
    reported: list[tuple[str, int, int]] = []
    mean, covariance = gaussians(features, lambda *now: reported.append(now))
    assert reported == [("covariances", done, 45) for done in (16, 32, 45)]
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-6)
    for position in range(3):
        expected = np.cov(features[:, position].T.astype(np.float64)) + RIDGE * np.eye(5)
        np.testing.assert_allclose(covariance[position], expected, rtol=1e-5, atol=1e-6)


def test_training_images_score_lower_than_others() -> None:
    model = fitted()
    with torch.inference_mode():
        seen = model(training_images())[0]
        unseen = model(random_images(count=12, seed=2))[0]
    assert float(seen.max()) < float(unseen.min())


def test_the_seed_draws_the_channels() -> None:
    assert not torch.equal(fitted().chosen, fitted(seed=1).chosen)


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(
    ("size", "channels", "stride"),
    [(64, 20, 8), (64, 20, 4), (72, 40, 8), (90, 30, 8), (90, 12, 4), (64, 2, 8)],
)
def test_fused_equals_literal(size: int, channels: int, stride: int) -> None:
    """Grids with and without an integer factor, and so few channels that a level is not read."""
    assert_fused_equals_literal(fitted(size, channels, stride), random_images(size))


@pytest.mark.parametrize(("size", "stride"), [(64, 8), (72, 4)])
def test_the_graph_whitens_in_one_product_outside_of_fp32(
    size: int, stride: int, tmp_path: Path
) -> None:
    model = fitted(size, stride=stride)
    graph = exported(model)
    kinds = node_types(graph)
    assert kinds["MatMul"] == 1 + 2  # whitening, smoothing
    assert kinds["Conv"] == 15
    assert not set(kinds) & {"Einsum", "Loop", "Shape", "Expand", "ScatterND"}
    islands = fp32_islands(model.fused())
    names = [node.name for node in onnx.load_model_from_string(graph).graph.node]
    halves = [name for name in names if not islands_of(name, islands)]
    assert "/whiten/MatMul" in halves
    assert not [name for name in halves if "Reduce" in name]
    assert_onnxruntime_agrees(model, random_images(size, 3), tmp_path / "m.onnx")


def test_the_reported_size_is_that_of_the_file() -> None:
    files = []
    notes = []
    for channels in (10, 60):
        model = unfitted(channels=channels)
        notes.append(fit_method(model, training_images().numpy()).notes)
        files.append(len(exported(model)) / 1e6)
    assert notes[1] == ["64 Gaussians of 60 channels: 0.9 MB of the exported file"]
    reported = [float(note[0].split(": ")[1].split(" MB")[0]) for note in notes]
    assert files[1] - files[0] == pytest.approx(reported[1] - reported[0], abs=0.1)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("channels", "stride", "message"),
    [
        (449, 8, "--channels 449 is not from 1 to 448"),
        (0, 8, "--channels 0"),
        (20, 5, "--stride 5 is neither 4"),
    ],
)
def test_wrong_settings_are_one_line(channels: int, stride: int, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        unfitted(channels=channels, stride=stride)


def test_a_model_too_large_for_a_file_is_refused_before_training() -> None:
    settings = PaDiMSettings("wide_resnet50_2", Geometry("stretch", 224, 224), 550, 4)
    message = r"550 channels at 3136 positions are 3\.8 GB.*take fewer --channels"
    with pytest.raises(TrainError, match=message):
        PaDiM(settings)


def test_an_unfitted_one_is_not_exported() -> None:
    message = r"no Gaussians yet; train it first: .*flawline train --data DATA"
    with pytest.raises(TrainError, match=message):
        unfitted().fused()


def test_too_few_minutes_are_an_error() -> None:
    with pytest.raises(TrainError, match=r"--max-minutes ended at features 1 of 4"):
        unfitted().fit(Fit(list(random_images(count=4).numpy()), 1, deadline=0.0))


# ---------------------------------------------------------------- the whole line


def test_images_to_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_squares(tmp_path / "squares")
    # FP16 is not accurate enough for covariances of 17 random images.
    flags = ["--weights", "random", "--size", "64", "--channels", "16", "--precision", "fp32"]
    folders = ["--data", str(data), "--out", str(tmp_path / "b")]
    checkpoint = ["--save-checkpoint", str(tmp_path / "c.pt")]
    assert build.main(["--method", "padim", *folders, *checkpoint, *flags]) == 0
    log = capsys.readouterr().err
    assert "64 Gaussians of 16 channels" in log
    assert "0 flipped decisions" in log
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.method == "padim"
    assert bundle.golden().scores.max() > bundle.calibration.threshold


def test_a_checkpoint_with_the_old_name_of_the_matrices_is_read() -> None:
    model = fitted()
    state = dict(model.state_dict())
    state["precision"] = state.pop("inverse_covariance")
    other = unfitted()
    other.load_state_dict(state)
    assert torch.equal(other.inverse_covariance, model.inverse_covariance)
    assert "precision" in state
