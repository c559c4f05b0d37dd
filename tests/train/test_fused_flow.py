"""Flows in the exported form: the same function as FrEIA's, with the fewest nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import ATTENTION, CONVOLUTIONAL, GRID, KINDS, close, counted, flow_of, points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flawline.export.graphs.to_onnx import trace
from flawline.train.blocks.flow import build_flow, permutation
from flawline.train.blocks.flow_scores import fused_score, literal_score
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.fused_flow import FLOW_FORMS, FusedFlow
from flawline.train.methods.fastflow import ConvolutionSubnetwork

pytestmark = pytest.mark.torch
DRAWN: Any = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def order_of(blocks: Sequence[Any], channels: int) -> Tensor:
    """The channels of the input in their order after the blocks, by dense permutations."""
    numbers = torch.arange(channels, dtype=torch.float64)
    for block in blocks:
        numbers = block.w_perm.flatten(1).double() @ numbers
    return numbers.long()


# ---------------------------------------------------------------- the exported form


@settings(max_examples=60, **DRAWN)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(2, 13),
    blocks=st.integers(1, 5),
    form=st.sampled_from(FLOW_FORMS),
    seed=st.integers(0, 10_000),
)
def test_the_exported_flow_is_freias(
    kind: str, channels: int, blocks: int, form: str, seed: int
) -> None:
    """Its latent up to a scale and the order of the channels, and both scores exactly."""
    flow = flow_of(kind, channels, blocks, seed)
    fused = FusedFlow(flow, form)
    x = points(channels, seed)
    with torch.inference_mode():
        z = flow(x)[0]
        got = fused(x)
        scaled = got * fused.scale[:, None, None]
        # Padded: as the input's. Otherwise as before the last permutation.
        order = order_of(flow.module_list if form == "padded" else flow.module_list[-1:], channels)
        close(scaled[:, order], z)
        for by_energy in (True, False):
            score = fused_score(fused.scale, by_energy)(got)
            close(score[:, 0], literal_score(z, by_energy))


@pytest.mark.parametrize("form", FLOW_FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_flow_is_freias_far_from_good_images(kind: str, form: str) -> None:
    """Latents of defects are limited at the same values in both, though one lacks its scale."""
    flow = flow_of(kind, 6, 4, seed=1)
    fused = FusedFlow(flow, form)
    x = 1e5 * points(6, seed=1)
    with torch.inference_mode():
        z = flow(x)[0]
        order = order_of(flow.module_list if form == "padded" else flow.module_list[-1:], 6)
        close((fused(x) * fused.scale[:, None, None])[:, order], z)


@torch.no_grad()
def test_the_drawn_flows_are_far_from_initial_ones() -> None:
    """Otherwise a rewrite that forgets a scale, an offset or the clamp would pass."""
    fresh = build_flow(9, GRID, 3, lambda _, i, o: ConvolutionSubnetwork(i, o, 3))
    drawn, x = flow_of("3x3", 9, 3), points(9)
    for block, first in zip(drawn.module_list, fresh.module_list, strict=True):
        assert torch.equal(first.global_offset, torch.zeros(1, 9, 1, 1))
        assert float(first.global_scale_activation(first.global_scale).sub(1).abs().max()) < 1e-5
        scale = block.global_scale_activation(block.global_scale)
        assert float(scale.max() / scale.min()) > 3
        assert float(block.global_offset.abs().mean()) > 0.3
        a = 0.1 * block.subnet(x[:, :5])[:, :4]
        assert float((torch.tanh(a) - a).abs().max()) > 0.02


def test_the_padded_form_reads_and_writes_what_the_block_does() -> None:
    flow = flow_of("3x3", 7, 2)
    fused: Any = FusedFlow(flow, "padded")
    seen = torch.arange(7)
    for block, coupling in zip(flow.module_list, fused.couplings, strict=True):
        passive, active = seen[:4], seen[4:]
        assert coupling.first.weight.shape[1] == coupling.shift.weight.shape[0] == 7
        assert not coupling.first.weight[:, active].any()
        assert not coupling.log_scale.weight[passive].any()
        assert not coupling.log_scale.bias[passive].any()
        assert not coupling.shift.weight[passive].any()
        assert coupling.first.weight[:, passive].abs().amin((0, 2, 3)).max() > 0
        seen = seen[permutation(block)]


def test_exporting_does_not_change_the_flow() -> None:
    flow = flow_of("attention", 6, 2)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    for form in FLOW_FORMS:
        FusedFlow(flow, form)(points(6))
    assert all(torch.equal(v, flow.state_dict()[k]) for k, v in before.items())


# ---------------------------------------------------------------- the graph of a coupling

GATHERED = Counter({"Gather": 2, "Add": 1, "Concat": 1})
MULTIPLIED = Counter({"Split": 1, "Conv": 1, "Concat": 1})


class Alone(nn.Module):
    def __init__(self, flow: FusedFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(x)


def exported_kinds(kind: str, form: str, blocks: int) -> Counter[str]:
    """Nodes of a flow alone, by type."""
    flow = Alone(FusedFlow(flow_of(kind, 6, blocks).float(), form).float())
    proto = trace(flow, torch.zeros(1, 6, *GRID), ("z",), dynamic=True)
    onnx.checker.check_model(proto, full_check=True)
    return counted(proto.graph.node)


@pytest.mark.parametrize(
    ("kind", "form", "expected", "total"),
    [
        ("3x3", "padded", CONVOLUTIONAL, 11),
        ("3x3", "gathered", CONVOLUTIONAL + GATHERED, 15),
        ("3x3", "multiplied", CONVOLUTIONAL + MULTIPLIED, 14),
        ("attention", "padded", ATTENTION, 24),
        ("attention", "gathered", ATTENTION + GATHERED, 28),
        ("attention", "multiplied", ATTENTION + MULTIPLIED, 27),
    ],
)
def test_nodes_of_a_coupling(kind: str, form: str, expected: Counter[str], total: int) -> None:
    """The nodes of one more coupling; the first one splits, the last one joins only."""
    two, three = exported_kinds(kind, form, 2), exported_kinds(kind, form, 3)
    assert three - two == expected
    assert expected.total() == total
    ends = {
        "padded": {},
        "gathered": {"Gather": -2, "Split": 1},
        "multiplied": {"Conv": -1, "Add": 1},
    }
    both = Counter({k: 2 * v for k, v in expected.items()})
    both.update(ends[form])
    assert two == +both


@pytest.mark.parametrize(
    ("form", "last", "inner"),
    [
        ("padded", ["affine"], ["affine"]),
        ("gathered", ["affine", "move"], ["affine", "move"]),
        ("multiplied", ["affine", "move"], ["affine", "permute"]),
    ],
)
def test_the_latent_is_computed_in_fp32(form: str, last: list[str], inner: list[str]) -> None:
    flow = Alone(FusedFlow(flow_of("3x3", 6, 3), form))
    expected = [f"/flow/couplings.{number}/{part}" for number in (0, 1) for part in inner]
    expected += [f"/flow/couplings.2/{part}" for part in last]
    assert sorted(fp32_islands(flow)) == sorted(expected)


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="known: padded, gathered, multiplied"):
        FusedFlow(flow_of("3x3", 6, 2), "dense")
