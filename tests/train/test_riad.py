"""RIAD against its specification: masks, the literal pipeline, the training and the export."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method, random_images
from oracles import assert_fused_equals_literal
from teacher_oracles import trained_like
from torch import nn

from flawline.benchmarks.measure.meter import measure_cost
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.disjoint_masks import disjoint_masks
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.gradient_similarity import gradient_loss, similarity_map
from flawline.train.blocks.inpainting_unet import InpaintingUNet
from flawline.train.blocks.structural_similarity import GaussianMean, similarity_loss
from flawline.train.methods.riad import PARTS, RIAD, TRAININGS, RIADSettings

pytestmark = pytest.mark.torch
SIZE = 64
ISLANDS = ("/completed", "/residual", "/standardised", "/largest")


def unfitted(size: tuple[int, int] = (SIZE, SIZE), setting: Any = "light") -> RIAD:
    return RIAD(RIADSettings("", Geometry("stretch", *size), setting))


# ---------------------------------------------------------------- masks and network


@pytest.mark.parametrize("cell", TRAININGS["published"].cells)
def test_every_pixel_is_hidden_in_exactly_one_part(cell: int) -> None:
    masks = disjoint_masks((48, 80), cell, 3, np.random.default_rng(0))
    assert masks.shape == (3, 1, 48, 80)
    assert ((~masks).sum(0) == 1).all()
    cells = masks[:, 0].reshape(3, 48 // cell, cell, 80 // cell, cell)
    assert (cells == cells[:, :, :1, :, :1]).all()
    hidden = (~cells[:, :, 0, :, 0]).sum((1, 2))
    assert int(hidden.max() - hidden.min()) <= 1
    again = disjoint_masks((48, 80), cell, 3, np.random.default_rng(0))
    other = disjoint_masks((48, 80), cell, 3, np.random.default_rng(1))
    assert torch.equal(masks, again)
    assert not torch.equal(masks, other)


def test_the_published_network_computes_54_billion_products() -> None:
    network = InpaintingUNet(64).requires_grad_(False).eval().to("meta")
    cost = measure_cost(lambda: network(torch.empty(1, 3, 256, 256, device="meta")))
    assert cost.macs == pytest.approx(54.5e9, rel=0.01)


def test_the_masks_of_an_inspection_follow_the_seed_of_the_training() -> None:
    images = board_images(SIZE, 2)
    kept = []
    for seed in (0, 0, 1):
        model = unfitted()
        fit_method(model, images, seed=seed)
        kept.append(model.kept)
        assert [len(masks) for masks in model.kept.split(PARTS)] == [PARTS] * 2
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_a_size_that_the_cells_do_not_fill_is_refused() -> None:
    with pytest.raises(TrainError, match="--size 72 is not a multiple of 16"):
        unfitted((72, 72))


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize(
    ("setting", "cells", "side", "size"),
    [("light", 2, 3, (64, 80)), pytest.param("published", 4, 21, (32, 48), marks=pytest.mark.slow)],
)
def test_forward_by_hand(setting: str, cells: int, side: int, size: tuple[int, int]) -> None:
    """Each reconstruction consists of the hidden pixels of three passes."""
    model = trained_like(unfitted(size, setting)).double()
    assert len(model.kept) == 3 * cells
    model.standardised.offset.uniform_(0, 1)
    model.standardised.scale.uniform_(0.1, 1)
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        score, anomaly_map = model(image)
        x = image.permute(0, 3, 1, 2).double() / 127.5 - 1
        total = torch.zeros(2, *size, dtype=torch.float64)
        for first in range(0, 3 * cells, 3):
            completed = torch.full_like(x, torch.nan)
            for mask in model.kept[first : first + 3, 0]:
                seen = x.clone()
                seen[:, :, ~mask] = 0
                completed[:, :, ~mask] = model.network(seen).tanh()[:, :, ~mask]
            total += (1 - similarity_map(x, completed, 4)).mean(1)
    mean = nn.Conv2d(1, 1, side, padding=side // 2, bias=False).double().requires_grad_(False)
    mean.weight.fill_(1 / side**2)
    expected = (
        mean(total[:, None] / cells)[:, 0] - model.standardised.offset
    ) / model.standardised.scale
    torch.testing.assert_close(anomaly_map, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(score, expected.amax((1, 2)), rtol=1e-10, atol=1e-12)


def test_a_reconstruction_does_not_see_the_pixels_that_it_completes() -> None:
    model = trained_like(unfitted()).double()
    x = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64) * 2 - 1
    kept = model.kept[-PARTS:]
    other = x.clone()
    other[:, :, ~kept[0, 0]] = 0.3
    with torch.inference_mode():
        first = model.complete(x, kept)
        second = model.complete(other, kept)
    hidden = ~kept[0, 0]
    assert torch.equal(first[:, :, hidden], second[:, :, hidden])
    assert not torch.equal(first[:, :, ~hidden], second[:, :, ~hidden])


# ---------------------------------------------------------------- training


def test_the_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline.train.loop._multiplies_bfloat16", lambda: False)
    model = trained_like(unfitted())
    image = random_images(SIZE)
    kept = disjoint_masks((SIZE, SIZE), 8, PARTS, np.random.default_rng(0))
    mean = GaussianMean(SIZE, SIZE)
    with torch.inference_mode():
        loss = float(model.loss(image, kept, mean))
        x = image.permute(0, 3, 1, 2) / 127.5 - 1
        y = model.complete(x, kept)
        expected = float(((x - y) ** 2).mean()) + float(gradient_loss(x, y, 4))
        expected += float(similarity_loss(image.permute(0, 3, 1, 2) / 255, (y + 1) / 2, mean))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_training_lowers_the_loss() -> None:
    images = board_images(SIZE, 4)
    batch = torch.from_numpy(np.stack(images))
    kept = disjoint_masks((SIZE, SIZE), 8, PARTS, np.random.default_rng(0))
    losses = []
    for steps in (1, 12):
        model = unfitted()
        fit_method(model, images, steps)
        with torch.inference_mode():
            losses.append(float(model.train().loss(batch, kept, GaussianMean(SIZE, SIZE))))
    assert losses[1] < 0.9 * losses[0]


def test_the_maps_of_the_training_images_are_standardised_in_the_light_setting_only() -> None:
    images = board_images(SIZE, 4)
    model = unfitted()
    fit_method(model, images, 4)
    with torch.inference_mode():
        maps = np.stack([model(torch.from_numpy(image)[None])[1][0] for image in images])
    np.testing.assert_allclose(maps.mean(0), 0, atol=1e-4)
    deviation = maps.std(0) * model.standardised.scale.numpy()
    np.testing.assert_allclose(model.standardised.scale.numpy() - deviation, 0.02, rtol=1e-2)
    published = RIADSettings("", Geometry("stretch", SIZE, SIZE), "published")
    assert not published.training.standardised


def test_the_published_setting_is_that_of_the_code() -> None:
    settings = RIADSettings("", Geometry("stretch", 256, 256), "published")
    assert settings.training.width == 64
    assert RIAD.steps(settings, 200, None) == 300 * 50
    light = RIAD.settings_for("")
    assert light.setting == "light"
    assert RIAD.steps(light, 200, None) < 300 * 50
    assert RIAD.steps(light, 200, 2) == 2 * 50


# ---------------------------------------------------------------- the exported form


def test_fused_equals_literal_on_an_oblong_input() -> None:
    size = (64, 80)
    image = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    model = trained_like(unfitted(size), 1)
    model.standardised.offset.uniform_(0, 1)
    model.standardised.scale.uniform_(0.1, 1)
    assert_fused_equals_literal(model, image)


def test_the_network_runs_once_for_all_masks() -> None:
    nodes = onnx.load_model_from_string(exported(trained_like(unfitted()))).graph.node
    backbone = Counter(node.op_type for node in nodes if node.name.startswith("/backbone/"))
    expected = {"Conv": 19, "ConvTranspose": 4, "Relu": 18, "Concat": 4}
    assert {kind: backbone[kind] for kind in expected} == expected
    assert backbone["BatchNormalization"] == 0
    rest = Counter(node.op_type for node in nodes if not node.name.startswith("/backbone/"))
    assert rest["Tanh"] == 1
    assert rest["Conv"] == 4  # the gradients, once for each scale


def test_the_marked_parts_are_those_of_the_specification() -> None:
    assert fp32_islands(unfitted().eval().fused()) == ISLANDS
