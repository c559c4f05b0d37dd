"""STFPM against its specification: the literal pipeline, the training and the exported graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method, random_images
from oracles import assert_equal_state, assert_fused_equals_literal
from rounding import RoundingEvaluator
from teacher_oracles import resized, state_of, trained_like, unit

from flawline.export import ExportError
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks import unit_distances
from flawline.train.blocks.fused import fp32_islands
from flawline.train.methods.stfpm import STFPM, STFPMSettings

pytestmark = pytest.mark.torch
SIZE = 64


def unfitted(size: tuple[int, int] = (SIZE, SIZE), **settings: Any) -> STFPM:
    return STFPM(STFPMSettings("resnet18", Geometry("stretch", *size), **settings))


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize(("size", "first_level"), [((64, 64), 1), ((72, 90), 1), ((72, 90), 2)])
def test_forward_by_hand(size: tuple[int, int], first_level: int) -> None:
    """Distances of unit vectors, resized to the first grid, multiplied, then resized."""
    torch.manual_seed(1)
    model = trained_like(unfitted(size, first_level=first_level)).double()
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        score, anomaly_map = model(image)
        teacher = model.backbone.extract(image)
        student = model.student.extract(image)
    assert len(teacher) == len(student) == 4 - first_level
    grid = tuple(teacher[0].shape[2:])
    product = 1.0
    for first, second in zip(teacher, student, strict=True):
        distance = ((unit(first) - unit(second)) ** 2).sum(1)
        product = product * resized(distance, grid, align_corners=False)
    expected = resized(product, size, align_corners=False)
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-8)
    np.testing.assert_allclose(score, expected.max((1, 2)), rtol=1e-8)
    # The largest value on the grid is another number, except at a corner.
    largest = product.max((1, 2))
    assert (score.numpy() <= largest * (1 + 1e-9)).all()
    assert (score.numpy() < largest * (1 - 1e-9)).any()


def test_a_level_that_there_is_not_is_refused() -> None:
    with pytest.raises(TrainError, match="first_level 0 is not from 1 to 3"):
        unfitted(first_level=0)


def test_the_loss_sums_channels_and_levels_and_averages_positions_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flawline.train.loop._multiplies_bfloat16", lambda: False)
    model = trained_like(unfitted())
    image = random_images(SIZE)
    with torch.inference_mode():
        teacher = model.backbone.extract(image)
        student = model.student.extract(image)
        loss = float(model.loss(image, teacher))
    expected = 0.0
    for first, second in zip(teacher, student, strict=True):
        squares = (unit(first) - unit(second)) ** 2
        expected += squares.sum() / (len(image) * squares.shape[2] * squares.shape[3])
    assert loss == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- training


def test_training_changes_the_student_alone_and_lowers_the_loss() -> None:
    images = board_images(SIZE, 4)
    model = unfitted()
    model.load_weights("random", 0, images)
    teacher = state_of(model.backbone)
    batch = torch.from_numpy(np.stack(images))
    losses = []
    for steps in (1, 6):
        fit_method(model, images, steps)
        with torch.inference_mode():
            losses.append(float(model.train().loss(batch, model.backbone.extract(batch))))
    assert losses[1] < 0.8 * losses[0]
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, teacher[name]), name
    assert float(model.student.bn1.running_mean.abs().max()) > 0


def test_a_student_never_begins_as_a_random_teacher_of_the_same_seed() -> None:
    model = unfitted()
    model.load_weights("random", 0, board_images(SIZE, 2))
    other = unfitted()
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.fill_(9.0)
    for one in (model, other):
        one._initialise(0)
    assert_equal_state(model.student, other.student)
    assert not torch.equal(model.student.conv1.weight, model.backbone.conv1.weight)


@pytest.mark.parametrize("decay", [False, True])
def test_the_learning_rate_is_constant_or_falls_to_zero(
    decay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four steps, the last one has (1 + cos(3/4 pi)) / 2 of the first rate."""
    model = unfitted(decay=decay)
    images = board_images(SIZE, 2)
    model.load_weights("random", 0, images)
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(optimiser: Any) -> Any:
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    fit_method(model, images, 4)
    expected = [1, 0.853553, 0.5, 0.146447] if decay else [1, 1, 1, 1]
    assert [rate / 0.4 for rate in rates] == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("size", [(64, 64), (72, 90)])
def test_fused_equals_literal(size: tuple[int, int]) -> None:
    model = trained_like(unfitted(size), 1)
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    assert_fused_equals_literal(model, image)


def test_the_graph_has_no_node_too_many() -> None:
    nodes = onnx.load_model_from_string(exported(trained_like(unfitted()))).graph.node
    backbone = Counter(node.op_type for node in nodes if node.name.startswith("/backbone/"))
    assert backbone == {"Conv": 2 * 15, "Relu": 2 * 13, "MaxPool": 2, "Add": 2 * 6}
    rest = [node for node in nodes if not node.name.startswith("/backbone/")]
    kinds = Counter(node.op_type for node in rest if node.op_type != "Constant")
    distance = {"ReduceL2": 3, "Clip": 2, "Div": 2, "Mul": 2, "Sub": 1}
    expected = Counter({kind: 3 * count for kind, count in distance.items()})
    expected += Counter({"Cast": 1, "Transpose": 1, "Sub": 1})  # the input
    # Two levels to the first grid, two products, the map and its largest value.
    expected += Counter({"Resize": 3, "Mul": 2, "Squeeze": 1, "ReduceMax": 1})
    assert kinds == expected


# ---------------------------------------------------------------- FP16


def test_the_island_keeps_products_that_are_below_every_fp16_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.from_numpy(np.stack(board_images(SIZE, 3)))
    model = trained_like(unfitted())
    model.student.load_state_dict(model.backbone.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.student.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.008 * noise)
    with torch.inference_mode():
        reference, _ = model(images)
    assert 0 < float(reference.max()) < 6e-8
    data = exported(model)
    got = RoundingEvaluator(to_fp16(data, fp32_islands(model.fused())))(image=images.numpy())
    np.testing.assert_allclose(got["score"], reference, rtol=0.05)
    with pytest.raises(ExportError, match="is too small for FP16"):
        to_fp16(data, ())
    monkeypatch.setattr(unit_distances, "SHORTEST", 1e-3)
    control = RoundingEvaluator(to_fp16(exported(model), ()))(image=images.numpy())
    assert not control["score"].any()


def test_the_marked_parts_are_those_of_the_specification() -> None:
    assert fp32_islands(unfitted().eval().fused()) == ("/product", "/largest")
