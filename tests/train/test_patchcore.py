"""PatchCore against the paper's formulas, the size of its bank, and what is exported of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import exported, fit_method, random_images, write_squares
from oracles import (
    assert_equal_state,
    assert_fused_equals_literal,
    assert_onnxruntime_agrees,
)

from flawline.export import build
from flawline.export.graphs.to_onnx import node_types
from flawline.runtime import large_array
from flawline.runtime.bundle import read_bundle
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.train import TrainError
from flawline.train.blocks import bank_budget, memory_bank
from flawline.train.blocks.bank_budget import bytes_of_row
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.memory_bank import BLOCK
from flawline.train.blocks.patches import smoothed_map
from flawline.train.method import Fit
from flawline.train.methods.patchcore import PatchCore, PatchCoreSettings

pytestmark = pytest.mark.torch
# What the graph is made of without re-weighting. A new kind of node is a decision, not an accident.
NODES = {
    "Add", "ArgMin", "Cast", "Concat", "Constant", "Conv", "Gather", "GatherElements", "Gemm",
    "Identity", "MatMul", "MaxPool", "Mul", "ReduceL2", "ReduceMax", "ReduceMin", "Relu", "Reshape",
    "Resize", "Sub", "Transpose",
}  # fmt: skip


def unfitted(
    backbone: str = "resnet18", size: int = 64, level: int = 48, target: int = 48, **options: Any
) -> PatchCore:
    geometry = Geometry("stretch", size, size)
    options = {"coreset": 0.5, **options}
    model = PatchCore(PatchCoreSettings(backbone, geometry, level, target, **options)).eval()
    model.backbone.load("random", 0)
    return model


def fitted(size: int = 64, **options: Any) -> PatchCore:
    """Fitted on six images of noise, which have 64 patches each at 64 pixels."""
    model = unfitted(size=size, **options)
    fit_method(model, random_images(size, 6, 1).numpy())
    return model


@pytest.mark.parametrize("reweight", [0, 4])
def test_scores_by_loops(reweight: int) -> None:
    """Nearest row, largest patch, and the paper's weight from that row's neighbours, in numpy."""
    model = fitted(reweight=reweight, coreset=40).double()
    with torch.inference_mode():
        score, anomaly_map = model(random_images())
        features = model.features(random_images()).numpy()
    rows = model.bank.vectors.numpy()
    for i in range(2):
        every = np.linalg.norm(features[i].reshape(-1, 1, 48) - rows, axis=2)
        nearest = every.min(1)
        worst = int(nearest.argmax())
        weight = 1.0
        if reweight:
            star = int(every[worst].argmin())
            near = np.argsort(np.linalg.norm(rows - rows[star], axis=1))[:reweight]
            assert near[0] == star
            exponentials = np.exp(every[worst][near])
            weight = 1 - exponentials[0] / exponentials.sum()
            assert 0 < weight < 1
        assert float(score[i]) == pytest.approx(weight * nearest[worst], rel=1e-6)
        expected = smoothed_map(torch.from_numpy(nearest).view(1, 8, 8), (64, 64), 4.0)[0]
        np.testing.assert_allclose(anomaly_map[i].numpy(), expected.numpy(), rtol=1e-6)


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(
    ("backbone", "size", "level", "target", "options"),
    [
        ("resnet18", 64, 256, 256, {}),
        ("resnet18", 64, 384, 384, {"reweight": 5}),
        ("resnet18", 64, 1024, 1024, {}),
        # An odd size, and an odd dimension, whose rows have taps of both levels.
        ("resnet18", 72, 100, 71, {"reweight": 3}),
        ("resnet18", 90, 384, 384, {"coreset": 30}),
        ("resnet18", 64, 384, 384, {"components": 20}),
        # Features with taps of both levels, all of their components, and re-weighting.
        ("resnet18", 72, 100, 71, {"components": 71, "reweight": 3}),
        ("resnet50", 64, 1024, 1024, {}),
    ],
)
def test_fused_equals_literal(
    backbone: str, size: int, level: int, target: int, options: Any
) -> None:
    model = fitted(size, backbone=backbone, level=level, target=target, **options)
    assert_fused_equals_literal(model, random_images(size))


@pytest.mark.parametrize(("size", "reweight"), [(64, 0), (72, 3)])
def test_onnx_runtime_agrees_with_torch_for_any_batch(
    size: int, reweight: int, tmp_path: Path
) -> None:
    model = fitted(size, reweight=reweight)
    assert_onnxruntime_agrees(model, random_images(size, 3), tmp_path / "m.onnx")


def test_the_graph_stores_the_bank_once_and_has_no_other_nodes() -> None:
    for reweight in (0, 4):
        graph = exported(fitted(level=384, target=384, coreset=200, reweight=reweight))
        tensors = onnx.load_model_from_string(graph).graph.initializer
        assert [list(tensor.dims) for tensor in tensors].count([4 * BLOCK, 384]) == 1
        kinds = node_types(graph)
        assert kinds["Conv"] == 15 + 2
        assert (kinds["Gemm"], kinds["ReduceMin"]) == (1, 1)
        assert "TopK" not in kinds
        if not reweight:
            assert set(kinds) <= NODES, set(kinds) - NODES
            assert kinds["MatMul"] == 2  # the smoothing
            assert kinds["Transpose"] == 2  # the image, and the features once


@pytest.mark.parametrize(("reweight", "parts"), [(0, 1), (3, 1), (3, 3)])
def test_fp32_holds_distances_and_not_the_product(
    reweight: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts > 1:
        limit = 4 * memory_bank.LARGEST_BATCH * 64 * BLOCK
        monkeypatch.setattr(memory_bank, "LARGEST_TENSOR", limit)
    model = fitted(coreset=150, reweight=reweight)
    islands = fp32_islands(model.fused())
    nodes = onnx.load_model_from_string(exported(model)).graph.node
    for island in islands:
        assert any(islands_of(node.name, [island]) for node in nodes), island
    halves = [node.op_type for node in nodes if not islands_of(node.name, islands)]
    assert {"Conv", "Gemm", "ReduceMin"} <= set(halves)
    assert halves.count("Gemm") == parts
    assert not set(halves) & {"ReduceL2", "ReduceMax", "Softmax", "MatMul", "Where", "Less", "Min"}


def half(values: Any) -> Any:
    return values.astype(np.float16).astype(np.float32)


def test_fp16_needs_the_distance_to_the_winner_evaluated_again() -> None:
    """For queries from the bank, the root of |x|^2 - 2xm + |m|^2 in FP16 is far from 0."""
    model = fitted(level=384, target=384, coreset=0.3)
    search: Any = model.fused().nearest.search[0]
    rows = half(search.rows.numpy())
    squares = half(search.squares.numpy())
    with torch.inference_mode():
        features = model.features(random_images(count=4, seed=9)).flatten(0, 2)
    features = (features - model.bank.vectors.mean(0)).numpy()
    typical = float(np.median(np.linalg.norm(features[:, None] - rows[None], axis=2).min(1)))

    def value(x: Any) -> Any:
        """What an FP16 product stores whose sums are FP32."""
        return half(-2 * half(x) @ rows.T + squares)

    naive = np.sqrt(np.maximum(0, half(half((rows**2).sum(1)) + value(rows).min(1))))
    exact = np.linalg.norm(rows - rows[value(rows).argmin(1)], axis=1)
    assert naive.max() > 0.1 * typical
    assert exact.max() < 1e-3 * typical
    # For other queries the winner of the rounded product is about as near as the nearest row.
    nearest = np.linalg.norm(features[:, None] - search.rows.numpy()[None], axis=2).min(1)
    evaluated = np.linalg.norm(half(features) - rows[value(features).argmin(1)], axis=1)
    assert np.abs(evaluated / nearest - 1).max() < 5e-3


def test_an_unfitted_one_is_not_exported() -> None:
    with pytest.raises(TrainError, match="no bank yet; train it first"):
        unfitted().fused()


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"coreset": 0.25}, 96),
        ({"coreset": 50}, 50),
        ({"coreset": 1}, 384),
        ({"coreset": 5000}, 384),
        ({"coreset": None}, 3),
        ({"coreset": None, "budget_mb": 0.0098}, 50),
        ({"coreset": 20, "budget_mb": 0.0098}, 20),
    ],
)
def test_the_bank_has_the_size_that_was_asked_for(options: Any, rows: int) -> None:
    model = unfitted(**options)
    notes = fit_method(model, random_images(64, 6, 1).numpy()).notes
    assert len(model.bank.vectors) == rows
    assert notes[0].startswith(f"bank: {rows} of 384 patches (")
    with torch.inference_mode():
        features = model.features(random_images(count=6, seed=1)).flatten(0, 2)
    torch.testing.assert_close(features[model.bank.origin], model.bank.vectors)


def test_a_time_budget_is_asked_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_budget, "search_milliseconds", lambda rows, *_: 0.5 + 0.002 * rows)
    for budget, reason in ((1000, "all 384 patches"), (1.0, "--budget-ms 1")):
        model = unfitted(coreset=None, budget_ms=budget)
        note = fit_method(model, random_images(64, 6, 1).numpy()).notes[0]
        assert f"({reason})" in note
        assert "measured on this machine at " in note
        assert (len(model.bank.vectors) < 384) == (budget == 1.0)


def test_the_seed_chooses_the_rows() -> None:
    images = random_images(count=6, seed=1).numpy()
    origins = []
    for seed in (0, 1):
        model = unfitted(target=256, level=256)  # more dimensions than are compared
        fit_method(model, images, seed=seed)
        origins.append(model.bank.origin)
    assert not torch.equal(origins[0], origins[1])


def test_features_that_are_mapped_from_disk_give_the_same_bank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_memory = fitted(reweight=3)
    monkeypatch.setattr(large_array, "MEMORY_MAP_ABOVE", 0)
    assert_equal_state(fitted(reweight=3), in_memory)


def test_a_row_takes_as_many_bytes_of_the_file_as_reported() -> None:
    sizes = [len(exported(fitted(coreset=rows, reweight=5))) for rows in (64, 320)]
    assert sizes[1] - sizes[0] == pytest.approx(256 * bytes_of_row(48, 5), rel=0.01)


def test_distances_are_measured_in_the_principal_components() -> None:
    images = random_images(64, 6, 1)
    model = fitted(components=5, coreset=1.0)
    all_dimensions = unfitted()
    patches = all_dimensions.patches(images).flatten(0, 2).double()
    _, _, right = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    expected = torch.cdist(patches @ right[:5].t(), patches @ right[:5].t())
    components = model.features(images).flatten(0, 2).double()
    assert components.shape[1] == model.bank.vectors.shape[1] == 5
    assert torch.cdist(components, components) == pytest.approx(expected, abs=2e-4)


def test_all_principal_components_give_the_published_scores() -> None:
    image = random_images(64, 2, 5)
    # Every patch is a row, as the coreset is chosen at random from projections.
    published = fitted(coreset=1.0)
    rotated = fitted(coreset=1.0, components=48)
    for ours, theirs in zip(rotated(image), published(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_graph_compares_principal_components_only() -> None:
    graph = exported(fitted(level=384, target=384, components=16, coreset=200))
    kinds = node_types(graph)
    assert kinds["Conv"] == 15 + 4
    tensors = onnx.load_model_from_string(graph).graph.initializer
    assert [4 * BLOCK, 16] in [list(tensor.dims) for tensor in tensors]


def test_too_few_minutes_are_an_error_without_a_bank() -> None:
    model = unfitted()
    with pytest.raises(TrainError, match=r"--max-minutes ended at features 1 of 4"):
        model.fit(Fit(list(random_images(count=4).numpy()), 1, deadline=0.0))
    assert not len(model.bank.vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset": 0.0}, "--coreset 0 is not above 0"),
        ({"coreset": 2.5}, "--coreset 2.5 is neither a fraction"),
        ({"budget_ms": -1.0}, "--budget-ms -1 is not above 0"),
        ({"budget_mb": 0.0}, "--budget-mb 0 is not above 0"),
        ({"target": 0}, "--target-dim 0 is not above 0"),
        ({"components": 49}, "or 1 to 48, the dimensions of the features"),
        ({"components": -1}, "--components -1 is not a number of principal components"),
        ({"reweight": 1}, "--reweight 1: a row is its own first neighbour"),
        ({"reweight": 9, "coreset": 5}, "--reweight 9 is more than the 5 rows"),
    ],
)
def test_wrong_settings_are_one_line(options: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        fitted(**options)


# ---------------------------------------------------------------- the whole line


def test_images_to_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_squares(tmp_path / "squares")
    flags = ["--weights", "random", "--size", "64", "--coreset", "100", "--reweight", "4"]
    folders = ["--data", str(data), "--out", str(tmp_path / "b")]
    checkpoint = ["--save-checkpoint", str(tmp_path / "c.pt")]
    assert build.main(["--method", "patchcore", *folders, *checkpoint, *flags]) == 0
    log = capsys.readouterr().err
    assert "bank: 100 of 1280 patches (coreset 100), 0.1 MB" in log
    assert "0 flipped decisions" in log
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.method == "patchcore"
    assert bundle.golden().scores.max() > bundle.calibration.threshold


@pytest.mark.slow
def test_bottle_with_pretrained_weights(tmp_path: Path) -> None:
    from flawline.benchmarks.studies.accuracy.measure import train_and_measure

    weights = shared("weights", "resnet18_imagenet1k_v1_bnfolded_stem_to_layer3.pth")
    flags = ["--method", "patchcore", "--weights", str(weights), "--coreset", "0.01"]
    row = train_and_measure(shared("data", "mvtec_bottle"), 0, flags, tmp_path)
    assert row["image_auroc"] >= 0.998


@pytest.mark.parametrize(
    ("coreset", "expected"), [(None, 0.01 * 400 / 16), (0.1, 1.0), (300.0, 300.0)]
)
def test_a_trial_on_few_images_has_a_bank_of_the_size_of_all(
    coreset: float | None, expected: float
) -> None:
    settings = replace(PatchCore.settings_for("resnet18"), coreset=coreset)
    assert PatchCore.settings_to_time(settings, 16, 400).coreset == pytest.approx(expected)
