from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import shared

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
import onnx.numpy_helper

from flawline.export import build
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.bundle import read_bundle
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry
from flawline.train import TrainError, fit
from flawline.train.blocks import bank_size, patches
from flawline.train.blocks import memory_bank as bank
from flawline.train.blocks.bank_size import (
    bytes_of_row,
    rows_for_megabytes,
    rows_for_milliseconds,
    search_milliseconds,
)
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.memory_bank import BLOCK, Bank
from flawline.train.blocks.patches import patch_features, smoothed_map
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit
from flawline.train.methods.patchcore import PatchCore, PatchCoreSettings

pytestmark = pytest.mark.torch
# What the graph is made of without re-weighting. A new kind of node is a decision, not an accident.
NODES = {
    "Add", "ArgMin", "Cast", "Concat", "Constant", "Conv", "Gather", "GatherElements", "Gemm", "Identity", "MatMul",
    "MaxPool", "Mul", "ReduceL2", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Resize", "Sub", "Transpose",
}  # fmt: skip


def quiet(*_: Any) -> None:
    pass


def picture(size: int = 64, n: int = 2, seed: int = 0) -> Any:
    return torch.randint(
        0, 256, (n, size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def net(
    backbone: str = "resnet18",
    size: int = 64,
    level: int = 48,
    target: int = 48,
    fitted: bool = True,
    **settings: Any,
) -> PatchCore:
    geometry = Geometry("stretch", size, size)
    options = {"coreset": 0.5, **settings}
    model = PatchCore(PatchCoreSettings(backbone, geometry, level, target, **options)).eval()
    model.recorded_notes = []
    model.backbone.load("random", 0)
    if fitted:
        fit = Fit(list(picture(size, 6, 1).numpy()), 1, notes=model.recorded_notes)
        assert model.fit(fit) == 1
    return model


# ---------------------------------------------------------------- the literal pipeline


def test_aggregation_is_the_published_stencil() -> None:
    """For 512 and 1024 channels pooled to 1024 twice it has a closed form: weighted 3x3 means, pairs of layer3's."""

    class Levels(torch.nn.Module):
        def extract(self, image: Any) -> Any:
            return levels

    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(1, c, s, s, generator=generator).double() for c, s in ((512, 6), (1024, 3))
    ]
    got = patch_features(Levels(), torch.zeros(1), 1024, 1024)[0].permute(2, 0, 1)  # type: ignore[arg-type]
    kernel = torch.full((512, 1, 3, 3), 0.1).double()
    kernel[:, :, 1, 1] = 0.2
    fine = torch.nn.functional.conv2d(levels[0], kernel, padding=1, groups=512)[0]
    boxes = torch.nn.functional.avg_pool2d(levels[1], 3, 1, 1)
    boxes = torch.nn.functional.interpolate(boxes, size=(6, 6), mode="bilinear")[0]
    torch.testing.assert_close(
        got, torch.cat([fine, (boxes[0::2] + boxes[1::2]) / 2]), rtol=1e-6, atol=1e-7
    )


def test_maps_are_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    score = torch.randn(2, 64, 48, dtype=torch.float64)
    expected = [ndimage.gaussian_filter(one.numpy(), sigma=4) for one in score]
    np.testing.assert_allclose(smoothed_map(score, (64, 48), 4.0).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("reweight", [0, 4])
def test_scores_by_loops(reweight: int) -> None:
    """Nearest row, largest patch, and the paper's weight from the neighbours of that row, in numpy."""
    model = net(reweight=reweight, coreset=40).double()
    with torch.inference_mode():
        score, heat = model(picture())
        features = model.features(picture()).numpy()
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
        np.testing.assert_allclose(heat[i].numpy(), expected.numpy(), rtol=1e-6)


def test_a_row_is_its_own_first_neighbour_even_with_a_twin() -> None:
    rows = torch.randn(30, 5)
    rows[20] = rows[3]
    memory = Bank(5, 3)
    memory.fill(rows, torch.arange(30))
    assert memory.neighbours[:, 0].tolist() == list(range(30))
    assert set(memory.neighbours[3, :2].tolist()) == {3, 20}


# ---------------------------------------------------------------- fused equals literal

SETTINGS = [
    ("resnet18", 64, 256, 256, {}),
    ("resnet18", 64, 384, 384, {"reweight": 5}),
    ("resnet18", 64, 1024, 1024, {}),
    (
        "resnet18",
        72,
        100,
        71,
        {"reweight": 3},
    ),  # an odd size, and an odd dimension with taps of both levels
    ("resnet18", 90, 384, 384, {"coreset": 30}),
    ("wide_resnet50_2", 64, 1024, 1024, {}),
]


@pytest.mark.parametrize(("backbone", "size", "level", "target", "settings"), SETTINGS)
def test_fused_equals_literal(
    backbone: str, size: int, level: int, target: int, settings: Any
) -> None:
    model = net(backbone, size, level, target, **settings)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model = model.to(dtype)
        with torch.inference_mode():
            score, heat = model(picture(size))
            fused_score, fused_heat = model.fused()(picture(size))
        assert fused_heat.dtype == dtype
        scale = float(heat.std() + score.std())
        assert float((score - fused_score).abs().max()) < tolerance * scale
        assert float((heat - fused_heat).abs().max()) < tolerance * scale


@pytest.mark.parametrize("reweight", [0, 4])
def test_a_bank_searched_in_parts_finds_the_same(
    reweight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(reweight=reweight, coreset=150).double()
    with torch.inference_mode():
        whole = model.fused()(picture())
    monkeypatch.setattr(bank, "LARGEST_TENSOR", 4 * bank.LARGEST_BATCH * 64 * (BLOCK + 1))
    module = model.fused()
    with torch.inference_mode():
        in_parts = module(picture())
    assert node_types(onnx_from_module(module.float(), model.geometry))["Gemm"] == 3
    for a, b in zip(whole, in_parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize(("size", "reweight"), [(64, 0), (72, 3)])
def test_onnx_runtime_agrees_with_torch_for_any_batch(
    size: int, reweight: int, tmp_path: Path
) -> None:
    model = net(size=size, reweight=reweight)
    (tmp_path / "m.onnx").write_bytes(onnx_from_module(model.fused(), model.geometry))
    engine = OnnxRuntime(tmp_path / "m.onnx", (size, size), threads=1)
    image = picture(size, 3)
    with torch.inference_mode():
        score, heat = model(image)
    for n in (1, 3):
        got_score, got_map = engine(image[:n].numpy())
        np.testing.assert_allclose(got_score, score[:n], rtol=1e-4)
        np.testing.assert_allclose(got_map, heat[:n], rtol=1e-4)


def test_the_graph_is_lean_and_holds_the_bank_once() -> None:
    model = net(level=384, target=384, coreset=200)
    data = onnx_from_module(model.fused(), model.geometry)
    kinds = node_types(data)
    assert set(kinds) <= NODES, set(kinds) - NODES
    assert kinds["Conv"] == 15 + 2
    assert (kinds["Gemm"], kinds["MatMul"], kinds["ReduceMin"]) == (1, 2, 1)
    assert kinds["Transpose"] == 2  # the image, and the features once
    for reweight in (0, 4):
        graph = onnx.load_model_from_string(
            onnx_from_module(
                net(target=384, level=384, coreset=200, reweight=reweight).fused(), model.geometry
            )
        ).graph
        assert [list(t.dims) for t in graph.initializer].count([4 * BLOCK, 384]) == 1
        assert "TopK" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize(("reweight", "parts"), [(0, 1), (3, 1), (3, 3)])
def test_islands_hold_what_fp16_would_hurt_and_not_the_product(
    reweight: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts > 1:
        monkeypatch.setattr(bank, "LARGEST_TENSOR", 4 * bank.LARGEST_BATCH * 64 * BLOCK)
    model = net(coreset=150, reweight=reweight)
    nodes = onnx.load_model_from_string(onnx_from_module(model.fused(), model.geometry)).graph.node
    islands = tuple(f"{island}/" for island in fp32_islands(model.fused()))
    for island in islands:
        assert [node for node in nodes if node.name.startswith(island)], island
    halves = [node.op_type for node in nodes if not node.name.startswith(islands)]
    assert {"Conv", "Gemm", "ReduceMin"} <= set(halves)
    assert halves.count("Gemm") == parts
    assert not set(halves) & {"ReduceL2", "ReduceMax", "Softmax", "MatMul", "Where", "Less", "Min"}


def half(values: Any) -> Any:
    return values.astype(np.float16).astype(np.float32)


def test_half_precision_needs_the_winner_evaluated_again() -> None:
    """Queries from the bank itself: the root of |x|^2 - 2xm + |m|^2, rounded to FP16, is far from their distance 0."""
    model = net(level=384, target=384, coreset=0.3)
    module: Any = model.fused()
    search = module.nearest.search[0]
    rows, squares = half(search.rows.numpy()), half(search.squares.numpy())
    with torch.inference_mode():
        features = (
            model.features(picture(n=4, seed=9)).flatten(0, 2) - model.bank.vectors.mean(0)
        ).numpy()
    typical = float(np.median(np.linalg.norm(features[:, None] - rows[None], axis=2).min(1)))

    def value(x: Any) -> Any:  # what an FP16 product stores, accumulated in FP32
        return half(-2 * half(x) @ rows.T + squares)

    naive = np.sqrt(np.maximum(0, half(half((half(rows) ** 2).sum(1)) + value(rows).min(1))))
    exact = np.linalg.norm(half(rows) - rows[value(rows).argmin(1)], axis=1)
    assert naive.max() > 0.1 * typical
    assert exact.max() < 1e-3 * typical
    # And for what is not in the bank, the winner of the rounded product is as near as makes no difference.
    true = np.linalg.norm(features[:, None] - search.rows.numpy()[None], axis=2).min(1)
    again = np.linalg.norm(half(features) - rows[value(features).argmin(1)], axis=1)
    assert np.abs(again / true - 1).max() < 5e-3


# ---------------------------------------------------------------- fitting, budgets


@pytest.mark.parametrize(
    ("settings", "rows"),
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
def test_the_bank_has_the_size_that_was_asked_for(settings: Any, rows: int) -> None:
    model = net(**settings)
    assert len(model.bank.vectors) == rows
    assert model.recorded_notes[0].startswith(f"bank: {rows} of 384 patches (")
    with torch.inference_mode():
        seen = model.features(picture(n=6, seed=1)).flatten(0, 2)[model.bank.origin]
    torch.testing.assert_close(seen, model.bank.vectors)


def test_a_row_takes_as_many_bytes_of_the_file_as_is_said() -> None:
    few, many = (
        len(onnx_from_module(m.fused(), m.geometry))
        for m in (net(coreset=n, reweight=5) for n in (64, 320))
    )
    assert many - few == pytest.approx(256 * bytes_of_row(48, 5), rel=0.01)
    assert rows_for_megabytes(1, 48, 5) == 1e6 // bytes_of_row(48, 5)
    with pytest.raises(
        TrainError, match=r"--budget-mb 0.001 is less than 16 bank rows take; give at least 0\.004"
    ):
        rows_for_megabytes(0.001, 48, 5)


@pytest.mark.parametrize(
    ("milliseconds", "most", "least_rows", "most_rows"),
    [(10, 10**6, 4300, 4750), (10, 900, 900, 900), (0.6, 999, 16, 50)],
)
def test_a_time_budget_is_kept_and_used(
    milliseconds: float, most: int, least_rows: int, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def took(rows: int, dim: int, grid: tuple[int, int]) -> float:
        asked.append(rows)
        return 0.5 + 0.002 * rows  # a machine

    monkeypatch.setattr(bank_size, "search_milliseconds", took)
    rows, milliseconds_found = rows_for_milliseconds(milliseconds, 384, (32, 32), most)
    assert least_rows <= rows <= most_rows
    assert milliseconds_found == took(rows, 384, (32, 32)) <= milliseconds
    assert len(asked) <= 4


def test_a_time_budget_below_any_search_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_size, "search_milliseconds", lambda rows, *_: 0.5 + 0.002 * rows)
    with pytest.raises(
        TrainError,
        match=r"--budget-ms 0\.5: searching as few as 16 rows takes 0\.53 ms here; allow more",
    ):
        rows_for_milliseconds(0.5, 384, (32, 32), 1000)


def test_what_is_timed_is_the_exported_search() -> None:
    assert 0 < search_milliseconds(100, 48, (8, 8)) < 1000
    model = net(coreset=None, budget_ms=1000)
    assert len(model.bank.vectors) == 384
    assert "(all 384 patches)" in model.recorded_notes[0]
    assert "measured here at " in model.recorded_notes[0]


def test_a_checkpoint_carries_a_bank_of_any_size_and_fitting_is_a_function_of_the_seed(
    tmp_path: Path,
) -> None:
    model = net(reweight=3)
    assert torch.equal(model.bank.vectors, net(reweight=3).bank.vectors)
    save_checkpoint(tmp_path / "c.pt", model, {"a": "b"})
    loaded, told, state = load_checkpoint(tmp_path / "c.pt")
    assert (told, state) == ({"a": "b"}, None)
    with torch.inference_mode():
        for a, b in zip(loaded(picture()), model(picture()), strict=True):
            assert torch.equal(a, b)


def test_features_mapped_from_disk_give_the_same_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = net()
    monkeypatch.setattr(patches, "MEMORY_MAP_ABOVE", 0)
    assert torch.equal(net().bank.vectors, in_memory.bank.vectors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coreset": 0.0}, "--coreset 0 is not above 0"),
        ({"coreset": 2.5}, "--coreset 2.5 is neither a fraction"),
        ({"budget_ms": -1.0}, "--budget-ms -1 is not above 0"),
        ({"reweight": 1}, "--reweight 1: a row is its own first neighbour"),
        ({"reweight": 9, "coreset": 5}, "--reweight 9 is more than the 5 rows"),
    ],
)
def test_wrong_settings_are_told(settings: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        net(**settings)


def test_an_unfitted_one_is_not_exported_and_too_few_minutes_are_told() -> None:
    model = net(fitted=False)
    with pytest.raises(TrainError, match="no bank yet"):
        model.fused()
    with pytest.raises(
        TrainError, match=r"--max-minutes ended at features 1 of 4.*allow more minutes"
    ):
        model.fit(Fit(list(picture(n=4).numpy()), 1, deadline=0.0))


# ---------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0)
    for folder, count in (("train/good", 20), ("test/good", 4), ("test/square", 4)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            image = rng.normal(120, 12, (80, 90, 3)).clip(0, 255).astype(np.uint8)
            if folder.endswith("square"):
                image[20:50, 30:60] = 255
            (root / folder / f"{i:03d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root


@pytest.mark.parametrize(
    ("method", "flags", "told"),
    [
        (
            "patchcore",
            ["--coreset", "100", "--reweight", "4"],
            "bank: 100 of 1088 patches (coreset 100), 0.1 MB",
        ),
        # Of 17 random images' covariances, an FP16 graph is no good.
        ("padim", ["--channels", "16", "--precision", "fp32"], "64 Gaussians of 16 channels"),
    ],
)
def test_images_to_bundle(
    method: str,
    flags: list[str],
    told: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    light = ["--weights", "random", "--size", "64", "--save-checkpoint", str(tmp_path / "c.pt")]
    command = [
        "--method",
        method,
        "--data",
        str(data),
        "--out",
        str(tmp_path / "b"),
        *light,
        *flags,
    ]
    assert build.main(command) == 0
    said = capsys.readouterr().err
    assert told in said, said
    assert "0 flipped decisions" in said
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.method == method
    assert bundle.golden().scores.max() > bundle.calibration.threshold


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method", "simplenet", "--coreset", "0.1"],
            "--coreset is no option of simplenet; it belongs to --method patchcore",
        ),
        (["--method", "patchcore", "--coreset", "-1"], "--coreset -1 is not above 0"),
        (["--method", "patchcore", "--target-dim", "0"], "--target-dim 0 is not above 0"),
        (
            ["--method", "padim", "--channels", "9999"],
            "--channels 9999 is not from 1 to 448, which resnet18 has",
        ),
    ],
)
def test_wrong_flags_are_one_clear_line(
    flags: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "c.pt"),
        "--weights",
        "random",
        "--size",
        "64",
        *flags,
    ]
    assert fit.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"flawline-train: {message}")


@pytest.mark.slow
def test_bottle_with_pretrained_weights(tmp_path: Path) -> None:
    from flawline.benchmarks.studies.accuracy.measure import train_and_measure

    weights = shared("weights", "resnet18_imagenet1k_v1_bnfolded_stem_to_layer3.pth")
    flags = ["--method", "patchcore", "--weights", str(weights), "--coreset", "0.01"]
    row = train_and_measure(shared("data", "mvtec_bottle"), 0, flags, tmp_path)
    assert row["image_auroc"] >= 0.998
