"""The flow on vectors: by hand, its log-determinant by autograd, and its exported form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks.flow import HIDDEN_CLAMP
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.vector_flow import (
    STATE_CLAMP,
    DenseSubnetwork,
    FusedVectorFlow,
    VectorFlow,
)

pytestmark = pytest.mark.torch


def flow(dimensions: int = 6, blocks: int = 3, seed: int = 0, gain: float = 4.0) -> VectorFlow:
    """A flow in float64 that stretches much more than an untrained one."""
    made = VectorFlow(dimensions, blocks, 16).double().eval()
    made.initialise(torch.Generator().manual_seed(seed))
    for name, parameter in made.named_parameters():
        if ".last." in name:
            parameter.data.mul_(gain)
    return made


def by_hand(made: VectorFlow, vector: Any) -> Any:
    """The latent of one vector, as the paper's formulas say."""

    def read(network: Any, half: Any) -> tuple[Any, Any]:
        for layer in (network.first, *network.inner):
            half = np.maximum(layer.weight.detach().numpy() @ half + layer.bias.detach().numpy(), 0)
        out = network.last.weight.detach().numpy() @ half + network.last.bias.detach().numpy()
        count = len(out) // 2
        return 3 * 0.636 * np.arctan(out[:count] / 3), out[count:]

    first_size = made.splits[0]
    for order, second_net, first_net in zip(
        made.orders.numpy(), made.from_second, made.from_first, strict=True
    ):
        vector = vector[order]
        first, second = vector[:first_size], vector[first_size:]
        log_scale, shift = read(second_net, second)
        first = first * np.exp(log_scale) + shift
        log_scale, shift = read(first_net, first)
        second = second * np.exp(log_scale) + shift
        vector = np.concatenate([first, second])
    return vector


@pytest.mark.parametrize("dimensions", [6, 7])
def test_the_latent_by_hand(dimensions: int) -> None:
    made = flow(dimensions)
    x = torch.randn(3, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        z, _ = made(x)
    for vector, latent in zip(x.numpy(), z.numpy(), strict=True):
        np.testing.assert_allclose(latent, by_hand(made, vector), rtol=1e-10)


def test_the_log_determinant_is_that_of_the_jacobian() -> None:
    made = flow()
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = torch.autograd.functional.jacobian(lambda v: made(v[None])[0][0], x)
    _, log_determinant = made(x[None])
    expected = float(torch.linalg.slogdet(jacobian)[1])
    assert float(log_determinant[0].detach()) == pytest.approx(expected, rel=1e-9)
    assert abs(expected) > 0.1


def test_a_half_block_stretches_by_at_most_e_to_the_three() -> None:
    made = DenseSubnetwork(2, 4, 2)
    made.last.bias.data.fill_(1e6)
    log_scale, _ = made(torch.zeros(1, 2))
    assert float(log_scale[0, 0].detach()) == pytest.approx(3 * 0.636 * math.pi / 2, rel=1e-4)


@pytest.mark.parametrize("dimensions", [6, 7])
def test_the_exported_form_has_the_same_latent(dimensions: int) -> None:
    made = flow(dimensions)
    fused = FusedVectorFlow(made).double()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, dimensions, dtype=torch.float64, generator=generator)
    # The second half is far away, so that the clamps of both forms have an effect.
    x[2:] *= 1e9
    with torch.inference_mode():
        expected, _ = made(x)
        got = fused(x)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    assert float(expected.abs().max()) == STATE_CLAMP


def test_hidden_values_are_clamped_in_both_forms() -> None:
    made = flow(blocks=1)
    for layer in made.modules():
        if isinstance(layer, DenseSubnetwork):
            layer.first.bias.data.fill_(10 * HIDDEN_CLAMP)
    unclamped = by_hand(made, np.ones(6))
    fused = FusedVectorFlow(made).double()
    x = torch.ones(1, 6, dtype=torch.float64)
    with torch.inference_mode():
        z, _ = made(x)
        got = fused(x)
    assert not np.allclose(z[0], unclamped)
    np.testing.assert_allclose(got[0], z[0], rtol=1e-11)


def test_permutations_and_weights_are_those_of_the_generator() -> None:
    torch.manual_seed(1)
    one, again, other = flow(seed=5), flow(seed=5), flow(seed=6)
    for order in one.orders:
        assert sorted(order.tolist()) == list(range(6))
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert not torch.equal(value, other.state_dict()[name]), name


def test_every_affine_map_is_an_island() -> None:
    islands = fp32_islands(FusedVectorFlow(flow(blocks=2)))
    halves = ("blocks.0/to_first", "blocks.0/to_second", "blocks.1/to_first", "blocks.1/to_second")
    assert islands == tuple(f"/{half}/affine" for half in halves)
