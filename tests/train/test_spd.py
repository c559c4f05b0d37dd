"""SPD: its loss, what is fine-tuned, and that PaDiM's graph is what is exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method
from oracles import assert_equal_state
from torch.nn import functional as F

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.resnet import ResNet
from flawline.train.blocks.local_differences import (
    Batch,
    LocalDifferences,
    LocalTraining,
    batch_of,
    mean_similarity,
)
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit
from flawline.train.methods.padim import PaDiM
from flawline.train.methods.spd import SPD

pytestmark = pytest.mark.torch
SIZE = 64
STEPS = 4


@pytest.fixture(scope="module")
def good() -> list[Any]:
    return board_images(SIZE, 6)


def new_method(kind: Any = SPD, weights: str = "random", **changes: Any) -> Any:
    settings = kind.settings_for("resnet18")
    changes["geometry"] = Geometry("stretch", SIZE, SIZE)
    method = kind(dataclasses.replace(settings, channels=20, **changes))
    method.provenance = method.load_weights(weights, 0, board_images(SIZE, 2))
    return method


def loss_of(method: Any, **changes: Any) -> LocalDifferences:
    training = LocalTraining(first_level=2, batch=3, learning_rate=0.1, weight=0.1)
    return LocalDifferences(method.backbone, method.pretrained, training._replace(**changes))


def pretrained_copy(method: Any) -> Any:
    method.backbone.load_state_dict(method.pretrained.state_dict())
    return method


# ---------------------------------------------------------------- the loss


def test_similarity_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, 5, 3, 4, generator=generator)
    second = torch.randn(2, 5, 3, 4, generator=generator)
    share = torch.zeros(2, 6, 8)
    share[0, 2:4, 6:8] = 1  # all of the pixels of position (1, 3)
    share[1, 0, 0] = 1  # a quarter of those of position (0, 0)
    cosines = {}
    for image, row, column in ((0, 1, 3), (1, 0, 0)):
        a = first[image, :, row, column]
        b = second[image, :, row, column]
        cosines[image] = float(a @ b / a.norm() / b.norm())
    expected = (cosines[0] + 0.25 * cosines[1]) / 1.25
    assert float(mean_similarity(first, second, share)) == pytest.approx(expected, abs=1e-6)
    everywhere = F.cosine_similarity(first, second, 1).mean()
    torch.testing.assert_close(mean_similarity(first, second), everywhere)


def test_the_loss_is_the_weight_where_nothing_differs() -> None:
    method = pretrained_copy(new_method())
    image = torch.from_numpy(np.stack(board_images(SIZE, 2)))
    batch = Batch(image, image, image, torch.ones(2, SIZE, SIZE))
    for weight in (0.1, 0.5):
        assert float(loss_of(method, weight=weight)(batch)) == pytest.approx(weight, abs=1e-5)


def test_the_loss_falls_with_the_similarity_to_the_blended_image(good: list[Any]) -> None:
    method = pretrained_copy(new_method())
    loss = loss_of(method, weight=1.0)
    batch = batch_of(SPD.anomalies(method.settings, good, 0), range(3))
    same = batch._replace(blended=batch.normal)
    assert float(loss(batch)) < float(loss(same))
    assert float(loss(same)) < float(loss(same._replace(other=255 - same.normal)))


def test_only_trained_levels_are_compared() -> None:
    method = new_method()
    assert loss_of(method, first_level=1).compared == [0, 1, 2]
    assert loss_of(method, first_level=3).compared == [2]


def test_training_makes_patches_less_similar_and_keeps_the_other_view(good: list[Any]) -> None:
    method = new_method(weights="texture", learning_rate=0.003, patch_weight=1.0)
    batch = batch_of(SPD.anomalies(method.settings, good, 0), range(100, 112))

    def similarities() -> tuple[float, float]:
        with torch.inference_mode():
            targets = method.pretrained.extract(batch.other)[2]
            normal = method.backbone.extract(batch.normal)[2]
            blended = method.backbone.extract(batch.blended)[2]
        patch = mean_similarity(normal, blended, batch.alpha)
        return float(patch), float(mean_similarity(normal, targets))

    pretrained_copy(method)
    before, _ = similarities()
    fit_method(method, good, 10)
    after, kept = similarities()
    assert after < before - 0.01
    assert kept > 0.95


def test_the_step_is_relative_to_the_weights(good: list[Any]) -> None:
    """A folded BatchNorm scales the weights of its convolution; the first step scales with them."""
    changes = []
    for factor in (1.0, 10.0):
        method = new_method()
        convolution = method.pretrained.layer3[1].conv2
        norm = method.pretrained.layer3[1].bn2
        with torch.no_grad():
            convolution.weight.mul_(factor)
            norm.running_mean.mul_(factor)
            norm.weight.div_(factor)
        fit_method(method, good, 1)
        before = convolution.weight.detach()
        after = method.backbone.layer3[1].conv2.weight.detach()
        changes.append(((after - before).norm() / before.norm()).item())
    assert changes[0] == pytest.approx(0.001, rel=0.05)
    assert changes[1] == pytest.approx(changes[0], rel=0.05)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("first_level", "late"), [(2, ("layer2.", "layer3.")), (3, ("layer3.",))])
def test_only_late_convolutions_of_the_backbone_are_trained(
    first_level: int, late: tuple[str, ...], good: list[Any]
) -> None:
    method = new_method(first_level=first_level)
    fit_method(method, good, STEPS)
    before = method.pretrained.state_dict()
    for name, value in method.backbone.state_dict().items():
        norm = "bn" in name or "downsample.1" in name
        assert torch.equal(before[name], value) == (norm or not name.startswith(late)), name
    assert not any(parameter.requires_grad for parameter in method.parameters())


def test_the_gaussians_are_padims_of_the_tuned_features(good: list[Any]) -> None:
    method = new_method()
    fit = fit_method(method, good, STEPS)
    plain = new_method(PaDiM)
    plain.backbone.load_state_dict(method.backbone.state_dict())
    fit_method(plain, good)
    assert torch.equal(method.chosen, plain.chosen)
    assert torch.equal(method.inverse_covariance, plain.inverse_covariance)
    assert "Gaussians of 20 channels" in fit.notes[0]
    image = torch.from_numpy(np.stack(good[:2]))
    with torch.inference_mode():
        assert torch.equal(method(image)[1], plain(image)[1])


def test_the_graph_has_the_nodes_and_size_of_padims(good: list[Any]) -> None:
    method = new_method()
    fit_method(method, good, STEPS)
    plain = new_method(PaDiM)
    fit_method(plain, good)
    graphs = [exported(method), exported(plain)]
    nodes = []
    for graph in graphs:
        model = onnx.load_model_from_string(graph)
        nodes.append([(node.op_type, node.name) for node in model.graph.node])
    assert nodes[0] == nodes[1]
    assert len(graphs[0]) == len(graphs[1])
    assert graphs[0] != graphs[1]


@pytest.mark.parametrize("stop_at", ["fine-tuning", "features"])
def test_a_training_that_was_stopped_resumes_exactly(
    stop_at: str, good: list[Any], tmp_path: Path
) -> None:
    whole = new_method()
    fit_method(whole, good, STEPS)
    path = tmp_path / "run.pt"
    method = new_method()

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(path, method, {}, state)

    def stop(label: str, done: int, total: int) -> None:
        if label == stop_at and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.fit(Fit(good, STEPS, progress=stop, save=save))
    saved = load_checkpoint(path)
    assert isinstance(saved.method, SPD)
    assert saved.method.fit(Fit(good, STEPS, state=saved.training)) == STEPS
    assert_equal_state(saved.method, whole)


def test_another_detector_starts_from_the_same_pretrained_weights(good: list[Any]) -> None:
    method = new_method()
    fit_method(method, good, STEPS)
    other = SPD(method.settings)
    other.start_like(method)
    assert_equal_state(other.pretrained, method.pretrained)
    fit_method(other, good, STEPS)
    assert_equal_state(other, method)
    assert method.provenance == "random, seed 0, fine-tuned with SmoothBlend"


def test_nothing_is_exported_before_fit() -> None:
    with pytest.raises(TrainError, match="spd has no Gaussians yet"):
        new_method().fused()


@pytest.mark.parametrize(
    ("changes", "message"), [({"first_level": 4}, "first_level 4"), ({"stride": 5}, "--stride 5")]
)
def test_wrong_settings_of_both_kinds_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        dataclasses.replace(SPD.settings_for("resnet18"), **changes)
    defaults = PaDiM.settings_for("resnet18")
    assert SPD.settings_for("resnet18").channels == defaults.channels


def test_a_backbone_that_is_not_trained_further_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ResNet, "stages_from", Backbone.stages_from)
    with pytest.raises(TrainError, match="is not trained further by any method; take another"):
        new_method()
