"""The exact rewrites: shared pieces of export.fuse over drawn settings, whole networks, and what is counted of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_simplenet import net, picture
from torch.nn import functional as F

from flawline.benchmarks.measure import sessions
from flawline.benchmarks.measure.meter import meter, profile
from flawline.benchmarks.published import (
    ALTERNATIVES,
    ExportableFlows,
    ExportableSimpleNet,
    PublishedFlows,
    PublishedSimpleNet,
)
from flawline.benchmarks.studies import fusion, stencils
from flawline.benchmarks.studies.fusion_report import ratios
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks import fused as fuse
from flawline.train.blocks.fused_flow import FLOW_FORMS

pytestmark = pytest.mark.torch
drawn = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


# ---------------------------------------------------------------- the pieces


def pooled_patches(levels: tuple[Any, Any], level_dim: int, target_dim: int) -> Any:
    """Per level [C, h, w]: unfold, pool 9C to level_dim; then both together to target_dim: [positions, target_dim]."""
    pooled = [
        F.adaptive_avg_pool1d(F.unfold(x[None], 3, padding=1).transpose(1, 2), level_dim)
        for x in levels
    ]
    return F.adaptive_avg_pool1d(torch.cat(pooled, 2), target_dim)[0]


@drawn
@given(
    channels=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_stencils_are_the_pooled_patches(channels: Any, dims: Any, grid: Any) -> None:
    levels = tuple(torch.randn(c, *grid, dtype=torch.float64) for c in channels)
    kernels = fuse.patch_stencils(channels, *dims)
    total = sum(fuse.grouped_convolution(k)(x[None]) for k, x in zip(kernels, levels, strict=True))
    expected = pooled_patches(levels, *dims)
    torch.testing.assert_close(total[0].flatten(1).T, expected, rtol=1e-9, atol=1e-9)


@drawn
@given(
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_upsampling_is_bilinear_for_any_sizes(source: Any, target: Any) -> None:
    x = torch.randn(2, 3, *source, dtype=torch.float64)
    expected = F.interpolate(x, size=target, mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        fuse.Upsample(source, target).double()(x), expected, rtol=1e-9, atol=1e-9
    )


@drawn
@given(
    source=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    factor=st.integers(1, 5),
    sigma=st.floats(0.5, 5.0),
)
def test_smoothing_is_scipys_for_any_size_also_where_the_filter_is_wider_than_the_map(
    source: Any, factor: int, sigma: float
) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    target = (factor * source[0] + 1, factor * source[1])
    x = torch.randn(1, *source, dtype=torch.float64)
    upsampled = F.interpolate(x[None], size=target, mode="bilinear", align_corners=False)[0, 0]
    expected = ndimage.gaussian_filter(upsampled.numpy(), sigma=sigma)
    got = fuse.SmoothUpsample(source, target, sigma)(x)[0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


@drawn
@given(st.integers(1, 30), st.integers(1, 30))
def test_the_pool_matrix_is_adaptive_pooling(n_in: int, n_out: int) -> None:
    x = torch.randn(2, n_in, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x[:, None], n_out)[:, 0]
    torch.testing.assert_close(x @ fuse.pool_matrix(n_in, n_out).T, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("channels", "groups"), [((128, 256), (64, 64)), ((512, 1024), (256, 256))]
)
def test_the_official_setting_has_the_groups_of_the_closed_form(channels: Any, groups: Any) -> None:
    """D1 = D2 over 9C in whole windows: every 2 channels of layer2 and every 4 of layer3 make 3 features."""
    dim = 3 * channels[0]
    for kernel, expected in zip(fuse.patch_stencils(channels, dim, dim), groups, strict=True):
        conv = fuse.grouped_convolution(kernel[kernel.flatten(1).abs().sum(1) > 0])
        assert conv.groups == expected
        assert conv.out_channels == 3 * expected


@pytest.mark.parametrize("name", stencils.FORMS)
def test_every_form_of_the_stencil_is_the_same_map(name: str) -> None:
    for kernel in fuse.patch_stencils((12, 24), 36, 36):
        kernel = kernel[kernel.flatten(1).abs().sum(1) > 0]
        weight = torch.randn(7, len(kernel), dtype=torch.float64)
        x = torch.randn(2, kernel.shape[1], 5, 6, dtype=torch.float64)
        expected = F.conv2d(F.conv2d(x, kernel, padding=1), weight[..., None, None])
        form = stencils.FORMS[name](kernel, weight)
        assert form is not None
        torch.testing.assert_close(form.double()(x), expected, rtol=1e-9, atol=1e-9)


def test_a_row_mean_needs_rows_of_equal_taps() -> None:
    kernel = fuse.patch_stencils((8, 8), 100, 100)[0]
    assert stencils.row_mean(kernel, torch.randn(3, 100, dtype=torch.float64)) is None


# ---------------------------------------------------------------- whole networks


@settings(drawn, max_examples=8)
@given(
    size=st.tuples(st.integers(64, 100), st.integers(64, 100)),
    dims=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    batch=st.integers(1, 3),
)
def test_fused_equals_literal_for_drawn_settings(size: Any, dims: Any, batch: int) -> None:
    model = net(level=dims[0], target=dims[1], size=64)
    other = type(model)(replace(model.settings, geometry=Geometry("stretch", *size)))
    other.load_state_dict(model.state_dict())
    other = other.double().eval()
    image = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        literal, fused = other(image), other.fused()(image)
    for a, b in zip(literal, fused, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9 * float(literal[1].std()))


def test_the_tail_is_a_sum_of_signs_in_their_order() -> None:
    model = net()
    tail = model.fused().tail.weight.flatten()
    assert set(tail.tolist()) == {-1.0, 1.0}
    assert (tail.diff() <= 0).all()
    last = model.discriminator[3].weight
    assert int((tail < 0).sum()) == int((last > 0).sum())


def test_a_hidden_unit_without_weight_is_harmless() -> None:
    model = net().double()
    model.discriminator[3].weight.data[0, 3] = 0.0
    with torch.inference_mode():
        torch.testing.assert_close(
            model.fused()(picture())[1], model(picture())[1], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("form", [PublishedSimpleNet, ExportableSimpleNet])
def test_the_authors_layouts_compute_the_same(form: Any) -> None:
    model = net(level=64, target=64, size=72).double()
    with torch.inference_mode():
        for n in (1, 2):
            got, expected = form(model).double().eval()(picture(72, n)), model(picture(72, n))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_what_has_no_literal_onnx_is_told() -> None:
    with pytest.raises(TrainError, match="by whole factors"):
        ExportableSimpleNet(net(level=100, target=70))


# ---------------------------------------------------------------- the exports


def test_the_score_alone_drops_map_and_blur_and_keeps_the_names(tmp_path: Path) -> None:
    model = net()
    whole, lean = (
        onnx_from_module(model.fused(), model.geometry, o) for o in (("score", "map"), ("score",))
    )
    names = [
        {n.name for n in onnx.load_model_from_string(data).graph.node} for data in (whole, lean)
    ]
    assert names[1] < names[0]
    assert all(n.startswith("/smooth") for n in names[0] - names[1])
    assert "MatMul" not in node_types(lean)
    assert len(lean) < len(whole)
    (tmp_path / "m.onnx").write_bytes(lean)
    score, heat = OnnxRuntime(tmp_path / "m.onnx", (0, 0), 1)(picture(n=2).numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(score, model(picture(n=2))[0], rtol=1e-4, atol=1e-4)
    assert heat.shape == (2, 0, 0)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_static_batch_is_that_batch(batch: int, tmp_path: Path) -> None:
    model = net(size=72)
    data = onnx_from_module(model.fused(), model.geometry, batch=batch)
    graph = onnx.load_model_from_string(data).graph
    for value, rank in zip((*graph.input, *graph.output), (4, 1, 3), strict=True):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_value == batch
        assert len(dims) == rank
        assert not any(d.dim_param for d in dims)
    (tmp_path / "m.onnx").write_bytes(data)
    score, heat = OnnxRuntime(tmp_path / "m.onnx", (72, 72), 1)(picture(72, batch).numpy())
    with torch.inference_mode():
        expected = model(picture(72, batch))
    np.testing.assert_allclose(score, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(heat, expected[1], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what is counted


def test_the_meter_counts_what_is_computed_and_written() -> None:
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    x = torch.zeros(1, 2, 4, 5)
    cost = meter(lambda: conv(x).relu_().permute(0, 2, 3, 1))
    assert cost.macs == 3 * 2 * 9 * 20
    assert cost.bytes_written == 3 * 20 * 4
    assert meter(lambda: (x.transpose(1, 2) @ torch.ones(5, 7)).reshape(-1)).macs == 4 * 2 * 5 * 7


def test_the_profile_is_of_the_nodes_that_ran() -> None:
    model = net()
    nodes = profile(
        onnx_from_module(model.fused(), model.geometry), picture(n=1).numpy(), 1, runs=4
    )
    assert {"Conv", "ReduceMax", "MatMul"} <= {n.kind for n in nodes}
    assert next(n for n in nodes if n.name == "/smooth/MatMul_1").bytes_written == 4 * 64 * 64
    assert all(n.milliseconds >= 0 for n in nodes)


def test_the_benchmark_prints_the_ratios_and_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        fusion.main(["--size", "64", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)])
        == 0
    )
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "fusion-simplenet-resnet18-64.json").read_text())
    forms = {row["form"] for row in found["rows"]}
    assert {fusion.PUBLISHED, fusion.LITERAL, fusion.FUSED, fusion.BACKBONE} == forms
    assert all(line in told for line in ratios(found["rows"]))
    literal, fused = (
        next(r for r in found["rows"] if r["form"] == f and r["engine"] == fusion.EAGER)
        for f in (fusion.LITERAL, fusion.FUSED)
    )
    assert literal["head_macs"] > 2 * fused["head_macs"]
    assert literal["head_bytes_written"] > 3 * fused["head_bytes_written"]


def test_the_benchmark_fails_where_a_form_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = fuse.resize_matrix
    monkeypatch.setattr(fuse, "resize_matrix", lambda n_in, n_out: 1.01 * exact(n_in, n_out))
    assert fusion.main(["--size", "64", "--rounds", "1", "--threads", "1"]) == 1
    assert "(c) fused in onnxruntime fp32: differs by" in capsys.readouterr().err


def test_an_unknown_backbone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fusion.main(["--backbone", "resnet9"]) == 2
    assert "known: resnet18" in capsys.readouterr().err


# ---------------------------------------------------------------- flows

FLOWS = ("fastflow", "ssnf")
SMALL = ["--size", "64", "--set", "blocks=2", "--rounds", "1", "--threads", "1"]


def flows(name: str, seed: int = 0) -> Any:
    args = argparse.Namespace(
        method=name, backbone="resnet18", size=64, seed=seed, data=None, weights="random"
    )
    return fusion.build_method(args, 2, ["blocks=2"])[0]


@pytest.mark.parametrize("name", FLOWS)
def test_every_form_of_a_flow_computes_the_same(name: str) -> None:
    model = flows(name).double()
    forms = {"(a)": PublishedFlows(model), "(b)": ExportableFlows(model), "(c)": model.fused()}
    forms |= {label: make(model) for label, make in ALTERNATIVES[name].items()}
    with torch.inference_mode():
        expected = model(picture())
        levels = model.backbone.extract(picture())
        for label, form in forms.items():
            for got in (form.eval()(picture()), form.head(*levels)):
                for a, b in zip(got, expected, strict=True):
                    torch.testing.assert_close(
                        a, b, rtol=0, atol=1e-7 * float(expected[1].std()), msg=label
                    )


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_literal_form_is_what_the_exporter_makes_of_freias_own(name: str) -> None:
    model = flows(name)
    plain = onnx_from_module(model, model.geometry)
    assert node_types(
        onnx_from_module(ExportableFlows(model).eval(), model.geometry)
    ) == node_types(plain)


@pytest.mark.parametrize("name", FLOWS)
def test_the_forms_of_a_flow_are_what_they_are_called(name: str) -> None:
    model = flows(name)
    kinds = {
        form: node_types(onnx_from_module(model.fused(form), model.geometry)) for form in FLOW_FORMS
    }
    assert kinds["padded"]["Gather"] == 0 < kinds["gathered"]["Gather"]
    assert kinds["multiplied"]["Gather"] == 0 < kinds["multiplied"]["Split"]
    for label, make in ALTERNATIVES[name].items():
        if label.startswith("(d) fused, "):
            assert (
                node_types(onnx_from_module(make(model), model.geometry))
                == kinds[label.removeprefix("(d) fused, ")]
            )
    own = node_types(onnx_from_module(model.fused(), model.geometry))
    assert own not in [kinds[form] for form in FLOW_FORMS if (name, form) != ("ssnf", "padded")]


@pytest.mark.parametrize("name", FLOWS)
def test_the_constants_of_a_flow_are_not_those_it_begins_with_and_are_the_seeds(name: str) -> None:
    one, again, other = (flows(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    drawn = [key for key in one if key.endswith(("global_scale", "global_offset", "last.weight"))]
    assert len(drawn) == 3 * 2 * (1 if name == "ssnf" else 3)
    for key in drawn:
        assert one[key].std() > 0
        assert not torch.equal(one[key], other[key])


@pytest.mark.parametrize("name", FLOWS)
def test_the_benchmark_of_a_flow(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fusion.main(["--method", name, *SMALL, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / f"fusion-{name}-resnet18-64.json").read_text())
    rows = {(row["form"], row["engine"]): row for row in found["rows"]}
    exported = {fusion.LITERAL, fusion.FUSED, *ALTERNATIVES[name]}
    assert {form for form, engine in rows if engine == fusion.ORT} == {*exported, fusion.BACKBONE}
    assert {form for form, engine in rows if engine == "openvino fp32"} in (set(), exported)
    assert {form for form, engine in rows if engine == fusion.EAGER} == {
        *exported,
        fusion.PUBLISHED,
        fusion.BACKBONE,
    }
    assert all(line in told for line in ratios(found["rows"]))
    literal, by_index = (
        rows[form, fusion.EAGER]["head_macs"] for form in (fusion.LITERAL, "(e) literal, by index")
    )
    model = flows(name)
    dense = sum(
        block.in_channels**2 * h * w
        for flow in ([model.flow] if name == "ssnf" else model.flows)
        for block, (_, h, w) in zip(flow.module_list, flow.shapes, strict=False)
    )
    assert literal - by_index == dense
    # The attention's products are counted too.
    assert rows[fusion.PUBLISHED, fusion.EAGER]["head_macs"] == literal
    assert sum(kind["nodes"] for kind in found["kinds"][fusion.FUSED]) == len(
        found["left_in_the_head"]
    )


def test_a_flow_whose_rewrite_is_wrong_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "flawline.train.blocks.fused_flow._global_scale",
        lambda block: torch.ones(block.in_channels, dtype=torch.float64),
    )
    assert fusion.main(["--method", "fastflow", *SMALL]) == 1
    told = capsys.readouterr().err
    assert "(c) fused in onnxruntime fp32: differs by" in told
    assert "bf16: differs" not in told


def test_settings_are_keywords_of_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("blocks", "blocks=many", "steps=3"):
        assert fusion.main(["--method", "fastflow", "--set", wrong]) == 2
        assert f"--set {wrong}: " in capsys.readouterr().err


# ---------------------------------------------------------------- others' models


def others(path: Path, size: int = 64, dynamic: bool = False) -> Path:
    """A model of one convolution, of float images [1, 3, size, size]."""
    axes = {"input": {0: "n", **({2: "h"} if size == 0 else {})}} if dynamic else None
    example = torch.zeros(1, 3, size or 64, 64)
    torch.onnx.export(
        torch.nn.Conv2d(3, 2, 3),
        (example,),
        str(path),
        dynamo=False,
        input_names=["input"],
        dynamic_axes=axes,
    )
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_anothers_model_takes_its_turns(
    dynamic: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    path = str(others(tmp_path / "other.onnx", dynamic=dynamic))
    arguments = ["--against", path, "--against-openvino", path, "--out", str(tmp_path)]
    assert fusion.main(["--size", "64", "--rounds", "1", "--threads", "1", *arguments]) == 0
    assert "Another's: other.onnx, on random input of its own." in capsys.readouterr().out
    found = json.loads((tmp_path / "fusion-simplenet-resnet18-64.json").read_text())
    rows = {(row["form"], row["engine"]): row for row in found["rows"]}
    assert rows[sessions.AGAINST, sessions.ORT].keys() == {"form", "engine", "ms"}
    assert rows[sessions.AGAINST, sessions.OPENVINO]["ms"] > 0
    assert rows[fusion.FUSED, sessions.OPENVINO]["error"] < 0.2  # BF16 where the CPU has it
    told = [line for line in ratios(found["rows"]) if line.startswith(sessions.AGAINST)]
    assert [line.split(" in ")[1] for line in told] == [sessions.ORT, sessions.OPENVINO]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_cannot_be_held_against_ours_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger, open_size = (
        others(tmp_path / "larger.onnx", 96),
        others(tmp_path / "open.onnx", 0, dynamic=True),
    )
    (tmp_path / "text.onnx").write_text("no model")
    for path, reason in (
        (larger, "does not take float images of 64x64"),
        (open_size, "does not take float images of 64x64"),
        (tmp_path / "text.onnx", "cannot be loaded"),
        (tmp_path / "none.onnx", "cannot be loaded"),
    ):
        assert fusion.main(["--size", "64", "--against", str(path)]) == 2
        assert f"benchmarks.fusion: {path} {reason}" in capsys.readouterr().err
