"""AlexNet against torchvision's, and its weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train import TrainError
from flawline.train.backbones.alexnet import FILE, AlexNet
from flawline.train.backbones.resnet import ResNet

pytestmark = pytest.mark.torch
NAME = "alexnet"


@pytest.mark.filterwarnings("ignore")
def test_the_level_is_torchvisions(torchvision_models: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torchvision_models.alexnet(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = AlexNet(NAME).eval()
    assert backbone.load(str(tmp_path / "weights.pth")).startswith("weights.pth sha256:")
    x = torch.randn(2, 3, 112, 96)
    with torch.inference_mode():
        (level,) = backbone(x)
        torch.testing.assert_close(level, reference.features(x))
    assert level.shape[2:] == backbone.grids(112, 96)[0] == (2, 2)
    assert backbone.grids(448, 224) == ((13, 6),)


@pytest.mark.filterwarnings("ignore")
def test_the_download_is_torchvisions(torchvision_models: Any) -> None:
    assert torchvision_models.AlexNet_Weights.IMAGENET1K_V1.url.endswith(f"/{FILE}")


def test_wrong_weights_are_reported(tmp_path: Path) -> None:
    backbone = AlexNet(NAME)
    path = tmp_path / "w.pth"
    smaller = {**backbone.state_dict(), "features.0.weight": torch.zeros(8, 3, 11, 11)}
    for content, message in (
        (smaller, r"not of alexnet \(1 tensors differ, first features\.0\.weight\)"),
        (ResNet("resnet18").state_dict(), r"no features\.0\.weight"),
    ):
        torch.save(content, path)
        with pytest.raises(TrainError, match=message):
            backbone.load(str(path))


def test_a_download_that_fails_says_how_to_pass_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    message = r"cannot be downloaded .*; use --backbone resnet18 --weights texture, .*"
    with pytest.raises(TrainError, match=message + f"--weights {FILE}"):
        AlexNet(NAME).load("imagenet")
