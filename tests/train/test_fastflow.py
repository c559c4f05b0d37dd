"""FastFlow against its specification, its training, and what is exported of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from rounding import RoundingEvaluator
from test_flow import CONVOLUTIONAL, close, counted, literal_flow, trained_like
from test_ssnf import SIZE, Size, boards, parts, picture, upsampled

from flawline.export.graphs.to_fp16 import in_island, to_fp16
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.image import Geometry
from flawline.train.blocks.flow import latent
from flawline.train.blocks.fused import fp32_islands
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit
from flawline.train.methods import fastflow
from flawline.train.methods.fastflow import FastFlow, FastFlowSettings

pytestmark = pytest.mark.torch


def net(
    size: Size = SIZE, seed: int | None = 0, blocks: int = 2, alternate: bool = False
) -> FastFlow:
    """A FastFlow with a random trunk; with a seed as a long training might leave it, without as it is made."""
    height, width = (size, size) if isinstance(size, int) else size
    torch.manual_seed(0)
    geometry = Geometry("stretch", height, width)
    model = FastFlow(FastFlowSettings("resnet18", geometry, blocks, alternate)).eval()
    model.backbone.load("random", 0)
    model.backbone.estimate_batchnorm(list(picture(8, 5, size)))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for number, flow in enumerate(model.flows):
            trained_like(flow, 3 * seed + number)
        for norm in model.norms:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(norm.bias, 0, 0.3, generator=generator)
    return model


def levels_of(model: FastFlow, image: Any) -> Any:
    return model.backbone.extract(image)


def normed(level: Any, norm: Any) -> Any:
    """A LayerNorm over the whole map of each image, by its formula."""
    flat = level.flatten(1)
    mean, variance = (
        flat.mean(1)[:, None, None, None],
        flat.var(1, unbiased=False)[:, None, None, None],
    )
    return (level - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize("size", [64, (72, 90)])
def test_forward_by_hand(size: Size) -> None:
    """Per level: normed whole, the flow, the density of the mean energy; upsampled, averaged, the largest."""
    model = net(size).double()
    image = torch.from_numpy(picture(2, 0, size))
    whole = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        score, heat = model(image)
        levels = levels_of(model, image)
        assert [tuple(level.shape[1:]) for level in levels] == model.shapes
        assert [level.shape[1] for level in levels] == [64, 128, 256]
        maps = []
        for level, norm, flow in zip(levels, model.norms, model.flows, strict=True):
            z = literal_flow(flow, normed(level, norm))[0].numpy()
            maps.append(upsampled(-np.exp(-0.5 * (z**2).mean(1)), whole))
    expected = np.mean(maps, 0)
    np.testing.assert_allclose(heat, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(score, expected.max((1, 2)), rtol=1e-9)


def test_kernels_are_three_or_alternate_with_one() -> None:
    for alternate, expected in ((False, [3, 3, 3, 3]), (True, [3, 1, 3, 1])):
        model = net(seed=None, blocks=4, alternate=alternate)
        for flow in model.flows:
            subnets = [block.subnet for block in flow.module_list]
            assert (
                [s.first.kernel_size[0] for s in subnets]
                == [s.last.kernel_size[0] for s in subnets]
                == expected
            )
            # The hidden width is the input's.
            assert all(
                s.first.weight.shape[:2] == (flow.module_list[0].splits[0],) * 2 for s in subnets
            )


def test_the_sub_network_is_two_convolutions_with_a_relu() -> None:
    for kernel in (1, 3):
        made = fastflow.SubNet(4, 6, kernel).double()
        x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
        h = torch.nn.functional.conv2d(
            x, made.first.weight, made.first.bias, padding=kernel // 2
        ).clamp_min(0)
        expected = torch.nn.functional.conv2d(
            h, made.last.weight, made.last.bias, padding=kernel // 2
        )
        close(made(x).detach(), expected.detach())


def test_the_loss_is_energy_less_log_determinant_over_all_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = net().double()
    used: list[bool] = []

    def exact(flow: Any, x: Any, autocast: bool) -> Any:
        used.append(autocast)
        return latent(flow, x)

    monkeypatch.setattr(fastflow, "latent", exact)
    with torch.inference_mode():
        levels = levels_of(model, torch.from_numpy(picture(3)))
        expected = []
        for level, norm, flow in zip(levels, model.norms, model.flows, strict=True):
            z, log_det = literal_flow(flow, normed(level, norm))
            expected.append(0.5 * z.square().sum((1, 2, 3)) - log_det)
        close(model.loss(levels), torch.stack(expected).sum(0).mean())
    assert used == [True] * 3


# ---------------------------------------------------------------- training


def fit(model: FastFlow, steps: int, resumed: Any = None) -> None:
    assert model.fit(Fit(boards(), steps, 3, state=resumed)) == steps


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Any) -> None:
    whole, part = net(seed=None), net(seed=None)
    fit(whole, 4)
    snapshots: list[Any] = []

    def stop_at_two(what: str, done: int, _: int) -> None:
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.fit(Fit(boards(), 4, 3, progress=stop_at_two, save=snapshots.append))
    assert [s["state"]["step"] for s in snapshots] == [2]
    save_checkpoint(tmp_path / "c.pt", part, {"a": "b"}, snapshots[0])
    loaded, _, state = load_checkpoint(tmp_path / "c.pt")
    assert isinstance(loaded, FastFlow)
    fit(loaded, 4, state)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


def test_training_is_a_function_of_the_seed_lowers_the_loss_and_spares_the_trunk() -> None:
    one, again, before = net(seed=None), net(seed=None), net(seed=None)
    with torch.no_grad():
        for parameter in (
            again.flows.parameters()
        ):  # as a process would make them whose generator stands elsewhere
            if parameter.requires_grad and parameter.dim() > 1 and parameter.shape[0] > 1:
                parameter.uniform_(-1, 1)
    trunk = {k: v.clone() for k, v in one.backbone.state_dict().items()}
    fit(one, 6)
    fit(again, 6)
    assert all(torch.equal(v, one.backbone.state_dict()[k]) for k, v in trunk.items())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in one.state_dict().items())
    assert not any(module.training for module in one.modules())
    assert all(float(norm.weight.detach().std()) > 0 for norm in one.norms)  # trained as well
    generator = torch.Generator().manual_seed(3)
    for flow in before.flows:
        fastflow.initialise(flow, generator)
    with torch.inference_mode():
        levels = levels_of(one, torch.from_numpy(np.stack(boards())))
        assert float(one.loss(levels)) < float(before.loss(levels))


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(("size", "alternate"), [(64, False), (64, True), ((72, 90), True)])
def test_fused_equals_literal(size: Size, alternate: bool) -> None:
    model = net(size, 1, 3, alternate)
    with torch.no_grad():  # each level counts: e^-20 would hide it
        for flow in model.flows:
            flow.module_list[-1].global_scale.fill_(2)
    image = torch.from_numpy(picture(2, 0, size))
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.float64, 1e-9)):
        model = model.to(dtype)
        fused = model.fused()
        with torch.inference_mode():
            score, heat = model(image)
            fused_score, fused_heat = fused(image)
        assert fused_heat.dtype == dtype
        scale = float(heat.std() + score.std())
        assert scale > 1e-3
        assert float((score - fused_score).abs().max()) < tolerance * scale
        assert float((heat - fused_heat).abs().max()) < tolerance * scale


def exported(model: FastFlow) -> bytes:
    return onnx_from_module(model.fused(), model.geometry)


def nodes_of(data: bytes) -> list[Any]:
    return list(onnx.load_model_from_string(data).graph.node)


def test_the_graph_has_what_the_form_needs_and_no_more() -> None:
    """The first coupling slices what the others gather."""
    data = exported(net(blocks=3))
    nodes = nodes_of(data)
    for level in range(3):
        flow = counted(n for n in nodes if n.name.startswith(f"/flows.{level}/"))
        expected = Counter({kind: 3 * count for kind, count in CONVOLUTIONAL.items()})
        expected.update({"Split": 3, "Conv": 2, "Concat": 3, "Add": 1} if level == 0 else
                        {"Split": 1, "Gather": 4, "Concat": 3, "Add": 3})  # fmt: skip
        assert flow == expected
        assert counted(n for n in nodes if n.name.startswith(f"/norms.{level}/")).total() == 1
        density = counted(n for n in nodes if n.name.startswith(f"/densities.{level}/"))
        assert density == Counter({"Mul": 2, "Conv": 1, "Neg": 1, "Exp": 1})
    kinds = node_types(data)
    assert not {"Log", "Softplus", "ReduceSum", "Expand", "BatchNormalization"} & set(kinds)


# ---------------------------------------------------------------- FP16


@torch.no_grad()
def sensitive() -> tuple[FastFlow, Any, Any]:
    """A FastFlow in which a defect of 60 grey levels lies far out, and the scores that torch gives."""
    good, images = parts(60)
    model = net(seed=None, blocks=3)
    model.backbone.estimate_batchnorm(list(good))
    generator = torch.Generator().manual_seed(0)
    for flow in model.flows:
        fastflow.initialise(flow, generator)
        for name, parameter in flow.named_parameters():
            if name.endswith("global_scale"):
                parameter.normal_(5, 0.5, generator=generator)
            elif name.endswith("global_offset"):
                parameter.normal_(0, 0.1, generator=generator)
            elif ".last." in name:
                parameter.mul_(40)
    return model, images, model(torch.from_numpy(images))[0].numpy()


def rounded(data: bytes, images: Any, islands: Any) -> Any:
    return RoundingEvaluator(to_fp16(data, islands))(image=images)


def test_islands_keep_an_anomaly_finite_and_above_every_good_image() -> None:
    """The density saturates, so that without islands the energies are infinite and the map is still a number."""
    model, images, reference = sensitive()
    with torch.inference_mode():
        levels = levels_of(model, torch.from_numpy(images))
        latents = [f(n(x))[0] for x, n, f in zip(levels, model.norms, model.flows, strict=True)]
    assert max(float(z[2].abs().max()) for z in latents) > 300
    data = exported(model)
    got = rounded(data, images, fp32_islands(model.fused()))
    energies = [f"/densities.{level}/energy/Conv_output_0" for level in range(3)]
    assert all(np.isfinite(got[energy]).all() for energy in energies)
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, rtol=0.03)
    assert got["score"][2] > got["score"][:2].max()
    control = rounded(data, images, ())
    assert not all(np.isfinite(control[energy]).all() for energy in energies)
    # Without /densities alone they are infinite too.
    others = [
        island for island in fp32_islands(model.fused()) if not island.startswith("/densities")
    ]
    assert not all(np.isfinite(rounded(data, images, others)[energy]).all() for energy in energies)


def test_densities_upsamples_and_sum_keep_scores_apart_that_fp16_would_join() -> None:
    """Good scores lie near -1, where FP16 has steps of 0.0005."""
    model = net(seed=None, blocks=1)
    generator = torch.Generator().manual_seed(0)
    for flow in model.flows:
        fastflow.initialise(flow, generator)
        flow.module_list[0].global_scale.data.fill_(0)  # energies are small
    images = np.concatenate([picture(1, 0), picture(1, 1)])
    with torch.inference_mode():
        reference = model(torch.from_numpy(images))[1].numpy()
    data = exported(model)

    def error(islands: Any) -> float:
        return float(np.abs(rounded(data, images, islands)["map"] - reference).max())

    whole = error(fp32_islands(model.fused()))
    for part in ("/densities", "/upsamples", "/sum"):
        assert (
            error([island for island in fp32_islands(model.fused()) if not island.startswith(part)])
            > 2 * whole
        ), part


def test_every_declared_island_is_there() -> None:
    model = net()
    names = [n.name for n in nodes_of(exported(model))]
    for island in fp32_islands(model.fused()):
        assert [name for name in names if in_island(name, (island,))], island


def test_the_affine_of_every_coupling_is_in_an_island() -> None:
    model = net()
    outside = [
        n.name
        for n in nodes_of(exported(model))
        if n.name.startswith("/flows.")
        and n.op_type in ("Exp", "Tanh")
        and not in_island(n.name, fp32_islands(model.fused()))
    ]
    assert not outside


def test_both_halves_of_the_state_stay_fp32() -> None:
    model = net()
    proto = onnx.load_model_from_string(to_fp16(exported(model), fp32_islands(model.fused())))
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    joined = [n for n in graph.node if n.op_type == "Concat" and n.name.startswith("/flows.")]
    assert len(joined) == 3 * 2
    producers = {n.output[0]: n for n in graph.node}
    for node in joined:
        for name in node.input:
            assert kinds[name] == onnx.TensorProto.FLOAT, node.name
            assert "_fp16" not in name
            assert producers[name].op_type in ("Add", "Split"), (
                node.name
            )  # not a Cast that widens what was rounded
