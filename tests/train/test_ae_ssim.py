"""AE-SSIM against its specification: the network, the training and the exported graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method, random_images
from oracles import assert_fused_equals_literal
from torch.utils.flop_counter import FlopCounterMode

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.auto_encoder import AutoEncoder
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.structural_similarity import GaussianMean, similarity, uniform_mean
from flawline.train.methods.ae_ssim import AESSIM, AESSIMSettings

pytestmark = pytest.mark.torch
SIZE = 64


def unfitted(size: tuple[int, int] = (SIZE, SIZE), **settings: Any) -> AESSIM:
    torch.manual_seed(0)
    return AESSIM(AESSIMSettings("", Geometry("stretch", *size), **settings)).eval()


# ---------------------------------------------------------------- the network

AUTHORS_128 = [
    (3, 32, 4), (32, 32, 4), (32, 32, 3), (32, 64, 4), (64, 64, 3), (64, 128, 4), (128, 64, 3),
    (64, 32, 3), (32, 100, 8),
]  # fmt: skip


@pytest.mark.parametrize(("side", "more"), [(128, 0), (256, 1)])
def test_the_network_is_that_of_the_authors(side: int, more: int) -> None:
    """Channels before and after, and the side of the kernel, of every convolution."""
    network = AutoEncoder(side, side)
    layers = AUTHORS_128[:1] + more * [(32, 32, 4)] + AUTHORS_128[1:]
    encoder = [layer for layer in network.encoder if isinstance(layer, torch.nn.Conv2d)]
    found = [(one.in_channels, one.out_channels, one.kernel_size[0]) for one in encoder]
    assert found == layers
    decoder = [one for one in network.decoder if not isinstance(one, torch.nn.LeakyReLU)]
    found = [(one.out_channels, one.in_channels, one.kernel_size[0]) for one in decoder]
    assert found == layers[::-1]
    for one in decoder:
        transposed = one.kernel_size[0] in (4, 8)
        assert isinstance(one, torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d)
    assert isinstance(network.encoder[-1], torch.nn.Conv2d)


def test_the_cost_at_256_pixels() -> None:
    with torch.device("meta"):
        network, x = AutoEncoder(256, 256), torch.zeros(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter:
        assert network(x).shape == x.shape
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.30, abs=0.01)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (320, 256)])
def test_a_size_that_the_halvings_divide_is_kept(size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size)
    assert AutoEncoder(*size)(x).shape == x.shape


def test_another_size_is_refused() -> None:
    with pytest.raises(TrainError, match="--size 250 is not a multiple of 16, which AE-SSIM needs"):
        unfitted((250, 250))


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TrainError, match="--setting large is unknown; known: light, published"):
        unfitted(setting="large")


# ---------------------------------------------------------------- the literal pipeline


def test_forward_by_hand() -> None:
    model = unfitted().double()
    model.standardised.offset.uniform_(0, 1)
    model.standardised.scale.uniform_(0.1, 1)
    image = random_images(SIZE)
    with torch.inference_mode():
        score, anomaly_map = model(image)
        x = image.double().permute(0, 3, 1, 2) / 255
        reconstruction = 1 / (1 + torch.exp(-model.network(x)))
        expected = 1 - similarity(x, reconstruction, uniform_mean).mean(1)
        expected = (expected - model.standardised.offset) / model.standardised.scale
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9)
    np.testing.assert_allclose(score, expected.amax((1, 2)), rtol=1e-9)


# ---------------------------------------------------------------- training


def test_training_begins_with_the_mean_colour_and_lowers_the_loss() -> None:
    images = board_images(SIZE, 4)
    mean = GaussianMean(SIZE, SIZE)
    losses = []
    for steps in (1, 20):
        model = unfitted()
        fit_method(model, images, steps)
        with torch.inference_mode():
            losses.append(float(model.loss(images, mean)))
    np.testing.assert_allclose(model.colour, np.stack(images).mean((0, 1, 2)) / 255, rtol=1e-6)
    assert losses[1] < 0.9 * losses[0]


def test_the_maps_of_the_training_images_are_standardised_in_the_light_setting_only() -> None:
    images = board_images(SIZE, 4)
    model = unfitted()
    fit_method(model, images, 2)
    with torch.inference_mode():
        _, maps = model(torch.from_numpy(np.stack(images)))
    np.testing.assert_allclose(maps.mean(0), 0, atol=1e-4)
    offset, scale = model.standardised.offset, model.standardised.scale
    residuals = offset + maps * scale
    expected = maps.std(0, correction=0) * scale
    np.testing.assert_allclose(residuals.std(0, correction=0), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scale - expected, 0.02, rtol=1e-2)
    published = unfitted(setting="published")
    fit_method(published, images, 1)
    assert not published.standardised.offset.any()
    assert bool((published.standardised.scale == 1).all())


def test_published_lengths() -> None:
    published = AESSIMSettings("", Geometry("stretch", 256, 256), setting="published")
    assert AESSIM.steps(published, 100, None) == 200 * 79
    assert AESSIM.steps(published, 300, 2) == 2 * 3


def test_augmented_images_are_mirrored_and_rotated() -> None:
    image = board_images(SIZE, 1)[0]
    mirrored = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
    for setting, others in (("light", False), ("published", True)):
        model = unfitted(setting=setting)
        found = set()
        for seed in range(40):
            augmented = model._augmented(image, np.random.default_rng(seed))
            matches = [np.array_equal(augmented, other) for other in mirrored]
            found.add(matches.index(True) if any(matches) else -1)
        assert found == ({-1, 0, 1, 2, 3} if others else {0, 1, 2, 3})


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_fused_equals_literal(size: tuple[int, int]) -> None:
    images = [np.resize(image, (*size, 3)) for image in board_images(SIZE, 6)]
    model = unfitted(size)
    fit_method(model, images[:4], 3)
    assert_fused_equals_literal(model, torch.from_numpy(np.stack(images[4:])))


def test_the_graph_has_no_node_too_many() -> None:
    nodes = onnx.load_model_from_string(exported(unfitted())).graph.node
    kinds = Counter(node.op_type for node in nodes if node.op_type != "Constant")
    network = {"Conv": 12, "ConvTranspose": 4, "LeakyRelu": 14}
    for kind, count in network.items():
        assert kinds.pop(kind) == count
    assert kinds["AveragePool"] == 2
    assert sum(kinds.values()) == 37
    assert fp32_islands(unfitted().fused()) == ("/residual", "/largest")
