"""CS-Flow against its specification: the literal pipeline, the training and the exported graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import FLOW_TOLERANCES, boards, counted, exported, random_images, upsampled
from oracles import assert_fused_equals_literal
from rounding import RoundingEvaluator

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.train import TrainError
from flawline.train.blocks.cross_scale_flow import CrossConvolutions
from flawline.train.blocks.fused import fp32_islands
from flawline.train.method import Fit
from flawline.train.methods.csflow import CSFlow, CSFlowSettings

pytestmark = pytest.mark.torch
SIZE = 64


def net(size: int = SIZE, backbone: str = "resnet18", **fields: Any) -> CSFlow:
    """A CS-Flow with a random backbone, before its training."""
    settings = dataclasses.replace(
        CSFlow.settings_for(backbone), geometry=Geometry("stretch", size, size), **fields
    )
    model = CSFlow(settings).eval()
    model.load_weights("random", 0, list(random_images(8, 5, size)))
    return model


@torch.no_grad()
def trained_net(size: int = SIZE, gain: float = 1.0, **fields: Any) -> CSFlow:
    """A CS-Flow as a long training might leave it."""
    model = net(size, **fields)
    generator = torch.Generator().manual_seed(0)
    model.flow.initialise(generator)
    model.mean.normal_(0.5, 0.3, generator=generator)
    model.std.uniform_(0.5, 1.5, generator=generator)
    for module in model.modules():
        if isinstance(module, CrossConvolutions):
            module.gains.uniform_(0.5 * gain, 1.5 * gain, generator=generator)
    return model


# ---------------------------------------------------------------- settings


def test_the_settings_of_the_paper_and_the_light_ones() -> None:
    published = CSFlow.settings_for("efficientnet_b5")
    geometry = Geometry("stretch", 768, 768)
    assert published == CSFlowSettings("efficientnet_b5", geometry, level=4)
    assert (published.hidden, published.kernels) == (1024, (3, 3, 3, 5))
    assert (published.learning_rate, published.epsilon) == (2e-4, 1e-4)
    assert not published.standardised
    assert CSFlow.steps(published, 100, None) == 240 * 7
    with torch.device("meta"):
        model = CSFlow(published)
    assert model.grids == ((24, 24), (12, 12), (6, 6))
    parameters = sum(weight.numel() for weight in model.flow.parameters())
    assert parameters == pytest.approx(275e6, rel=0.01)
    light = CSFlow.settings_for("resnet18")
    assert light.size == (256, 256)
    assert light.standardised
    assert CSFlow.steps(light, 100, None) == CSFlow.steps(light, 1000, None)
    assert CSFlow.steps(light, 100, 3) == 21


@pytest.mark.parametrize(("size", "other"), [(96, 128), (200, 192)])
def test_a_size_without_three_scales_is_refused(size: int, other: int) -> None:
    with pytest.raises(TrainError, match=f"--size {size} is not a multiple .* --size {other}"):
        net(size)


def test_a_backbone_of_one_size_is_refused() -> None:
    settings = CSFlow.settings_for("cait_xxs24_224")
    settings = dataclasses.replace(settings, geometry=Geometry("stretch", 224, 224))
    with pytest.raises(TrainError, match="cait_xxs24_224 takes images of one size only"):
        CSFlow(settings)


def test_a_backbone_whose_maps_are_not_halves_of_each_other_is_refused() -> None:
    """The poolings of AlexNet are not padded: 23, 11 and 5 positions."""
    with torch.device("meta"), pytest.raises(TrainError, match=r"have 23 and 11 columns, .* half"):
        CSFlow(CSFlow.settings_for("alexnet"))


# ---------------------------------------------------------------- the literal pipeline


def test_forward_by_hand() -> None:
    """Features of three scales, standardised; energies of all values and of the finest scale."""
    model = trained_net(128).double()
    image = torch.from_numpy(random_images(2, 0, 128))
    with torch.inference_mode():
        score, anomaly_map = model(image)
        standardised = []
        for number, step in enumerate((1, 2, 4)):
            x = model.backbone.network.normalise(image[:, ::step, ::step])
            (level,) = model.backbone.network(x)
            mean, std = (values[number, :, None, None] for values in (model.mean, model.std))
            standardised.append((level - mean) / std)
        latents, _ = model.flow(standardised)
    values = np.concatenate([latent.flatten(1).numpy() for latent in latents], 1)
    np.testing.assert_allclose(score, np.log((values**2 / 2).mean(1) + 1e-4), rtol=1e-9)
    energy = (latents[0].numpy() ** 2 / 2).mean(1)
    expected = upsampled(np.log(1 + energy), (128, 128))
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9)


def test_the_loss_is_energy_minus_log_determinant_per_dimension() -> None:
    model = trained_net()
    with torch.inference_mode():
        levels = model.backbone.extract(torch.from_numpy(random_images(3)))
        latents, log_determinant = model.flow(model.standardised(levels))
        energy = sum(0.5 * latent.square().sum((1, 2, 3)) for latent in latents)
        dimensions = sum(latent[0].numel() for latent in latents)
        expected = (energy - log_determinant).mean() / dimensions
        # The sub-networks may run in bfloat16.
        loss = model.loss(model.standardised(levels))
        torch.testing.assert_close(loss, expected, rtol=0.1, atol=0)


# ---------------------------------------------------------------- training


def test_training_lowers_the_loss_and_standardises_every_scale() -> None:
    model = net()
    images = torch.from_numpy(np.stack(boards()))
    assert model.fit(Fit(boards(), 8, 3)) == 8
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        levels = model.backbone.extract(images)
        standardised = model.standardised(levels)
        after = float(model.loss(standardised))
        before = sum(float(level.square().sum()) for level in standardised) / 2
        before /= sum(level.numel() for level in standardised)
    assert after < before
    # The coarsest scale has one position per image, and channels that are constant over images.
    assert float(standardised[0].mean().abs()) < 1e-3
    assert float(standardised[0].std()) == pytest.approx(1, abs=0.1)


def test_the_published_setting_reads_the_features_as_they_are() -> None:
    model = net(standardised=False)
    assert model.fit(Fit(boards(), 1, 3)) == 1
    assert not model.mean.any()
    assert torch.equal(model.std, torch.ones_like(model.std))


def test_noise_is_added_to_the_standardised_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every step its own, and the same in every training of a seed."""
    seen: list[Any] = []
    loss = CSFlow.loss

    def record(self: Any, scales: Any) -> Any:
        seen.append([scale.clone() for scale in scales])
        return loss(self, scales)

    monkeypatch.setattr(CSFlow, "loss", record)
    for noise in (0.0, 0.5, 0.5):
        net(noise=noise, learning_rate=1e-9).fit(Fit(boards(), 2, 3))
    # There are fewer images than a batch, so that every step sees all of them in their order.
    clean, noisy, again = seen[:2], seen[2:4], seen[4:]
    drawn = []
    for before, after, repeated in zip(clean, noisy, again, strict=True):
        drawn.append(after[0] - before[0])
        assert all(torch.equal(a, b) for a, b in zip(after, repeated, strict=True))
    assert torch.equal(clean[0][0], clean[1][0])
    for difference in drawn:
        assert float(difference.std()) == pytest.approx(0.5, rel=0.05)
    assert not torch.allclose(drawn[0], drawn[1])


def test_gradients_are_clipped_and_the_rate_falls_if_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []
    step = torch.optim.Adam.step

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        group = self.param_groups[0]
        gradients = [weight.grad for weight in group["params"] if weight.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        seen.append((group["lr"], float(norm)))
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    for decay in (False, True):
        model = net(decay=decay, learning_rate=0.5)
        model.fit(Fit(boards(), 4, 3))
    constant, falling = seen[:4], seen[4:]
    assert [rate for rate, _ in constant] == [0.5] * 4
    rates = [rate for rate, _ in falling]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.2 * rates[0]
    # With such a rate, gradients become large.
    assert max(norm for _, norm in seen) == pytest.approx(1, rel=1e-3)


# ---------------------------------------------------------------- the exported form


def test_fused_equals_literal() -> None:
    model = trained_net(128)
    image = torch.from_numpy(random_images(2, 0, 128))
    assert_fused_equals_literal(model, image, tolerances=FLOW_TOLERANCES)


@pytest.mark.slow
def test_fused_equals_literal_with_the_backbone_of_the_paper() -> None:
    # Features of random weights are large, and larger gains would stretch rounding errors.
    model = trained_net(128, gain=0.02, backbone="efficientnet_b5", hidden=8)
    assert model.settings.kernels == (3, 3, 3, 5)
    image = torch.from_numpy(random_images(1, 0, 128))
    assert_fused_equals_literal(model, image, tolerances={torch.float64: 1e-9})


def nodes_of(model: CSFlow) -> list[Any]:
    return list(onnx.load_model_from_string(exported(model)).graph.node)


def test_the_graph_has_no_node_too_many() -> None:
    """Per half of a block and scale: two convolutions, to which a finer scale adds one."""
    model = net(kernels=(3, 3))
    model.mean.fill_(0.5)
    nodes = nodes_of(model)
    halves = 2 * 2
    # Products with matrices would take longer, and in BF16 they would round the latent.
    permutations = counted(n for n in nodes if "/permutations." in n.name)
    assert permutations == {"Gather": 2 * 3 * 2, "Concat": 3}
    assert counted(n for n in nodes if "/standardise." in n.name) == {"Conv": 3}
    flow = counted(n for n in nodes if n.name.startswith("/flow/blocks")) - permutations
    assert flow == {
        "Conv": halves * (2 * 3 + 2),
        "Split": halves * 3,
        "LeakyRelu": halves * 3,
        "Clip": halves * (3 + 3),
        "Resize": halves * 2,
        "Concat": halves * 2,
        "Add": halves * (2 + 3),
        "Atan": halves * 3,
        "Exp": halves * 3,
        "Mul": halves * 2 * 3,
    }
    assert counted(n for n in nodes if n.name.startswith("/flow/energies")) == {
        "Concat": 3,
        "Mul": 3,
        "Conv": 3,
    }
    slices = [n for n in nodes if n.op_type == "Slice"]
    assert len(slices) <= 2 * 2
    kinds = set(counted(nodes))
    assert not {"Shape", "BatchNormalization", "Div"} & kinds
    # Of score and map; a log-determinant would need more.
    assert counted(nodes)["Log"] == 2
    # The network has one set of weights for all three scales.
    weights = exported(net(kernels=(3,)))
    names = [t.name for t in onnx.load_model_from_string(weights).graph.initializer]
    assert sum("layer3.1.conv2.weight" in name for name in names) == 1


def test_features_that_are_not_standardised_cost_no_node_and_no_island() -> None:
    model = net(kernels=(3,), standardised=False)
    data = exported(model)
    assert not [n for n in onnx.load_model_from_string(data).graph.node if "standard" in n.name]
    # An island without a node would be refused.
    to_fp16(data, fp32_islands(model.fused()))


# ---------------------------------------------------------------- FP16


def rounded(data: bytes, images: Any, islands: Any) -> Any:
    return RoundingEvaluator(to_fp16(data, islands))(image=images)


def islands_without(islands: tuple[str, ...], part: str) -> tuple[str, ...]:
    return tuple(island for island in islands if part not in island)


def test_islands_keep_an_anomaly_finite() -> None:
    """Latents of this image are beyond the 255 whose squares FP16 can represent."""
    model = trained_net(gain=20)
    images = random_images(2, 0)
    with torch.inference_mode():
        reference = model(torch.from_numpy(images))[0].numpy()
        levels = model.backbone.extract(torch.from_numpy(images))
        latents, _ = model.flow(model.standardised(levels))
    assert float(latents[0].abs().max()) > 300
    data = exported(model)
    islands = fp32_islands(model.fused())
    got = rounded(data, images, islands)
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, atol=0.05)
    for part in ("/energies", "/score"):
        control = rounded(data, images, islands_without(islands, part))
        assert not (np.isfinite(control["map"]).all() and np.isfinite(control["score"]).all())


def test_the_chain_of_affines_stays_fp32() -> None:
    model = net()
    model.mean.fill_(0.5)
    data = exported(model)
    islands = fp32_islands(model.fused())
    parts = {island.rsplit("/", 1)[-1].split(".")[0] for island in islands}
    assert parts == {"standardise", "affines", "energies", "upsample", "score", "logarithm"}
    graph = onnx.shape_inference.infer_shapes(
        onnx.load_model_from_string(to_fp16(data, islands)), strict_mode=True
    ).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    checked = 0
    for node in graph.node:
        if "/flow/" in node.name and node.op_type in ("Atan", "Exp"):
            assert islands_of(node.name, islands)
        if node.name.startswith("/flow/") and "/permutations." in node.name:
            # The second input of a Gather holds the indices.
            for name in (node.input[0], *node.output):
                assert kinds[name] == onnx.TensorProto.FLOAT
                assert "_fp16" not in name
            checked += 1
    assert checked == 2 * 3 + 3 * 3 * 2
