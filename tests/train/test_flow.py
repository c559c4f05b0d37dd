"""Flows: what is trained is FrEIA's, what is exported is the same function, and both are the formulas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flawline.export.graphs.to_onnx import trace
from flawline.train import loop
from flawline.train.blocks import attention
from flawline.train.blocks.flow import (
    FORMS,
    Energy,
    FusedFlow,
    Likelihood,
    build_flow,
    initialise,
    latent,
    negative_log_likelihood,
    permutation,
)
from flawline.train.methods import fastflow

pytestmark = pytest.mark.torch
GRID = (3, 4)
KINDS = ("1x1", "3x3", "alternate", "attention")
DRAWN: Any = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
ALPHA = 2.0  # of the clamp, methods.md 2.3


def flow_of(
    kind: str, channels: int, blocks: int, seed: int = 0, grid: tuple[int, int] = GRID
) -> Any:
    """A float64 flow as a long training might leave it: each of its constants is far from where it begins."""

    def subnet(number: int, c_in: int, c_out: int) -> nn.Module:
        if kind == "attention":
            return attention.SubNet(c_in, c_out, 8, 2, 0.2, grid)
        return fastflow.SubNet(
            c_in, c_out, 1 if kind == "1x1" or (kind == "alternate" and number % 2) else 3
        )

    torch.manual_seed(seed)
    return trained_like(build_flow(channels, grid, blocks, subnet), seed).double().eval()


@torch.no_grad()
def trained_like(flow: Any, seed: int) -> Any:
    """The flow with every parameter drawn: scales from 0.2 to 2.5, offsets, log-scales that the clamp bends."""
    generator = torch.Generator().manual_seed(seed)
    initialise(flow, generator)
    for name, parameter in flow.named_parameters():
        if name.endswith("global_scale"):
            parameter.uniform_(0, 25, generator=generator)
        elif name.endswith("global_offset"):
            parameter.normal_(0, 1, generator=generator)
        elif name.endswith("original0"):  # of the normed weights
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("original1"):
            parameter.normal_(0, 1, generator=generator)
        elif ".last." in name:
            parameter.mul_(15)
    return flow


def literal_flow(flow: Any, x: Tensor, divided: bool = False) -> tuple[Tensor, Tensor]:
    """methods.md 2.3, step by step, channel by channel: z and the log-determinant."""
    log_det = torch.zeros(len(x), dtype=x.dtype)
    for block in flow.module_list:
        channels = x.shape[1]
        half = channels - channels // 2
        x1, x2 = x[:, :half], x[:, half:]
        a = 0.1 * block.subnet(x1)
        a_s, a_t = a[:, : channels // 2], a[:, channels // 2 :]
        s = ALPHA * torch.tanh(a_s / ALPHA) if divided else ALPHA * torch.tanh(a_s)
        u = torch.cat([x1, x2 * torch.exp(s) + a_t], 1)
        g, o = block.global_scale.flatten(), block.global_offset.flatten()
        d = 0.1 * torch.log(1 + torch.exp(0.5 * g)) / 0.5
        permuted = torch.empty_like(u)
        for target, row in enumerate(block.w_perm.flatten(1)):
            source = int(row.nonzero())
            permuted[:, target] = u[:, source] * d[source] + o[source]
        log_det = log_det + s.sum((1, 2, 3)) + x.shape[2] * x.shape[3] * d.log().sum()
        x = permuted
    return x, log_det


def order_of(blocks: Sequence[Any], channels: int) -> Tensor:
    """Which channel of the input lies where after the blocks: numbers sent through their dense permutations."""
    numbers = torch.arange(channels, dtype=torch.float64)
    for block in blocks:
        numbers = block.w_perm.flatten(1).double() @ numbers
    return numbers.long()


def points(channels: int, seed: int = 0, n: int = 2, grid: tuple[int, int] = GRID) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(n, channels, *grid, dtype=torch.float64, generator=generator)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got - expected).abs().max()) < tolerance * float(expected.abs().max())


# ---------------------------------------------------------------- the exported form


@settings(max_examples=60, **DRAWN)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(2, 13),
    blocks=st.integers(1, 5),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 10_000),
)
def test_the_exported_flow_is_freias(
    kind: str, channels: int, blocks: int, form: str, seed: int
) -> None:
    """Its latent up to a scale and the order of the channels; its two scores, which know of both."""
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
        close(Energy(fused.scale)(got), z.square().mean(1, keepdim=True) / 2)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        close(Likelihood(fused.scale)(got), -density.mean(1, keepdim=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_other_clamp_convention(kind: str, form: str) -> None:
    """FrEIA's since August 2023; the literal flow is held to FrEIA 0.2 by its own convention."""
    flow, x = flow_of(kind, 7, 3, seed=1), points(7)
    fused = FusedFlow(flow, form, divided=True)
    with torch.inference_mode():
        close(literal_flow(flow, x)[0], flow(x)[0])
        expected = literal_flow(flow, x, divided=True)[0]
        order = order_of(flow.module_list if form == "padded" else flow.module_list[-1:], 7)
        close((fused(x) * fused.scale[:, None, None])[:, order], expected)
        assert float((expected - flow(x)[0]).abs().max()) > 0.01  # so the two are told apart here


@torch.no_grad()
def test_what_is_drawn_here_is_far_from_where_training_begins() -> None:
    """Or the tests above would hold for a rewrite that forgets a scale, an offset or the clamp."""
    fresh = build_flow(9, GRID, 3, lambda _, i, o: fastflow.SubNet(i, o, 3))
    drawn, x = flow_of("3x3", 9, 3), points(9)
    for block, first in zip(drawn.module_list, fresh.module_list, strict=True):
        assert torch.equal(first.global_offset, torch.zeros(1, 9, 1, 1))
        assert float(first.global_scale_activation(first.global_scale).sub(1).abs().max()) < 1e-5
        scale = block.global_scale_activation(block.global_scale)
        assert float(scale.max() / scale.min()) > 3
        assert float(block.global_offset.abs().mean()) > 0.3
        a = 0.1 * block.subnet(x[:, :5])[:, :4]
        assert float((torch.tanh(a) - a).abs().max()) > 0.02


def test_the_padded_form_touches_what_the_block_touches_and_no_more() -> None:
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


def test_an_exported_flow_does_not_change_what_it_was_made_of() -> None:
    flow = flow_of("attention", 6, 2)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    for form in FORMS:
        FusedFlow(flow, form)(points(6))
    assert all(torch.equal(v, flow.state_dict()[k]) for k, v in before.items())


# ---------------------------------------------------------------- the graph of a coupling

AFFINE = {"Tanh": 1, "Mul": 2, "Exp": 1, "Add": 1}
# What bounds the latent that is read, a convolution, a ReLU that saturates, log-scale and shift.
CONVOLUTIONAL = Counter({"Conv": 3, "Clip": 2}) + Counter(AFFINE)
# Two bounds; gate, convolution, two gates; code and residual; query, key, value and two products around the softmax.
ATTENTION = Counter(
    {"Clip": 2, "Conv": 4, "Add": 2, "Reshape": 2, "Transpose": 2, "MatMul": 5, "Softmax": 1},
) + Counter(AFFINE)
GATHERED = Counter({"Gather": 2, "Add": 1, "Concat": 1})
MULTIPLIED = Counter({"Split": 1, "Conv": 1, "Concat": 1})


class Alone(nn.Module):
    def __init__(self, flow: FusedFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(x)


def exported_kinds(kind: str, form: str, blocks: int) -> Counter[str]:
    """Nodes that run: constants are no work."""
    flow = Alone(FusedFlow(flow_of(kind, 6, blocks).float(), form).float())
    proto = trace(flow, torch.zeros(1, 6, *GRID), ("z",), dynamic=True)
    onnx.checker.check_model(proto, full_check=True)
    return counted(proto.graph.node)


def counted(nodes: Any) -> Counter[str]:
    return Counter(node.op_type for node in nodes if node.op_type not in ("Constant", "Identity"))


@pytest.mark.parametrize(
    ("kind", "form", "expected", "total"),
    [
        ("3x3", "padded", CONVOLUTIONAL, 10),
        ("3x3", "gathered", CONVOLUTIONAL + GATHERED, 14),
        ("3x3", "multiplied", CONVOLUTIONAL + MULTIPLIED, 13),
        ("attention", "padded", ATTENTION, 23),
        ("attention", "gathered", ATTENTION + GATHERED, 27),
        ("attention", "multiplied", ATTENTION + MULTIPLIED, 26),
    ],
)
def test_nodes_of_a_coupling(kind: str, form: str, expected: Counter[str], total: int) -> None:
    """What a further coupling adds. The first one's halves are split, the last one's joined, not permuted."""
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


# ---------------------------------------------------------------- what training runs


@settings(max_examples=30, **DRAWN)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(2, 13),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_latent_is_freias_forward(kind: str, channels: int, blocks: int, seed: int) -> None:
    flow, x = flow_of(kind, channels, blocks, seed), points(channels, seed)
    with torch.inference_mode():
        expected = flow(x)
        literal = literal_flow(flow, x)
        before = x.clone()
        z, log_det = latent(flow, x)
    assert torch.equal(x, before)
    close(z, expected[0])
    close(log_det, expected[1])
    close(log_det, literal[1])


@pytest.mark.parametrize(
    ("kind", "channels"), [("3x3", 3), ("3x3", 4), ("attention", 4), ("attention", 5)]
)
def test_the_log_determinant_is_that_of_the_jacobian(kind: str, channels: int) -> None:
    grid = (2, 3)
    flow, x = flow_of(kind, channels, 3, grid=grid), points(channels, n=2, grid=grid)
    _, log_det = latent(flow, x)
    for one, told in zip(x, log_det.detach(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: latent(flow, v[None])[0][0], one)
        square = jacobian.reshape(one.numel(), one.numel())
        assert float(torch.linalg.slogdet(square)[1]) == pytest.approx(float(told), rel=1e-9)


def test_the_likelihood_is_torchs() -> None:
    z, log_det = points(5, n=3), torch.tensor([1.0, -20, 300], dtype=torch.float64)
    expected = -torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1) - log_det
    close(negative_log_likelihood(z, log_det), expected, 1e-12)


def test_gradients_of_latent_are_those_of_freias() -> None:
    flow, x = flow_of("attention", 6, 2), points(6)
    found = []
    for forward in (flow, lambda v: latent(flow, v)):
        flow.zero_grad(set_to_none=True)
        negative_log_likelihood(*forward(x)).mean().backward()
        found.append({k: p.grad.clone() for k, p in flow.named_parameters() if p.requires_grad})
    assert len(found[0]) == 2 * (2 + 6 + 2)
    for key, expected in found[0].items():
        assert float(expected.abs().max()) > 0, key
        close(found[1][key], expected)


def test_under_autocast_the_state_keeps_its_type_and_little_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "_multiplies_bfloat16", lambda: True)
    flow, x = flow_of("3x3", 6, 3).float(), points(6).float()
    with torch.inference_mode():
        z, log_det = latent(flow, x)
        half, half_det = latent(flow, x, autocast=True)
        monkeypatch.setattr(loop, "_multiplies_bfloat16", lambda: False)
        whole, whole_det = latent(flow, x, autocast=True)
    assert torch.equal(whole, z)
    assert torch.equal(whole_det, log_det)
    assert half.dtype == half_det.dtype == torch.float32
    assert 1e-5 < float((half - z).abs().max() / z.abs().max()) < 0.05
    assert float((half_det - log_det).abs().max()) < 0.05 * float(log_det.abs().max())


# ---------------------------------------------------------------- how it begins


def fresh(kind: str, seed: int, elsewhere: int) -> Any:
    """A flow initialised by `seed`, whose global generators stood at `elsewhere`."""
    torch.manual_seed(elsewhere)
    legacy = np.random.get_state()  # noqa: NPY002 (FrEIA draws its permutations from it)
    np.random.seed(elsewhere)  # noqa: NPY002
    try:
        if kind == "attention":
            flow = build_flow(10, GRID, 3, lambda _, i, o: attention.SubNet(i, o, 8, 2, 0.2, GRID))
        else:
            flow = build_flow(10, GRID, 3, lambda _, i, o: fastflow.SubNet(i, o, 3))
    finally:
        np.random.set_state(legacy)  # noqa: NPY002
    initialise(flow, torch.Generator().manual_seed(seed))
    return flow


@pytest.mark.parametrize("kind", ["3x3", "attention"])
def test_a_flow_begins_as_its_generator_says_and_nothing_else(kind: str) -> None:
    one, again, other = fresh(kind, 0, 0), fresh(kind, 0, 1), fresh(kind, 1, 0)
    for key, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    constant = ("global_scale", "global_offset", "code", "original0", ".tmp_var")
    same = [k for k, v in one.state_dict().items() if torch.equal(v, other.state_dict()[k])]
    assert not [k for k in same if not k.endswith(constant)]


def test_initialising_leaves_the_global_generators_alone() -> None:
    flow = flow_of("attention", 6, 2)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    initialise(flow, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002


@pytest.mark.parametrize("channels", [2, 9, 64])
def test_permutations_are_permutations(channels: int) -> None:
    flow = build_flow(channels, (2, 2), 3, lambda _, i, o: fastflow.SubNet(i, o, 1))
    initialise(flow, torch.Generator().manual_seed(0))
    orders = []
    for block in flow.module_list:
        matrix = block.w_perm.flatten(1)
        assert torch.equal(matrix.sum(0), torch.ones(channels))
        assert torch.equal(matrix.sum(1), torch.ones(channels))
        assert set(matrix.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(block.w_perm_inv.flatten(1), matrix.T)
        numbers = torch.arange(channels, dtype=torch.float32)
        assert torch.equal(permutation(block), (matrix @ numbers).long())
        orders.append(permutation(block).tolist())
    if channels > 2:
        assert len({tuple(order) for order in orders}) == 3


def test_weights_begin_within_torchs_bounds() -> None:
    """Uniform within 1 / sqrt(inputs), bias as well."""
    flow = build_flow(32, (2, 2), 2, lambda _, i, o: fastflow.SubNet(i, o, 3))
    initialise(flow, torch.Generator().manual_seed(0))
    for block in flow.module_list:
        for layer in (block.subnet.first, block.subnet.last):
            bound = 1 / math.sqrt(16 * 9)
            for values in (layer.weight.detach(), layer.bias.detach()):
                assert 0.8 * bound < float(values.abs().max()) <= bound
            assert float(layer.weight.detach().std()) == pytest.approx(
                bound / math.sqrt(3), rel=0.1
            )


def test_a_flow_is_inverted_exactly() -> None:
    flow, x = flow_of("3x3", 8, 2), points(8)
    with torch.inference_mode():
        z, log_det = latent(flow, x)
        back, inverse_det = flow(z, rev=True)
    close(back, x)
    close(-inverse_det, log_det)
