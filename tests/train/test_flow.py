"""Flows as they are trained: FrEIA's function, its likelihood, and how a flow is initialised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import GRID, KINDS, close, flow_of, literal_flow, points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flawline.train import loop
from flawline.train.blocks.attention import AttentionSubnetwork, Dropout
from flawline.train.blocks.flow import (
    build_flow,
    flow_forward,
    initialise_flow,
    latent_nll,
    permutation,
)
from flawline.train.methods.fastflow import ConvolutionSubnetwork

pytestmark = pytest.mark.torch
DRAWN: Any = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


# ---------------------------------------------------------------- forward and likelihood


@settings(max_examples=30, **DRAWN)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(2, 13),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_the_forward_is_freias(kind: str, channels: int, blocks: int, seed: int) -> None:
    flow, x = flow_of(kind, channels, blocks, seed), points(channels, seed)
    with torch.inference_mode():
        expected = flow(x)
        literal = literal_flow(flow, x)
        before = x.clone()
        z, log_det = flow_forward(flow, x)
    assert torch.equal(x, before)
    close(z, expected[0])
    close(log_det, expected[1])
    close(z, literal[0])
    close(log_det, literal[1])


@pytest.mark.parametrize(
    ("kind", "channels"), [("3x3", 3), ("3x3", 4), ("attention", 4), ("attention", 5)]
)
def test_the_log_determinant_is_that_of_the_jacobian(kind: str, channels: int) -> None:
    grid = (2, 3)
    flow, x = flow_of(kind, channels, 3, grid=grid), points(channels, n=2, grid=grid)
    _, log_det = flow_forward(flow, x)
    for one, expected in zip(x, log_det.detach(), strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: flow_forward(flow, v[None])[0][0], one
        )
        square = jacobian.reshape(one.numel(), one.numel())
        assert float(torch.linalg.slogdet(square)[1]) == pytest.approx(float(expected), rel=1e-9)


def test_the_likelihood_is_torchs() -> None:
    z, log_det = points(5, n=3), torch.tensor([1.0, -20, 300], dtype=torch.float64)
    expected = -torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1) - log_det
    close(latent_nll(z, log_det), expected, 1e-12)


def test_gradients_are_those_of_freias() -> None:
    flow, x = flow_of("attention", 6, 2), points(6)
    gradients = []
    for forward in (flow, lambda v: flow_forward(flow, v)):
        flow.zero_grad(set_to_none=True)
        latent_nll(*forward(x)).mean().backward()
        gradients.append({k: p.grad.clone() for k, p in flow.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 2 * (2 + 6 + 2)
    for key, expected in gradients[0].items():
        assert float(expected.abs().max()) > 0, key
        close(gradients[1][key], expected)


def test_under_autocast_the_state_keeps_its_type_and_little_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "_multiplies_bfloat16", lambda: True)
    flow, x = flow_of("3x3", 6, 3).float(), points(6).float()
    with torch.inference_mode():
        z, log_det = flow_forward(flow, x)
        half, half_det = flow_forward(flow, x, autocast=True)
        monkeypatch.setattr(loop, "_multiplies_bfloat16", lambda: False)
        whole, whole_det = flow_forward(flow, x, autocast=True)
    assert torch.equal(whole, z)
    assert torch.equal(whole_det, log_det)
    assert half.dtype == half_det.dtype == torch.float32
    assert 1e-5 < float((half - z).abs().max() / z.abs().max()) < 0.05
    assert float((half_det - log_det).abs().max()) < 0.05 * float(log_det.abs().max())


# ---------------------------------------------------------------- initialisation


def fresh(kind: str, seed: int, elsewhere: int) -> Any:
    """A flow initialised by `seed`; `elsewhere` is the seed of the global generators."""
    torch.manual_seed(elsewhere)
    legacy = np.random.get_state()  # noqa: NPY002 (FrEIA draws its permutations from it)
    np.random.seed(elsewhere)  # noqa: NPY002

    def subnetwork(_: int, c_in: int, c_out: int) -> Any:
        if kind == "attention":
            return AttentionSubnetwork(c_in, c_out, 8, 2, Dropout(0.2), GRID)
        return ConvolutionSubnetwork(c_in, c_out, 3)

    try:
        flow = build_flow(10, GRID, 3, subnetwork)
    finally:
        np.random.set_state(legacy)  # noqa: NPY002
    initialise_flow(flow, torch.Generator().manual_seed(seed))
    return flow


@pytest.mark.parametrize("kind", ["3x3", "attention"])
def test_only_the_generator_decides_how_a_flow_is_initialised(kind: str) -> None:
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
    initialise_flow(flow, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002


@pytest.mark.parametrize("channels", [2, 9, 64])
def test_permutations_are_permutations(channels: int) -> None:
    flow = build_flow(channels, (2, 2), 3, lambda _, i, o: ConvolutionSubnetwork(i, o, 1))
    initialise_flow(flow, torch.Generator().manual_seed(0))
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


def test_initial_weights_are_within_torchs_bounds() -> None:
    """Uniform within 1 / sqrt(inputs), bias as well."""
    flow = build_flow(32, (2, 2), 2, lambda _, i, o: ConvolutionSubnetwork(i, o, 3))
    initialise_flow(flow, torch.Generator().manual_seed(0))
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
        z, log_det = flow_forward(flow, x)
        back, inverse_det = flow(z, rev=True)
    close(back, x)
    close(-inverse_det, log_det)
