"""The flow of CS-Flow: the literal form against its formulas, and the exported one against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import close
from torch.nn import functional as F

from flawline.train.blocks.cross_scale_flow import CrossConvolutions, CrossScaleFlow
from flawline.train.blocks.fused_cross_scale_flow import FusedCrossScaleFlow

pytestmark = pytest.mark.torch
GRIDS = ((8, 12), (4, 6), (2, 3))


def scales_of(channels: int, seed: int = 0, grids: Any = GRIDS, factor: float = 1.0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    scales = []
    for height, width in grids:
        shape = (2, channels, height, width)
        scales.append(factor * torch.randn(shape, generator=generator, dtype=torch.float64))
    return scales


@torch.no_grad()
def trained_like(flow: CrossScaleFlow, seed: int = 0, bend: float = 3.0) -> CrossScaleFlow:
    """The flow in float64 as a long training might leave it: gains of both signs, bent scales."""
    generator = torch.Generator().manual_seed(seed)
    flow.initialise(generator)
    for module in flow.modules():
        if isinstance(module, CrossConvolutions):
            module.gains.copy_(torch.tensor([1.2, -0.7, 0.4]) * bend)
    return flow.double().eval()


# ---------------------------------------------------------------- the literal form


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_sub_network_by_hand(kernel: int) -> None:
    """Each scale also reads the finer one, with a stride, and the coarser one, upsampled."""
    torch.manual_seed(0)
    made = CrossConvolutions(4, 6, 5, kernel).double()
    made.gains.data.copy_(torch.tensor([0.5, -1.5, 2.0]))
    x = scales_of(4)

    def convolve(layer: Any, value: Any, stride: int = 1) -> Any:
        return F.conv2d(value, layer.weight, layer.bias, stride, kernel // 2)

    def larger(value: Any) -> Any:
        size = (2 * value.shape[2], 2 * value.shape[3])
        return F.interpolate(value, size=size, mode="bilinear", align_corners=False)

    y = []
    for layer, value in zip(made.first, x, strict=True):
        hidden = convolve(layer, value)
        y.append(torch.where(hidden > 0, hidden, 0.1 * hidden))
    own = [convolve(layer, value) for layer, value in zip(made.last, y, strict=True)]
    up = [convolve(made.from_coarser[i], larger(y[i + 1])) for i in (0, 1)]
    down = [convolve(made.from_finer[i], y[i], 2) for i in (0, 1)]
    expected = [
        (own[0] + up[0]) * 0.5,
        (own[1] + down[0] + up[1]) * -1.5,
        (own[2] + down[1]) * 2.0,
    ]
    for got, wanted in zip(made(x), expected, strict=True):
        close(got.detach(), wanted.detach())


def test_hidden_values_saturate_in_both_directions() -> None:
    made = CrossConvolutions(4, 6, 5, 3).double()
    made.gains.data.fill_(1)
    small, large = (made(scales_of(4, factor=factor)) for factor in (1e4, 1e9))
    for one, other in zip(small, large, strict=True):
        assert float(other.detach().abs().max()) < 1e4
        assert one.shape == other.shape


def test_a_block_by_hand() -> None:
    """Permutation by the block's number; the first half by the second, then the second by it."""
    flow = trained_like(CrossScaleFlow(6, 8, (3, 5)))
    scales = scales_of(6)
    latents, log_determinant = flow(scales)
    expected = scales
    total = torch.zeros(2, dtype=torch.float64)
    for number, block in enumerate(flow.blocks):
        random = np.random.RandomState(number)
        permuted = [x[:, random.permutation(6)] for x in expected]
        firsts = [x[:, :3] for x in permuted]
        seconds = [x[:, 3:] for x in permuted]
        for halves, others, net in (
            (firsts, seconds, block.to_first),
            (seconds, firsts, block.to_second),
        ):
            for scale, r in enumerate(net(others)):
                s = 3 * 0.636 * torch.atan(r[:, :3] / 3)
                halves[scale] = halves[scale] * torch.exp(s) + r[:, 3:]
                total += s.sum((1, 2, 3))
        expected = [torch.cat(pair, 1) for pair in zip(firsts, seconds, strict=True)]
    for got, wanted in zip(latents, expected, strict=True):
        close(got.detach(), wanted.detach())
    close(log_determinant.detach(), total.detach())


def test_the_log_determinant_is_that_of_the_jacobian() -> None:
    grids = ((4, 4), (2, 2), (1, 1))
    flow = trained_like(CrossScaleFlow(3, 4, (3,)), bend=0.5)
    scales = [scale[:1] for scale in scales_of(3, grids=grids)]
    sizes = [scale.numel() for scale in scales]

    def vector(flat: Any) -> Any:
        parts = torch.split(flat, sizes)
        shaped = [part.view_as(scale) for part, scale in zip(parts, scales, strict=True)]
        return torch.cat([latent.flatten() for latent in flow(shaped)[0]])

    flat = torch.cat([scale.flatten() for scale in scales])
    jacobian = torch.autograd.functional.jacobian(vector, flat)
    expected = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(flow(scales)[1][0], expected)


def test_an_untrained_flow_only_permutes() -> None:
    flow = CrossScaleFlow(6, 8, (3, 3)).double()
    flow.initialise(torch.Generator().manual_seed(0))
    scales = scales_of(6)
    latents, log_determinant = flow(scales)
    assert torch.equal(log_determinant, torch.zeros(2, dtype=torch.float64))
    for scale, latent in zip(scales, latents, strict=True):
        assert not torch.equal(scale, latent)
        assert torch.equal(scale.sort(1).values, latent.sort(1).values)


def test_permutations_differ_by_block_and_by_scale_and_weights_follow_the_generator() -> None:
    flow = CrossScaleFlow(16, 8, (3, 3))
    orders = torch.cat([block.orders for block in flow.blocks])
    assert len(torch.unique(orders, dim=0)) == 6
    states = []
    for seed in (0, 0, 1):
        flow.initialise(torch.Generator().manual_seed(seed))
        states.append(flow.blocks[1].to_first.first[0].weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("channels", [6, 7])
@pytest.mark.parametrize("factor", [1.0, 1e5], ids=["usual", "clamped"])
def test_fused_equals_literal(channels: int, factor: float) -> None:
    """Also where latents and hidden values are clamped."""
    flow = trained_like(CrossScaleFlow(channels, 8, (3, 3, 5)))
    mean = torch.linspace(-1, 1, 3 * channels, dtype=torch.float64).view(3, -1)
    std = torch.linspace(0.5, 2, 3 * channels, dtype=torch.float64).view(3, -1)
    scales = scales_of(channels, factor=factor)
    with torch.inference_mode():
        energies = FusedCrossScaleFlow(flow, mean, std).double()(scales)
        standardised = []
        for number, scale in enumerate(scales):
            shifted = scale - mean[number, :, None, None]
            standardised.append(shifted / std[number, :, None, None])
        latents, _ = flow(standardised)
    for energy, latent in zip(energies, latents, strict=True):
        close(energy, latent.square().mean(1, keepdim=True) / 2)
    assert (float(latents[0].abs().max()) == 3e4) == (factor > 1)
