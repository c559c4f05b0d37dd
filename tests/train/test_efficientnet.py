"""EfficientNet-B5 against torchvision's, and its weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train import TrainError
from flawline.train.backbones.efficientnet import FILE, EfficientNetB5
from flawline.train.backbones.resnet import ResNet

pytestmark = pytest.mark.torch
NAME = "efficientnet_b5"


@pytest.mark.filterwarnings("ignore")
def test_the_level_is_torchvisions(torchvision_models: Any, tmp_path: Path) -> None:
    """It is the output of block 35, counted over all stages from 0 on."""
    torch.manual_seed(0)
    reference = torchvision_models.efficientnet_b5(weights=None).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = EfficientNetB5(NAME).eval()
    assert backbone.load(str(tmp_path / "weights.pth")).startswith("weights.pth sha256:")
    x = torch.randn(2, 3, 64, 96)
    blocks = []
    with torch.inference_mode():
        (level,) = backbone(x)
        y = reference.features[0](x)
        for stage in reference.features[1:8]:
            for block in stage:
                y = block(y)
                blocks.append(y)
    assert level.shape == (2, 304, 2, 3)
    torch.testing.assert_close(level, blocks[35], rtol=1e-4, atol=1e-4 * float(level.std()))


@pytest.mark.filterwarnings("ignore")
def test_the_download_is_torchvisions(torchvision_models: Any) -> None:
    assert torchvision_models.EfficientNet_B5_Weights.IMAGENET1K_V1.url.endswith(f"/{FILE}")


def test_wrong_weights_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    backbone = EfficientNetB5(NAME)
    state = backbone.state_dict()
    last = "features.6.8.block.3.1.weight"
    shorter = {name: value for name, value in state.items() if name != last}
    for content, message in (
        (shorter, rf"not of efficientnet_b5 \(1 tensors differ, first {last}\)"),
        (ResNet("resnet18").state_dict(), r"no features\.0\.0\.weight"),
    ):
        torch.save(content, path)
        with pytest.raises(TrainError, match=message):
            backbone.load(str(path))


def test_what_follows_the_level_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    backbone = EfficientNetB5(NAME)
    state = dict(backbone.state_dict())
    state["features.7.0.block.0.0.weight"] = torch.zeros(1)
    state["classifier.1.bias"] = torch.zeros(1000)
    torch.save(state, path)
    backbone.load(str(path))
