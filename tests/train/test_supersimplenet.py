"""SuperSimpleNet against its specification: the pipeline, the training and the exported form."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method, random_images
from oracles import assert_fused_equals_literal
from rounding import RoundingEvaluator
from teacher_oracles import resized, state_of
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.image import Geometry
from flawline.train.blocks.fused import fp32_islands
from flawline.train.methods.supersimplenet import SuperSimpleNet, SuperSimpleNetSettings

pytestmark = pytest.mark.torch


def net(size: tuple[int, int] = (64, 64), **settings: Any) -> SuperSimpleNet:
    """A small SuperSimpleNet whose BatchNorms and biases differ from their initial values."""
    torch.manual_seed(0)
    light = SuperSimpleNet.settings_for("resnet18")
    changed = {"geometry": Geometry("stretch", *size), "hidden": 32, **settings}
    model = SuperSimpleNet(dataclasses.replace(light, **changed))
    model.load_weights("random", 0, board_images(64, 4))
    for module in model.discriminator:
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize("align_corners", [False, True])
@torch.inference_mode()
def test_forward_by_hand(align_corners: bool) -> None:
    """Resize, average, both linear layers and BatchNorm per position; blur of the resized map."""
    cv2 = pytest.importorskip("cv2")
    model = net((72, 90), align_corners=align_corners).double()
    image = torch.randint(0, 256, (1, 72, 90, 3), dtype=torch.uint8)
    score, anomaly_map = model(image)
    grid = (18, 24)
    features = []
    for level in model.backbone.extract(image):
        for plane in resized(level[0].numpy(), grid, align_corners):
            padded = np.pad(plane, 1)
            windows = [padded[y : y + 18, x : x + 24] for y in range(3) for x in range(3)]
            features.append(sum(windows) / 9)
    vectors = np.stack(features, -1)
    first, norm, _, last = model.discriminator
    adapted = vectors @ model.adapter.weight.numpy().T + model.adapter.bias.numpy()
    hidden = adapted @ first.weight.numpy().T + first.bias.numpy()
    deviation = np.sqrt(norm.running_var.numpy() + norm.eps)
    hidden = (hidden - norm.running_mean.numpy()) / deviation
    hidden = hidden * norm.weight.numpy() + norm.bias.numpy()
    logits = np.maximum(hidden, 0.2 * hidden) @ last.weight.numpy()[0]
    large = resized(logits[None], (72, 90), align_corners=False)[0]
    expected = cv2.GaussianBlur(large, (25, 25), 4.0, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(anomaly_map[0], expected, rtol=1e-8, atol=1e-8)
    assert float(score) == pytest.approx(expected.max(), rel=1e-8)


# ---------------------------------------------------------------- training


@torch.no_grad()
def loss_of(model: SuperSimpleNet, images: list[Any], relative_noise: float) -> float:
    """The loss on all positions of the images, half of which get noise."""
    features = model.embed(model.backbone.extract(torch.from_numpy(np.stack(images))))
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
    anomalous = torch.arange(2 * len(vectors)) % 2 == 0
    sigma = relative_noise * float(vectors.std(0).mean())
    return float(model.loss(vectors, anomalous, sigma, torch.Generator().manual_seed(0)))


def test_training_tells_noise_from_good_features_and_changes_the_head_alone() -> None:
    images = board_images(64, 6)
    losses = []
    for steps in (1, 60):
        model = net(relative_noise=1.0)
        before = state_of(model.backbone)
        fit_method(model, images, steps)
        losses.append(loss_of(model, images, 1.0))
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert losses[1] < 0.85 * losses[0]


def test_only_the_chosen_vectors_get_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline.train.loop._multiplies_bfloat16", lambda: False)
    model = net()
    seen: list[Any] = []
    model.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    vectors = torch.randn(40, 384)
    anomalous = torch.arange(80) % 3 == 0
    with torch.no_grad():
        model.loss(vectors, anomalous, 0.5, torch.Generator().manual_seed(0))
        adapted = model.adapter(vectors).repeat(2, 1)
    noise = seen[0] - adapted
    assert not noise[~anomalous].any()
    assert float(noise[anomalous].std()) == pytest.approx(0.5, rel=0.05)


def test_all_positions_and_drawn_ones_train_towards_the_same() -> None:
    """The published setting trains on the whole grid of each image."""
    images = board_images(64, 4)
    losses = []
    for positions in (None, 128):
        model = net(positions=positions, relative_noise=1.0)
        fit_method(model, images, 40)
        losses.append(loss_of(model, images, 1.0))
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@pytest.mark.parametrize("light", [False, True])
def test_the_learning_rates_drop_twice_or_decay_evenly(light: bool) -> None:
    """Of ten steps, the published rates are reduced for the last two."""
    settings: dict[str, Any] = {"first_rate": 4.0, "last_rate": 0.04}
    if not light:
        settings = {"last_rate": None}
    rates: list[list[float]] = []

    def record(optimiser: Any, *_: Any) -> None:
        rates.append([group["lr"] for group in optimiser.param_groups])

    hook = register_optimizer_step_pre_hook(record)
    try:
        fit_method(net(**settings), board_images(64, 2), 10)
    finally:
        hook.remove()
    expected = [1.0] * 8 + [0.4, 0.16]
    if light:
        expected = [4 * 0.01 ** (step / 10) for step in range(10)]
    assert [rate[0] / 1e-4 for rate in rates] == pytest.approx(expected)
    assert [rate[1] / 2e-4 for rate in rates] == pytest.approx(expected)


def test_the_published_setting_is_that_of_the_authors() -> None:
    settings = SuperSimpleNet.settings_for("wide_resnet50_2")
    assert settings == SuperSimpleNetSettings("wide_resnet50_2", Geometry("stretch", 256, 256))
    assert (settings.hidden, settings.noise, settings.threshold) == (1024, 0.015, 0.2)
    assert (settings.batch, settings.positions, settings.last_rate) == (32, None, None)
    assert SuperSimpleNet.steps(settings, 209, None) == 300 * 7


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (72, 90)])
def test_fused_equals_literal(size: tuple[int, int], align_corners: bool) -> None:
    """At sizes with and without whole factors between the grids, in both kinds of resize."""
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    assert_fused_equals_literal(net(size, align_corners=align_corners), image)


def test_fused_equals_literal_with_a_deep_backbone() -> None:
    torch.manual_seed(0)
    settings = SuperSimpleNetSettings("wide_resnet50_2", Geometry("stretch", 64, 64), hidden=32)
    model = SuperSimpleNet(settings)
    model.load_weights("random", 0, board_images(64, 4))
    assert_fused_equals_literal(model.eval(), random_images())


def test_the_products_run_on_the_grids_of_the_levels() -> None:
    nodes = onnx.load_model_from_string(exported(net())).graph.node
    rest = [node for node in nodes if not node.name.startswith("/backbone/")]
    kinds = Counter(node.op_type for node in rest if node.op_type != "Constant")
    expected = {"Cast": 1, "Transpose": 1, "Sub": 1}  # the input
    # Two products, the average and the sum over the hidden units; two products of the map.
    expected |= {"Conv": 4, "Clip": 2, "Resize": 2, "Add": 1, "LeakyRelu": 1}
    expected |= {"MatMul": 2, "Squeeze": 1, "ReduceMax": 1}
    assert kinds == expected


# ---------------------------------------------------------------- FP16


def test_fp16_stays_finite_where_the_products_overflow() -> None:
    """Weights that are far too large: without the limits, infinities of both signs are added."""
    model = net()
    with torch.no_grad():
        model.adapter.weight.mul_(1e6)
    image = random_images().numpy()
    data = exported(model)
    results = RoundingEvaluator(to_fp16(data, fp32_islands(model.fused())))(image=image)
    for name in model.outputs:
        assert np.isfinite(results[name]).all()
    overflown = [name for name, value in results.items() if not np.isfinite(value).all()]
    assert overflown


def test_the_marked_parts_are_those_of_the_specification() -> None:
    assert fp32_islands(net().fused()) == ("/tail", "/smooth", "/largest")
