"""The interface of a method: any number of backbones, its device and type, and flags' values."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images
from torch import nn

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones import create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.judging import evaluate
from flawline.train.method import Fit, Method, MethodSettings, require_positive

pytestmark = pytest.mark.torch


class _Untrained(Method):
    name: ClassVar[str] = "untrained"
    Settings = MethodSettings

    @classmethod
    def settings_for(cls, backbone: str) -> MethodSettings:
        return MethodSettings(backbone, Geometry("stretch", 64, 64))

    def fit(self, fit: Fit) -> int:
        return fit.steps

    def forward(self, image: Any) -> Any:
        anomaly_map = image.to(self.dtype).mean(3)
        return anomaly_map.amax((1, 2)), anomaly_map

    def fused(self) -> nn.Module:
        return self


class TwoBackbones(_Untrained):
    """The student and the teacher of a distillation, for example."""

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.teacher = create_backbone("resnet18", (2,))
        self.student = create_backbone("resnet34", (2,))
        self.head = nn.BatchNorm1d(4)

    def backbones(self) -> dict[str, Backbone]:
        return {"teacher": self.teacher, "student": self.student}


def test_all_backbones_are_loaded_and_get_statistics() -> None:
    method = TwoBackbones(TwoBackbones.settings_for("resnet18"))
    torch.manual_seed(1)
    assert method.load_weights("random", 3, board_images(64, 4)) == "random, seed 3"
    for name, backbone in method.backbones().items():
        expected = create_backbone(backbone.name, (2,))
        expected.load("random", 3)
        expected.estimate_batchnorm(board_images(64, 4))
        for key, value in expected.state_dict().items():
            assert torch.equal(backbone.state_dict()[key], value), (name, key)


def test_all_backbones_are_frozen_and_in_eval_mode_during_training() -> None:
    method = TwoBackbones(TwoBackbones.settings_for("resnet18")).train()
    assert method.training
    assert method.head.training
    assert method.head.weight.requires_grad
    for backbone in method.backbones().values():
        assert not backbone.training
        assert not backbone.layer1[0].bn1.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_a_method_without_backbones_and_without_parameters() -> None:
    method = _Untrained(_Untrained.settings_for("")).train()
    assert method.backbones() == {}
    assert method.load_weights("imagenet", 0, []) == "none"
    assert (method.device, method.dtype) == (torch.device("cpu"), torch.float32)
    scores, maps = evaluate(method, board_images(64, 2))
    assert scores.shape == (2,)
    assert maps.shape == (2, 64, 64)


@pytest.mark.parametrize("value", [None, 1, 0.5, 10**400])
def test_finite_values_above_0_are_accepted(value: Any) -> None:
    require_positive("reach", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "--reach 0 is not above 0"),
        (-0.5, "--reach -0.5 is not above 0"),
        (float("inf"), "--reach inf is not a finite number; give one above 0"),
        (float("nan"), "--reach nan is not a finite number; give one above 0"),
    ],
)
def test_other_values_are_refused(value: float, message: str) -> None:
    with pytest.raises(TrainError) as caught:
        require_positive("reach", value)
    assert str(caught.value) == message
