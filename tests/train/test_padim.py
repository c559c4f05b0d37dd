from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx

from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.fused import fp32_islands
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit
from flawline.train.methods import padim
from flawline.train.methods.padim import RIDGE, PaDiM, PaDiMSettings, gaussians

pytestmark = pytest.mark.torch


def quiet(*_: Any) -> None:
    pass


def picture(size: int = 64, n: int = 2, seed: int = 0) -> Any:
    return torch.randint(
        0, 256, (n, size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def net(
    size: int = 64, channels: int = 20, stride: int = 8, fitted: bool = True, seed: int = 0
) -> PaDiM:
    geometry = Geometry("stretch", size, size)
    model = PaDiM(PaDiMSettings("resnet18", geometry, channels, stride)).eval()
    model.recorded_notes = []
    model.backbone.load("random", 0)
    if fitted:
        fit = Fit(list(picture(size, 12, 1).numpy()), 1, seed, notes=model.recorded_notes)
        assert model.fit(fit) == 1
    return model


@pytest.mark.parametrize(("size", "stride"), [(64, 4), (64, 8), (90, 8)])
def test_features_by_loops(size: int, stride: int) -> None:
    """The chosen channels of all levels, each cell of the grid reading the cell of the level that covers its corner."""
    model = net(size, 30, stride)
    image = picture(size, 1)
    with torch.inference_mode():
        got = model.features(image)[0]
        levels = [level[0] for level in model.backbone.extract(image)]
    rows, columns = model.grid
    for position in (0, 1, columns, rows * columns // 2 + 3, rows * columns - 1):
        y, x = divmod(position, columns)
        column = torch.cat(
            [
                level[:, y * level.shape[1] // rows, x * level.shape[2] // columns]
                for level in levels
            ]
        )
        torch.testing.assert_close(got[position], column[model.chosen])


def test_distance_and_map_by_numpy() -> None:
    """Mean and covariance by numpy's own functions, position by position."""
    model = net().double()
    with torch.inference_mode():
        good = model.features(picture(n=12, seed=1)).numpy()
        bad = model.features(picture(n=1))[0].numpy()
        score, heat = model(picture(n=1))
        largest = padim.smoothed_map(
            torch.from_numpy(mahalanobis(good, bad)).view(1, 8, 8), (64, 64), 4.0
        )
    assert float(score) == pytest.approx(float(heat.max()))
    np.testing.assert_allclose(heat.numpy(), largest.numpy(), rtol=1e-3)


def mahalanobis(good: Any, one: Any) -> Any:
    distances = []
    for position in range(good.shape[1]):
        covariance = np.cov(good[:, position].T) + RIDGE * np.eye(good.shape[2])
        offset = one[position] - good[:, position].mean(0)
        distances.append(np.sqrt(offset @ np.linalg.solve(covariance, offset)))
    return np.array(distances)


def test_gaussians_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from zero, where sums of squares would cancel."""
    features = np.random.default_rng(0).normal(300, 1, (45, 3, 5)).astype(np.float32)
    told: list[tuple[int, int]] = []
    mean, covariance = gaussians(features, lambda _, done, total: told.append((done, total)))
    assert told == [(16, 45), (32, 45), (45, 45)]
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-6)
    for position in range(3):
        expected = np.cov(features[:, position].T.astype(np.float64)) + RIDGE * np.eye(5)
        np.testing.assert_allclose(covariance[position], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "channels", "stride"),
    [(64, 20, 8), (64, 20, 4), (72, 40, 8), (90, 30, 8), (90, 12, 4), (64, 2, 8)],
)
def test_fused_equals_literal(size: int, channels: int, stride: int) -> None:
    model = net(size, channels, stride)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model = model.to(dtype)
        with torch.inference_mode():
            score, heat = model(picture(size))
            fused_score, fused_heat = model.fused()(picture(size))
        assert fused_heat.dtype == dtype
        scale = float(heat.std() + score.std())
        assert float((score - fused_score).abs().max()) < tolerance * scale
        assert float((heat - fused_heat).abs().max()) < tolerance * scale


@pytest.mark.parametrize(("size", "stride"), [(64, 8), (72, 4)])
def test_the_graph_is_lean_and_right_for_any_batch(size: int, stride: int, tmp_path: Path) -> None:
    model = net(size, stride=stride)
    data = onnx_from_module(model.fused(), model.geometry)
    kinds = node_types(data)
    assert kinds["MatMul"] == 1 + 2  # whitening, smoothing
    assert kinds["Conv"] == 15
    assert not set(kinds) & {"Einsum", "Loop", "Shape", "Expand", "ScatterND"}
    names = [node.name for node in onnx.load_model_from_string(data).graph.node]
    islands = tuple(f"{island}/" for island in fp32_islands(model.fused()))
    for island in islands:
        assert [name for name in names if name.startswith(island)], island
    halves = [n for n in names if not n.startswith(islands)]
    assert "/whiten/MatMul" in halves
    assert not [n for n in halves if "Reduce" in n]
    (tmp_path / "m.onnx").write_bytes(data)
    engine = OnnxRuntime(tmp_path / "m.onnx", (size, size), threads=1)
    image = picture(size, 3)
    with torch.inference_mode():
        score, heat = model(image)
    for n in (1, 3):
        got_score, got_map = engine(image[:n].numpy())
        np.testing.assert_allclose(got_score, score[:n], rtol=1e-4)
        np.testing.assert_allclose(got_map, heat[:n], rtol=1e-4, atol=1e-4)


def test_the_size_that_is_told_is_that_of_the_file() -> None:
    small, large = net(channels=10), net(channels=60)
    files = [len(onnx_from_module(m.fused(), m.geometry)) / 1e6 for m in (small, large)]
    told = [float(m.recorded_notes[0].split(": ")[1].split(" MB")[0]) for m in (small, large)]
    assert files[1] - files[0] == pytest.approx(told[1] - told[0], abs=0.1)
    assert large.recorded_notes == ["64 Gaussians of 60 channels: 0.9 MB of the exported file"]


def test_channels_are_drawn_by_the_seed_and_a_checkpoint_keeps_them(tmp_path: Path) -> None:
    first, again, other = net(), net(), net(seed=1)
    assert torch.equal(first.chosen, again.chosen)
    assert torch.equal(first.precision, again.precision)
    assert not torch.equal(first.chosen, other.chosen)
    save_checkpoint(tmp_path / "c.pt", other, {"a": "b"})
    loaded, _, state = load_checkpoint(tmp_path / "c.pt")
    assert state is None
    with torch.inference_mode():
        assert torch.equal(loaded(picture())[1], other(picture())[1])


def test_what_was_seen_is_nearer_than_what_was_not() -> None:
    model = net()
    with torch.inference_mode():
        seen, unseen = model(picture(n=12, seed=1))[0], model(picture(n=12, seed=2))[0]
    assert float(seen.max()) < float(unseen.min())


@pytest.mark.parametrize(
    ("channels", "stride", "message"),
    [
        (449, 8, "--channels 449 is not from 1 to 448"),
        (0, 8, "--channels 0"),
        (20, 5, "--stride 5 is neither 4"),
    ],
)
def test_wrong_settings_are_told(channels: int, stride: int, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        net(channels=channels, stride=stride, fitted=False)


def test_a_model_that_no_file_holds_is_refused_before_the_work() -> None:
    geometry = Geometry("stretch", 224, 224)
    with pytest.raises(
        TrainError, match=r"550 channels at 3136 positions are 3\.8 GB.*take fewer --channels"
    ):
        PaDiM(PaDiMSettings("wide_resnet50_2", geometry, 550, 4))


def test_an_unfitted_one_is_not_exported_and_too_few_minutes_are_told() -> None:
    model = net(fitted=False)
    with pytest.raises(
        TrainError, match=r"no Gaussians yet; train it first with python -m train\.fit"
    ):
        model.fused()
    with pytest.raises(
        TrainError, match=r"--max-minutes ended at features 1 of 4.*allow more minutes"
    ):
        model.fit(Fit(list(picture(n=4).numpy()), 1, deadline=0.0))
