"""DRAEM against its specification: the networks, the draws, the losses and the exported graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method, random_images
from oracles import assert_fused_equals_literal
from teacher_oracles import trained_like
from torch.utils.flop_counter import FlopCounterMode

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.structural_similarity import GaussianMean
from flawline.train.blocks.u_nets import DifferenceNetwork, ReconstructionNetwork
from flawline.train.methods import draem
from flawline.train.methods.draem import DRAEM, DRAEMSettings, focal_loss, largest_mean

pytestmark = pytest.mark.torch
SIZE = 64
LIGHT = draem.TRAININGS["light"]


def settings(size: tuple[int, int] = (SIZE, SIZE), **fields: Any) -> DRAEMSettings:
    return DRAEMSettings("", Geometry("stretch", *size), **fields)


def unfitted(size: tuple[int, int] = (SIZE, SIZE), **fields: Any) -> DRAEM:
    torch.manual_seed(0)
    return DRAEM(settings(size, **fields)).eval()


# ---------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("widths", "costs"), [((128, 64), (159.9, 38.05)), ((32, 16), (10.08, 2.43))]
)
def test_the_cost_of_the_networks(widths: tuple[int, int], costs: tuple[float, float]) -> None:
    """At 256 x 256 pixels, in 10^9 multiplications; 128 and 64 are the authors' widths."""
    with torch.device("meta"):
        networks = [ReconstructionNetwork(widths[0], True), DifferenceNetwork(widths[1], True)]
    for network, channels, cost in zip(networks, (3, 6), costs, strict=True):
        x = torch.zeros(1, channels, 256, 256, device="meta")
        with FlopCounterMode(display=False) as counter:
            assert network(x).shape[2:] == x.shape[2:]
        assert counter.get_total_flops() / 2e9 == pytest.approx(cost, rel=2e-3)


def test_a_size_that_32_does_not_divide_is_refused() -> None:
    with pytest.raises(TrainError, match="--size 240 is not a multiple of 32, which DRAEM needs"):
        unfitted((240, 240))


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize(
    ("setting", "window"), [("light", 11), pytest.param("published", 21, marks=pytest.mark.slow)]
)
def test_forward_by_hand(setting: str, window: int) -> None:
    model = trained_like(unfitted(setting=setting)).double()
    model.standardised.offset.uniform_(0, 1)
    model.standardised.scale.uniform_(0.1, 1)
    image = random_images(SIZE)
    with torch.inference_mode():
        score, anomaly_map = model(image)
        x = image.double().permute(0, 3, 1, 2) / 255
        logits = model.difference(torch.cat([model.reconstruction(x), x], 1)).numpy()
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    expected = (expected - model.standardised.offset.numpy()) / model.standardised.scale.numpy()
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9)
    expected_score = largest_mean(torch.from_numpy(expected), window)
    np.testing.assert_allclose(score, expected_score, rtol=1e-9)


def test_the_score_is_the_largest_mean_of_a_window() -> None:
    probability = np.random.default_rng(0).random((2, 32, 40))
    padded = np.pad(probability, ((0, 0), (10, 10), (10, 10)))
    means = np.lib.stride_tricks.sliding_window_view(padded, (21, 21), (1, 2)).mean((3, 4))
    got = largest_mean(torch.from_numpy(probability), 21)
    np.testing.assert_allclose(got, means.max((1, 2)), rtol=1e-12)


# ---------------------------------------------------------------- training


def test_half_of_the_draws_are_good_images_and_all_are_whole() -> None:
    draws = DRAEM.anomalies(settings(), board_images(SIZE, 3), 0)
    empty = 0
    for draw in range(60):
        normal, synthetic, mask = draws.sample(draw)
        assert normal.shape == synthetic.shape == (SIZE, SIZE, 3)
        np.testing.assert_array_equal(normal[~mask], synthetic[~mask])
        if not mask.any():
            empty += 1
    assert 15 < empty < 45


def test_published_draws_are_whole_images_and_some_are_rotated() -> None:
    images = board_images(SIZE, 1)
    draws = DRAEM.anomalies(settings(setting="published"), images, 0)
    same = [np.array_equal(draws.image(draw), images[0]) for draw in range(60)]
    assert 30 < sum(same) < 55
    rng = np.random.default_rng(0)
    kept = [draem.draw_kept(rng) for _ in range(200)]
    assert 0 <= min(kept) < 0.05
    assert 0.75 < max(kept) <= 0.8


def test_a_grey_product_gets_grey_textures_in_the_light_setting() -> None:
    grey = [np.repeat(image[..., :1], 3, 2) for image in board_images(SIZE, 2)]
    for setting, all_grey in (("light", True), ("published", False)):
        draws = DRAEM.anomalies(settings(setting=setting), grey, 0)
        found = [draws.sample(draw)[1] for draw in range(12)]
        assert all((image == image[..., :1]).all() for image in found) == all_grey


def test_a_missing_folder_of_textures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"--textures .*missing"):
        DRAEM.anomalies(settings(textures=str(tmp_path / "missing")), board_images(SIZE, 2), 0)


def test_the_focal_loss_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.4]], dtype=torch.float64).view(1, 2, 1, 2)
    mask = torch.tensor([[[True, False]]])
    right = [1 / (1 + np.exp(0.3 - 2.0)), 1 / (1 + np.exp(0.4 + 1.2))]
    expected = np.mean([-((1 - p) ** 2) * np.log(p) for p in right])
    assert float(focal_loss(logits, mask)) == pytest.approx(expected, rel=1e-9)


def test_the_published_rate_falls_twice_and_the_light_one_along_a_cosine() -> None:
    published = draem.TRAININGS["published"].schedule
    rates = [published.rate(share) for share in (0, 0.79, 0.8, 0.89, 0.9, 0.99)]
    assert rates == pytest.approx([1e-4, 1e-4, 2e-5, 2e-5, 4e-6, 4e-6])
    light = LIGHT.schedule
    assert light.rate(0.5) == pytest.approx(light.learning_rate / 2)


def test_the_maps_of_the_training_images_are_standardised_in_the_light_setting_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = board_images(SIZE, 4)
    model = unfitted()
    fit_method(model, images, 2)
    with torch.inference_mode():
        _, maps = model(torch.from_numpy(np.stack(images)))
    np.testing.assert_allclose(maps.mean(0), 0, atol=1e-4)
    assert float(maps.std()) > 0.01
    monkeypatch.setitem(draem.TRAININGS, "light", LIGHT._replace(standardised=False))
    plain = unfitted()
    fit_method(plain, images, 1)
    assert not plain.standardised.offset.any()
    assert not draem.TRAININGS["published"].standardised


def test_both_networks_are_trained_and_the_loss_falls() -> None:
    images = board_images(SIZE, 4)
    losses = []
    for steps in (1, 12):
        model = unfitted()
        fit_method(model, images, steps)
        draws = model.anomalies(model.settings, images, 9)
        samples = [draws.sample(draw) for draw in range(8)]
        with torch.inference_mode():
            losses.append(float(model.train().loss(samples, GaussianMean(SIZE, SIZE))))
    assert losses[1] < 0.8 * losses[0]
    samples = [draws.sample(draw) for draw in range(8)]
    model.loss(samples, GaussianMean(SIZE, SIZE)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("align_corners", [False, True])
def test_fused_equals_literal(align_corners: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    training = LIGHT._replace(align_corners=align_corners)
    monkeypatch.setitem(draem.TRAININGS, "light", training)
    size = (64, 96)
    model = trained_like(unfitted(size), 1)
    model.standardised.scale.uniform_(0.1, 1)
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    assert_fused_equals_literal(model, image)


def test_the_graph_has_no_node_too_many() -> None:
    nodes = onnx.load_model_from_string(exported(trained_like(unfitted()))).graph.node
    kinds = Counter(node.op_type for node in nodes if node.op_type != "Constant")
    expected = {"Cast": 1, "Transpose": 1, "Conv": 23 + 28, "Relu": 22 + 27, "MaxPool": 4 + 5}
    # The images join their reconstructions, and the levels of the second network its decoder.
    expected |= {"Resize": 4 + 5, "Concat": 1 + 5, "Sigmoid": 1, "AveragePool": 1}
    for kind, count in expected.items():
        assert kinds.pop(kind) == count, kind
    assert sum(kinds.values()) <= 7, kinds
    assert fp32_islands(unfitted().fused()) == ("/map", "/largest")
