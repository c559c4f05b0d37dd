"""CFLOW-AD against its specification: the literal pipeline, the training and the exported form."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import boards, close, counted, exported, images_with_defect, random_images
from oracles import assert_equal_state, assert_fused_equals_literal
from rounding import RoundingEvaluator
from torch.nn import functional as F

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.image import Geometry
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.position_batches import PositionBatch
from flawline.train.blocks.position_flow import initialise_position_flow, position_likelihoods
from flawline.train.method import Fit
from flawline.train.methods.cflow import CFlow, rate_share

pytestmark = pytest.mark.torch
Size = tuple[int, int]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-2}


def net(size: Size = (64, 64), **settings: Any) -> CFlow:
    """A CFLOW-AD with a random backbone, before its training."""
    torch.manual_seed(0)
    light = CFlow.settings_for("resnet18")
    changed = {"geometry": Geometry("stretch", *size), "blocks": 2, **settings}
    model = CFlow(dataclasses.replace(light, **changed)).eval()
    model.load_weights("random", 0, list(random_images(8, 5, size)))
    return model


@torch.no_grad()
def trained_net(size: Size = (64, 64), **settings: Any) -> CFlow:
    """A CFLOW-AD as a long training might leave it."""
    model = net(size, **settings)
    generator = torch.Generator().manual_seed(1)
    for flow in model.flows:
        initialise_position_flow(flow, generator)
        for block in flow.module_list:
            block.global_scale.uniform_(5, 12, generator=generator)
            block.global_offset.normal_(0, 0.2, generator=generator)
            block.subnet.last.weight.mul_(3)
    model.largest.uniform_(-2, -1, generator=generator)
    model.peak.fill_(1.7)
    return model


def aligned(planes: Any, size: Size) -> Any:
    """Bilinear with corners on corners: numpy [N, h, w] to [N, H, W]."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = planes.shape[axis]
        at = np.arange(target) * (source - 1) / (target - 1)
        low = np.minimum(np.floor(at).astype(int), max(source - 2, 0))
        part = at - low
        shape = [1, 1, 1]
        shape[axis] = -1
        part = part.reshape(shape)
        high = np.minimum(low + 1, source - 1)
        planes = planes.take(low, axis) * (1 - part) + planes.take(high, axis) * part
    return planes


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize(("size", "last_level"), [((64, 64), 3), ((72, 90), 4)])
def test_forward_by_hand(size: Size, last_level: int) -> None:
    """The peak minus the densities, which are relative to the largest one and upsampled."""
    model = trained_net(size, last_level=last_level).double()
    image = torch.from_numpy(random_images(2, 0, size))
    height, width = model.settings.size
    with torch.inference_mode():
        score, anomaly_map = model(image)
        levels = model.backbone.extract(image)
        assert [level.shape[1] for level in levels] == [128, 256, 512][: last_level - 1]
        total = np.zeros((2, height, width))
        for number, level in enumerate(levels):
            likelihood = position_likelihoods(model.flows[number], level, model.code(number))
            density = np.exp(likelihood[:, 0].numpy() - float(model.largest[number]))
            total += aligned(density, (height, width))
    expected = float(model.peak) - total
    assert anomaly_map.std() > 1e-6
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(score, expected.max((1, 2)), rtol=1e-9)


def test_published_and_light_settings() -> None:
    published = CFlow.settings_for("wide_resnet50_2")
    assert (published.last_level, published.blocks, published.positions) == (4, 8, 256)
    assert (published.rotation, published.learning_rate) == (5.0, 2e-4)
    # A batch of 32 images of 256 px has 128, 32 and 8 times 256 positions; 209 images, 6 batches.
    assert CFlow.steps(published, 209, None) == 200 * 6 * 168
    assert CFlow.steps(published, 209, 1) == 6 * 168
    light = CFlow.settings_for("resnet18")
    assert (light.last_level, light.blocks, light.rotation) == (3, 4, 0.0)
    assert light.equal_steps
    assert not published.equal_steps
    assert CFlow.steps(light, 209, None) == CFlow.steps(light, 1000, None)


# ---------------------------------------------------------------- training


def test_the_learning_rate_rises_and_falls_in_stairs() -> None:
    """As in the authors' code: 25 epochs, the first two of which rise linearly from a tenth."""

    def cosine(epoch: float) -> float:
        return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * epoch / 25)) / 2

    assert rate_share(0) == pytest.approx(0.1)
    assert rate_share(1 / 25) == pytest.approx(0.1 + (cosine(2) - 0.1) / 2)
    assert rate_share(1.999 / 25) == pytest.approx(cosine(2), rel=1e-3)
    for epoch in (2, 10, 24):
        assert rate_share((epoch + 0.01) / 25) == pytest.approx(cosine(epoch))
        assert rate_share((epoch + 0.99) / 25) == pytest.approx(cosine(epoch))


@torch.inference_mode()
def test_the_loss_is_the_negative_log_of_a_likelihood_in_0_to_1() -> None:
    model = trained_net().double()
    level = model.backbone.extract(torch.from_numpy(random_images(1)))[1]
    likelihood = position_likelihoods(model.flows[1], level, model.code(1)).flatten()
    places = torch.tensor([3, 0, 7])
    vectors = level[0].flatten(1).T[places]
    expected = -torch.log(1 / (1 + torch.exp(-likelihood[places]))).mean()
    close(model.loss(PositionBatch(1, vectors, places)), expected)


def fit(model: CFlow, steps: int, **record: Any) -> Fit:
    made = Fit(boards(), steps, 3, **record)
    assert model.fit(made) == steps
    return made


def test_training_lowers_the_loss_of_every_level() -> None:
    model = net(learning_rate=1e-3)
    fit(model, 1)  # the rate of the first step moves nothing far
    before = [losses(model, number) for number in range(2)]
    model = net(learning_rate=1e-3)
    fit(model, 30)
    for number in range(2):
        assert losses(model, number) < before[number] - 0.02


@torch.inference_mode()
def losses(model: CFlow, number: int) -> float:
    levels = model.backbone.extract(torch.from_numpy(np.stack(boards())))
    return float(-F.logsigmoid(model.likelihoods(levels)[number]).mean())


def test_a_step_of_one_level_moves_no_other() -> None:
    """64 px and ten images make one step of each level in turns."""
    after = []
    for steps in (1, 2, 3):
        model = net(learning_rate=0.0)
        model.settings = dataclasses.replace(model.settings, learning_rate=1e-3)
        states: list[Any] = []
        record = Fit(boards(), 50, 3, deadline=0.0, save=states.append)
        for _ in range(steps):
            assert model.fit(record) == len(states)
            record = Fit(boards(), 50, 3, deadline=0.0, save=states.append, state=states[-1])
        after.append([flow.module_list[0].subnet.first.weight.clone() for flow in model.flows])
    assert not torch.equal(after[0][1], after[1][1])
    assert torch.equal(after[0][0], after[1][0])
    assert torch.equal(after[1][1], after[2][1])
    assert not torch.equal(after[1][0], after[2][0])


def test_the_maxima_are_those_of_the_good_images() -> None:
    model = net()
    fit(model, 4)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(boards()))
        levels = model.backbone.extract(images)
        likelihoods = model.likelihoods(levels)
        _, anomaly_map = model(images)
    for number, likelihood in enumerate(likelihoods):
        assert float(model.largest[number]) == pytest.approx(float(likelihood.max()), abs=1e-5)
    assert float(anomaly_map.min()) == pytest.approx(0, abs=1e-5)


def test_a_rotated_training_resumes_exactly() -> None:
    settings: dict[str, Any] = {"rotation": 5.0, "last_level": 4}
    whole = net(**settings)
    fit(whole, 5)
    states: list[Any] = []
    cut = net(**settings)
    assert cut.fit(Fit(boards(), 5, 3, deadline=0.0, save=states.append)) == 1
    fit(cut, 5, state=copy.deepcopy(states[-1]))
    assert_equal_state(cut, whole)
    upright = net(last_level=4)
    fit(upright, 5)
    weight = whole.flows[0].module_list[0].subnet.first.weight
    assert not torch.equal(upright.flows[0].module_list[0].subnet.first.weight, weight)


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(
    ("size", "settings"),
    [((64, 64), {"blocks": 3}), ((72, 90), {"last_level": 4}), ((64, 64), {"blocks": 1})],
)
def test_fused_equals_literal(size: Size, settings: dict[str, Any]) -> None:
    model = trained_net(size, **settings)
    image = torch.from_numpy(random_images(2, 0, size))
    assert_fused_equals_literal(model, image, tolerances=TOLERANCES)


def test_the_graph_has_no_node_too_many() -> None:
    data = exported(net(blocks=3))
    nodes = list(onnx.load_model_from_string(data).graph.node)
    for number in range(2):
        flow = counted(node for node in nodes if node.name.startswith(f"/flows.{number}/"))
        assert flow == Counter(
            {
                "Split": 1,  # of the level
                "Conv": 3 * 3 + 2 * 2 + 1,  # couplings, rotations and score
                "Clip": 3 + 2 * 2,
                "Tanh": 3,
                "Exp": 3 + 1,
                "Mul": 2 * 3 + 2,
                "Concat": 2 + 1,
                "Add": 2 * 3 + 2 + 1,  # condition and affine, sum of bends, offset
                "Sub": 1,
            }
        )
        resize = counted(node for node in nodes if node.name.startswith(f"/upsamples.{number}/"))
        assert resize == Counter({"MatMul": 2})
    after = [node.op_type for node in nodes if node.name.startswith(("/sum/", "/largest/"))]
    assert after == ["Add", "ReduceMax"]


# ---------------------------------------------------------------- FP16


@torch.no_grad()
def sensitive() -> tuple[CFlow, Any, Any]:
    """A CFLOW-AD with a defect far from good images, images, and the scores of torch."""
    good, images = images_with_defect(60)
    model = net(blocks=4)
    model.backbone.estimate_batchnorm(list(good))
    generator = torch.Generator().manual_seed(0)
    for flow in model.flows:
        initialise_position_flow(flow, generator)
        for block in flow.module_list:
            block.global_scale.normal_(5, 0.5, generator=generator)
            block.subnet.last.weight.mul_(12)
    with torch.inference_mode():
        levels = model.backbone.extract(torch.from_numpy(good))
        for number, likelihood in enumerate(model.likelihoods(levels)):
            model.largest[number] = likelihood.max()
        model.peak.fill_(2.0)
        return model, images, model(torch.from_numpy(images))[0].numpy()


def test_islands_keep_an_anomaly_finite_and_above_every_good_image() -> None:
    """Without islands, the sums of squares are infinite; the map stays finite, as it saturates."""
    model, images, reference = sensitive()
    data = exported(model)
    assert reference[2] > reference[:2].max() + 1

    def scores(islands: Any) -> Any:
        return RoundingEvaluator(to_fp16(data, islands))(image=images)

    got = scores(fp32_islands(model.fused()))
    assert np.isfinite(got["map"]).all()
    assert got["score"][2] > got["score"][:2].max()
    np.testing.assert_allclose(got["score"], reference, atol=0.005)
    control = scores(())
    sums = [f"/flows.{number}/score/Conv_output_0" for number in range(2)]
    assert all(np.isfinite(got[name]).all() for name in sums)
    assert not all(np.isfinite(control[name]).all() for name in sums)


def test_the_marked_parts_are_those_of_the_specification() -> None:
    islands = fp32_islands(net().fused())
    parts = {island.split("/")[1].split(".")[0] for island in islands}
    assert parts == {"flows", "upsamples", "sum", "largest"}
