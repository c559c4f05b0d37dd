"""The exact rewrites that methods share, over drawn settings, and those of whole networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images, small_simplenet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.fused import (
    SmoothUpsample,
    Upsample,
    fold_batchnorm,
    grouped_convolution,
    patch_stencils,
    pool_matrix,
    resize_matrix,
)

pytestmark = pytest.mark.torch
drawn = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def pooled_patches(levels: tuple[Any, Any], level_dim: int, target_dim: int) -> Any:
    """Patch features [positions, target_dim] of two levels [C, h, w], as the papers pool them.

    Per level: unfold, pool 9C to level_dim; then pool both together to target_dim.
    """
    pooled = []
    for level in levels:
        patches = F.unfold(level[None], 3, padding=1).transpose(1, 2)
        pooled.append(F.adaptive_avg_pool1d(patches, level_dim))
    return F.adaptive_avg_pool1d(torch.cat(pooled, 2), target_dim)[0]


@drawn
@given(
    channels=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_stencils_are_the_pooled_patches(channels: Any, dims: Any, grid: Any) -> None:
    levels = tuple(torch.randn(c, *grid, dtype=torch.float64) for c in channels)
    total = 0
    for kernel, level in zip(patch_stencils(channels, *dims), levels, strict=True):
        total = total + grouped_convolution(kernel)(level[None])
    expected = pooled_patches(levels, *dims)
    torch.testing.assert_close(total[0].flatten(1).T, expected, **EXACT)


@drawn
@given(
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_upsampling_is_bilinear_for_any_sizes(source: Any, target: Any) -> None:
    x = torch.randn(2, 3, *source, dtype=torch.float64)
    expected = F.interpolate(x, size=target, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Upsample(source, target).double()(x), expected, **EXACT)


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
    got = SmoothUpsample(source, target, sigma)(x)[0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


@drawn
@given(st.integers(1, 9), st.integers(1, 20), st.booleans())
def test_the_resize_matrix_is_bilinear_with_and_without_aligned_corners(
    n_in: int, n_out: int, align_corners: bool
) -> None:
    x = torch.randn(1, 1, 1, n_in, dtype=torch.float64)
    expected = F.interpolate(x, size=(1, n_out), mode="bilinear", align_corners=align_corners)
    got = resize_matrix(n_in, n_out, align_corners) @ x[0, 0, 0]
    torch.testing.assert_close(got, expected[0, 0, 0], **EXACT)


@drawn
@given(st.integers(1, 30), st.integers(1, 30))
def test_the_pool_matrix_is_adaptive_pooling(n_in: int, n_out: int) -> None:
    x = torch.randn(2, n_in, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x[:, None], n_out)[:, 0]
    torch.testing.assert_close(x @ pool_matrix(n_in, n_out).T, expected, **EXACT)


@pytest.mark.parametrize(
    ("channels", "groups"), [((128, 256), (64, 64)), ((512, 1024), (256, 256))]
)
def test_the_official_setting_has_the_groups_of_the_closed_form(channels: Any, groups: Any) -> None:
    """D1 = D2 over 9C in whole windows: every 2 channels of layer2 and every 4 of layer3 make 3."""
    dim = 3 * channels[0]
    for kernel, expected in zip(patch_stencils(channels, dim, dim), groups, strict=True):
        conv = grouped_convolution(kernel[kernel.flatten(1).abs().sum(1) > 0])
        assert conv.groups == expected
        assert conv.out_channels == 3 * expected


# ---------------------------------------------------------------- whole networks


@settings(drawn, max_examples=8)
@given(
    size=st.tuples(st.integers(64, 100), st.integers(64, 100)),
    dims=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    batch=st.integers(1, 3),
)
def test_fused_equals_literal_for_drawn_settings(size: Any, dims: Any, batch: int) -> None:
    model = small_simplenet(level=dims[0], target=dims[1], size=64)
    other = type(model)(replace(model.settings, geometry=Geometry("stretch", *size)))
    other.load_state_dict(model.state_dict())
    other = other.double().eval()
    image = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        literal = other(image)
        fused = other.fused()(image)
    for a, b in zip(literal, fused, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9 * float(literal[1].std()))


def test_the_tail_is_a_sum_of_signs_in_their_order() -> None:
    model = small_simplenet()
    tail = model.fused().tail.weight.flatten()
    assert set(tail.tolist()) == {-1.0, 1.0}
    assert (tail.diff() <= 0).all()
    last = model.discriminator[3].weight
    assert int((tail < 0).sum()) == int((last > 0).sum())


def test_a_hidden_unit_without_weight_is_harmless() -> None:
    model = small_simplenet().double()
    model.discriminator[3].weight.data[0, 3] = 0.0
    with torch.inference_mode():
        torch.testing.assert_close(
            model.fused()(random_images())[1], model(random_images())[1], **EXACT
        )


class _Doubling(nn.Module):
    """A transposed convolution, whose weights have the output channels second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(3, 4, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return self.bn1(self.conv1(x))


def test_a_batchnorm_is_folded_into_a_transposed_convolution() -> None:
    module = _Doubling().double().eval()
    module.bn1.running_mean.normal_()
    module.bn1.running_var.uniform_(0.5, 2)
    nn.init.normal_(module.bn1.weight)
    nn.init.normal_(module.bn1.bias)
    folded = fold_batchnorm(module)
    assert isinstance(folded.bn1, nn.Identity)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(folded(x), module(x), **EXACT)


class _Unnamed(nn.Module):
    """A BatchNorm whose name does not say which convolution it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)


def test_a_batchnorm_that_cannot_be_folded_is_an_error() -> None:
    message = "_Unnamed: the BatchNorm norm cannot be folded; name it bn1 after a convolution conv1"
    with pytest.raises(TrainError, match=message):
        fold_batchnorm(_Unnamed())
