"""Flows over positions: FrEIA's blocks by hand, and the same function in the exported form."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import close, counted
from rounding import RoundingEvaluator
from torch import Tensor

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import trace
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.fused_position_flow import FusedPositionFlow
from flawline.train.blocks.position_flow import (
    CODE_CHANNELS,
    LinearSubnetwork,
    build_position_flow,
    initialise_position_flow,
    mean_log_likelihood,
    position_code_2d,
    position_likelihoods,
)

pytestmark = pytest.mark.torch
GRID = (3, 4)
ALPHA = 1.9
LARGEST = -1.5
CONSTANT = 0.7


@torch.no_grad()
def flow_of(channels: int, blocks: int, seed: int = 0) -> Any:
    """A float64 flow as a long training might leave it; its last block rotates, too."""
    generator = torch.Generator().manual_seed(seed)
    flow = build_position_flow(channels, blocks)
    initialise_position_flow(flow, generator)
    flow = flow.double().eval()
    for block in flow.module_list:
        block.global_scale.uniform_(2, 20, generator=generator)
        block.global_offset.normal_(0, 0.5, generator=generator)
        block.subnet.last.weight.mul_(15)
    normal = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
    flow.module_list[-1].w_perm.copy_(torch.linalg.qr(normal)[0])
    return flow


def level_of(channels: int, seed: int = 0, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(n, channels, *GRID, dtype=torch.float64, generator=generator)


def code() -> Tensor:
    return position_code_2d(*GRID).double()


# ---------------------------------------------------------------- the literal form


@pytest.mark.parametrize("factor", [1e3, 1e4, 1e6])
def test_the_limits_for_fp16_change_no_score(factor: float) -> None:
    """The density is 0 wherever a value reaches them, in both forms."""
    flow = flow_of(16, 8)
    level = factor * level_of(16)
    fused = FusedPositionFlow(flow, code(), LARGEST, CONSTANT)
    with torch.inference_mode():
        expected = CONSTANT - torch.exp(position_likelihoods(flow, level, code()) - LARGEST)
        close(fused(level), expected)


def test_the_code_by_its_formula() -> None:
    got = position_code_2d(5, 7)
    assert got.shape == (CODE_CHANNELS, 5, 7)
    assert got.dtype == torch.float32
    for channel in range(CODE_CHANNELS):
        frequency = 10 ** (-4 * (channel % 64 // 2) / 32)
        wave = math.sin if channel % 2 == 0 else math.cos
        for row, column in ((0, 0), (4, 2), (1, 6)):
            place = column if channel < 64 else row
            expected = wave(place * frequency)
            assert float(got[channel, row, column]) == pytest.approx(expected, abs=1e-6)


@torch.inference_mode()
def test_the_likelihood_by_hand() -> None:
    """Every position alone: sub-network with the code, clamp, scale, offset, rotation, density."""
    flow = flow_of(5, 3)
    level = level_of(5)
    expected = torch.empty(2, 1, *GRID, dtype=torch.float64)
    for n in range(2):
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                x = level[n, :, row, column]
                total = torch.zeros((), dtype=torch.float64)
                for block in flow.module_list:
                    first, last = block.subnet.first, block.subnet.last
                    read = torch.cat([x[:3], code()[:, row, column]])
                    a = 0.1 * (last.weight @ (first.weight @ read + first.bias).clamp_min(0))
                    a = a + 0.1 * last.bias
                    s = ALPHA * torch.tanh(a[:2])
                    d = 0.2 * torch.log(1 + torch.exp(0.5 * block.global_scale[0]))
                    x = torch.cat([x[:3], x[3:] * torch.exp(s) + a[2:]])
                    x = block.w_perm @ (x * d + block.global_offset[0])
                    total = total + s.sum() + d.log().sum()
                total = total - 0.5 * (x**2).sum() - 5 * 0.9189385332046727
                expected[n, 0, row, column] = total / 5
    close(position_likelihoods(flow, level, code()), expected)


def test_the_sub_network_has_twice_as_many_hidden_values_as_inputs() -> None:
    subnet = build_position_flow(6, 1).module_list[0].subnet
    assert isinstance(subnet, LinearSubnetwork)
    assert subnet.first.weight.shape == (2 * (3 + CODE_CHANNELS), 3 + CODE_CHANNELS)
    assert subnet.last.weight.shape == (6, 2 * (3 + CODE_CHANNELS))


def test_every_block_but_the_last_rotates_and_follows_the_generator() -> None:
    flows = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(flows))
        flow = build_position_flow(7, 3)
        initialise_position_flow(flow, torch.Generator().manual_seed(seed))
        flows.append(flow)
    for name, value in flows[0].state_dict().items():
        assert torch.equal(value, flows[1].state_dict()[name]), name
    for block, other in zip(flows[0].module_list, flows[2].module_list, strict=True):
        assert not torch.equal(block.subnet.first.weight, other.subnet.first.weight)
        rotation = block.w_perm
        torch.testing.assert_close(rotation @ block.w_perm_inv, torch.eye(7), atol=1e-5, rtol=0)
        assert float(torch.linalg.det(rotation)) == pytest.approx(1, abs=1e-5)
        assert float(rotation.abs().max()) < 1 or block is flows[0].module_list[-1]
    assert torch.equal(flows[0].module_list[-1].w_perm, torch.eye(7))


def test_the_density_of_a_standard_normal() -> None:
    z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    expected = math.log(math.exp(-2.5) / (2 * math.pi)) / 2 + 1.5
    got = mean_log_likelihood(z, torch.tensor([3.0], dtype=torch.float64))
    assert float(got) == pytest.approx(expected)


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(("channels", "blocks"), [(2, 1), (5, 1), (6, 2), (7, 4), (16, 8)])
@torch.inference_mode()
def test_the_exported_flow_is_the_literal_one(channels: int, blocks: int) -> None:
    flow = flow_of(channels, blocks, seed=blocks)
    level = level_of(channels)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    density = torch.exp(position_likelihoods(flow, level, code()) - LARGEST)
    assert float(density.std()) > 1e-3 * float(density.mean())
    fused = FusedPositionFlow(flow, code(), LARGEST, CONSTANT)
    close(fused(level), CONSTANT - density, 1e-12)
    assert all(torch.equal(value, flow.state_dict()[name]) for name, value in before.items())


def graph_of(flow: Any, channels: int) -> tuple[Any, bytes]:
    """The exported form of a flow, and its graph with the input `level`."""
    fused = FusedPositionFlow(flow, code(), LARGEST, CONSTANT).float().eval()
    proto = trace(fused, torch.zeros(1, channels, *GRID), ("score",), dynamic=True)
    onnx.checker.check_model(proto, full_check=True)
    return fused, proto.SerializeToString()


def test_nodes_of_a_coupling() -> None:
    """One more coupling is four convolutions around its affine and its rotation."""
    counts = []
    for blocks in (2, 3):
        _, data = graph_of(flow_of(6, blocks), 6)
        counts.append(counted(onnx.load_model_from_string(data).graph.node))
    affine = {"Tanh": 1, "Mul": 2, "Exp": 1, "Add": 1}
    coupling = Counter({"Conv": 3, "Add": 1, "Clip": 1}) + Counter(affine)
    rotation = Counter({"Clip": 2, "Concat": 1, "Conv": 2})
    sum_of_bends = Counter({"Add": 1})
    assert counts[1] - counts[0] == coupling + rotation + sum_of_bends
    assert counts[1]["Split"] == 1
    assert not {"Gather", "Shape", "Reshape", "Transpose", "MatMul", "Gemm"} & set(counts[1])


@torch.inference_mode()
def test_fp16_is_finite_where_it_would_overflow() -> None:
    """The defect is beyond FP16 after some blocks; without islands and limits it is undefined."""
    flow = flow_of(8, 6)
    for block in flow.module_list:
        block.global_scale.uniform_(20, 40)
        block.subnet.last.bias[:4] = 50.0
    flow = flow.float()
    level = level_of(8).float()
    level[1] *= 1000
    z, _ = flow(level[1].flatten(1).T, [code().float().flatten(1).T])
    assert float(z.abs().max()) > 65504
    fused, data = graph_of(flow, 8)
    islands = fp32_islands(fused)
    name = onnx.load_model_from_string(data).graph.input[0].name
    got = RoundingEvaluator(to_fp16(data, islands))(**{name: level.numpy()})["score"]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1], CONSTANT, rtol=1e-6)  # the density is 0
    without = RoundingEvaluator(to_fp16(data, ()))(**{name: level.numpy()})
    assert not all(np.isfinite(value).all() for value in without.values())


def test_the_islands_are_the_affine_of_every_coupling_and_the_score() -> None:
    fused, _ = graph_of(flow_of(6, 2), 6)
    assert fp32_islands(fused) == ("/couplings.0/affine", "/couplings.1/affine", "/score")
