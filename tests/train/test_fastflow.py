"""FastFlow against its specification: the literal pipeline, the training and the exported graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import (
    CONVOLUTIONAL,
    FLOW_TOLERANCES,
    SIZE,
    Size,
    boards,
    both_sides,
    close,
    counted,
    exported,
    images_with_defect,
    literal_flow,
    random_images,
    trained_like,
    upsampled,
)
from oracles import assert_fused_equals_literal
from rounding import RoundingEvaluator

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import node_types
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.train.blocks.flow import flow_forward, initialise_flow
from flawline.train.blocks.fused import fp32_islands
from flawline.train.method import Fit
from flawline.train.methods import fastflow
from flawline.train.methods.fastflow import ConvolutionSubnetwork, FastFlow, FastFlowSettings

pytestmark = pytest.mark.torch


def net(size: Size = SIZE, blocks: int = 2, alternate: bool = False) -> FastFlow:
    """A FastFlow with a random backbone, before its training."""
    torch.manual_seed(0)
    geometry = Geometry("stretch", *both_sides(size))
    model = FastFlow(FastFlowSettings("resnet18", geometry, blocks, alternate)).eval()
    model.load_weights("random", 0, list(random_images(8, 5, size)))
    return model


def trained_net(
    size: Size = SIZE, seed: int = 0, blocks: int = 2, alternate: bool = False
) -> FastFlow:
    """A FastFlow as a long training might leave it."""
    model = net(size, blocks, alternate)
    generator = torch.Generator().manual_seed(seed)
    for number, flow in enumerate(model.flows):
        trained_like(flow, 3 * seed + number)
    for norm in model.norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        torch.nn.init.normal_(norm.bias, 0, 0.3, generator=generator)
    return model


def normed(level: Any, norm: Any) -> Any:
    """A LayerNorm over the whole map of each image, by its formula."""
    flat = level.flatten(1)
    mean = flat.mean(1)[:, None, None, None]
    variance = flat.var(1, unbiased=False)[:, None, None, None]
    return (level - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize("size", [64, (72, 90)])
def test_forward_by_hand(size: Size) -> None:
    """Per level: norm, flow, density of the mean energy; upsampled, averaged, the largest."""
    model = trained_net(size).double()
    image = torch.from_numpy(random_images(2, 0, size))
    with torch.inference_mode():
        score, anomaly_map = model(image)
        levels = model.backbone.extract(image)
        assert [level.shape[1] for level in levels] == [64, 128, 256]
        assert tuple(tuple(level.shape[2:]) for level in levels) == model.grids
        maps = []
        for level, norm, flow in zip(levels, model.norms, model.flows, strict=True):
            z = literal_flow(flow, normed(level, norm))[0].numpy()
            maps.append(upsampled(-np.exp(-0.5 * (z**2).mean(1)), both_sides(size)))
    expected = np.mean(maps, 0)
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(score, expected.max((1, 2)), rtol=1e-9)


@pytest.mark.parametrize(("alternate", "kernels"), [(False, [3, 3, 3, 3]), (True, [3, 1, 3, 1])])
def test_kernels_are_three_or_alternate_with_one(alternate: bool, kernels: list[int]) -> None:
    for flow in net(blocks=4, alternate=alternate).flows:
        subnetworks = [block.subnet for block in flow.module_list]
        passive = flow.module_list[0].splits[0]
        assert [s.first.kernel_size[0] for s in subnetworks] == kernels
        assert [s.last.kernel_size[0] for s in subnetworks] == kernels
        # There are as many hidden channels as channels that are read.
        assert all(s.first.weight.shape[:2] == (passive, passive) for s in subnetworks)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_sub_network_is_two_convolutions_with_a_relu(kernel: int) -> None:
    made = ConvolutionSubnetwork(4, 6, kernel).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    padding = kernel // 2
    convolve = torch.nn.functional.conv2d
    hidden = convolve(x, made.first.weight, made.first.bias, padding=padding).clamp_min(0)
    expected = convolve(hidden, made.last.weight, made.last.bias, padding=padding)
    close(made(x).detach(), expected.detach())


def test_the_loss_is_energy_minus_log_determinant_over_all_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trained_net().double()
    autocast_used: list[bool] = []

    def exact(flow: Any, x: Any, autocast: bool) -> Any:
        autocast_used.append(autocast)
        return flow_forward(flow, x)

    monkeypatch.setattr(fastflow, "flow_forward", exact)
    with torch.inference_mode():
        levels = model.backbone.extract(torch.from_numpy(random_images(3)))
        expected = []
        for level, norm, flow in zip(levels, model.norms, model.flows, strict=True):
            z, log_det = literal_flow(flow, normed(level, norm))
            expected.append(0.5 * z.square().sum((1, 2, 3)) - log_det)
        close(model.loss(levels), torch.stack(expected).sum(0).mean())
    assert autocast_used == [True] * 3


# ---------------------------------------------------------------- training


def fit(model: FastFlow, steps: int) -> None:
    assert model.fit(Fit(boards(), steps, 3)) == steps


def test_training_lowers_the_loss() -> None:
    model, before = net(), net()
    fit(model, 5)
    assert not any(module.training for module in model.modules())
    assert all(float(norm.weight.detach().std()) > 0 for norm in model.norms)
    generator = torch.Generator().manual_seed(3)
    for flow in before.flows:
        initialise_flow(flow, generator)
    with torch.inference_mode():
        levels = model.backbone.extract(torch.from_numpy(np.stack(boards())))
        assert float(model.loss(levels)) < float(before.loss(levels))


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(("size", "alternate"), [(64, False), (64, True), ((72, 90), True)])
def test_fused_equals_literal(size: Size, alternate: bool) -> None:
    model = trained_net(size, 1, 3, alternate)
    with torch.no_grad():  # otherwise some level is e^-20 and does not count
        for flow in model.flows:
            flow.module_list[-1].global_scale.fill_(2)
    image = torch.from_numpy(random_images(2, 0, size))
    with torch.inference_mode():
        score, anomaly_map = model(image)
    assert float(anomaly_map.std() + score.std()) > 1e-3
    assert_fused_equals_literal(model, image, tolerances=FLOW_TOLERANCES)


def nodes_of(data: bytes) -> list[Any]:
    return list(onnx.load_model_from_string(data).graph.node)


def test_the_graph_has_no_node_too_many() -> None:
    """The first coupling splits; the second one gathers or multiplies; the last one joins."""
    data = exported(net(blocks=3))
    nodes = nodes_of(data)
    for level in range(3):
        flow = counted(n for n in nodes if n.name.startswith(f"/flows.{level}/"))
        expected = Counter({kind: 3 * number for kind, number in CONVOLUTIONAL.items()})
        if level == 0:
            expected.update({"Split": 3, "Conv": 2, "Concat": 3, "Add": 1})
        else:
            expected.update({"Split": 1, "Gather": 4, "Concat": 3, "Add": 3})
        assert flow == expected
        assert counted(n for n in nodes if n.name.startswith(f"/norms.{level}/")).total() == 1
        density = counted(n for n in nodes if n.name.startswith(f"/densities.{level}/"))
        assert density == Counter({"Mul": 2, "Conv": 1, "Neg": 1, "Exp": 1})
    kinds = set(node_types(data))
    assert not {"Log", "Softplus", "ReduceSum", "Expand", "BatchNormalization"} & kinds


# ---------------------------------------------------------------- FP16


@torch.no_grad()
def sensitive() -> tuple[FastFlow, Any, Any]:
    """A FastFlow with a defect of 60 grey levels far from good, images, and the scores of torch."""
    good, images = images_with_defect(60)
    model = net(blocks=3)
    model.backbone.estimate_batchnorm(list(good))
    generator = torch.Generator().manual_seed(0)
    for flow in model.flows:
        initialise_flow(flow, generator)
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


def islands_without(model: FastFlow, prefix: str) -> tuple[str, ...]:
    islands = fp32_islands(model.fused())
    return tuple(island for island in islands if not island.startswith(prefix))


def test_islands_keep_an_anomaly_finite_and_above_every_good_image() -> None:
    """Without islands the energies are infinite; the map stays finite, as the density saturates."""
    model, images, reference = sensitive()
    with torch.inference_mode():
        levels = model.backbone.extract(torch.from_numpy(images))
        peaks = []
        for level, norm, flow in zip(levels, model.norms, model.flows, strict=True):
            peaks.append(float(flow(norm(level))[0][2].abs().max()))
    assert max(peaks) > 300
    data = exported(model)
    got = rounded(data, images, fp32_islands(model.fused()))
    energies = [f"/densities.{level}/energy/Conv_output_0" for level in range(3)]
    assert all(np.isfinite(got[energy]).all() for energy in energies)
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, rtol=0.03)
    assert got["score"][2] > got["score"][:2].max()
    for islands in ((), islands_without(model, "/densities")):
        control = rounded(data, images, islands)
        assert not all(np.isfinite(control[energy]).all() for energy in energies)


def test_densities_upsamples_and_sum_keep_scores_apart_that_are_equal_in_fp16() -> None:
    """Good scores are near -1, where FP16 has steps of 0.0005."""
    model = net(blocks=1)
    generator = torch.Generator().manual_seed(0)
    for flow in model.flows:
        initialise_flow(flow, generator)
        flow.module_list[0].global_scale.data.fill_(0)  # energies are small
    images = np.concatenate([random_images(1, 0), random_images(1, 1)])
    with torch.inference_mode():
        reference = model(torch.from_numpy(images))[1].numpy()
    data = exported(model)

    def error(islands: Any) -> float:
        return float(np.abs(rounded(data, images, islands)["map"] - reference).max())

    whole = error(fp32_islands(model.fused()))
    for part in ("/densities", "/upsamples", "/sum"):
        assert error(islands_without(model, part)) > 2 * whole, part


def test_the_marked_parts_are_those_of_the_specification() -> None:
    islands = fp32_islands(net().fused())
    parts = {island.split("/")[1].split(".")[0] for island in islands}
    assert parts == {"norms", "flows", "densities", "upsamples", "sum", "largest"}


def test_the_affine_of_every_coupling_is_in_an_island() -> None:
    model = net()
    islands = fp32_islands(model.fused())
    affine = []
    for node in nodes_of(exported(model)):
        if node.name.startswith("/flows.") and node.op_type in ("Exp", "Tanh"):
            affine.append(node.name)
    assert len(affine) == 2 * 2 * 3
    assert all(islands_of(name, islands) for name in affine)


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
            # Not a Cast that widens what was rounded before.
            assert producers[name].op_type in ("Add", "Split"), node.name
