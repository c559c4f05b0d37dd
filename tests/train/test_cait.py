"""CaiT against timm, and SSNF on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.engines import open_reference
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones.cait import CaiT
from flawline.train.data.demo import render
from flawline.train.method import Fit
from flawline.train.methods.simplenet import SimpleNet
from flawline.train.methods.ssnf import SSNF

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("timm"),
    pytest.mark.filterwarnings("ignore"),
]
NAME = "cait_xxs24_224"


@pytest.fixture
def timm(torchvision_models: Any) -> Any:
    return pytest.importorskip("timm", reason="needs the cait extra")


def test_the_map_is_that_of_the_whole_model_cut_after_a_block(timm: Any, tmp_path: Path) -> None:
    """timm's own features of its twentieth block, in a whole model, through the final norm."""
    torch.manual_seed(0)
    whole = timm.create_model(NAME, pretrained=False).eval()
    for parameter in whole.parameters():  # initially they scale every block to almost nothing
        torch.nn.init.normal_(parameter, 0.1, 0.05)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = CaiT(NAME).eval()
    assert backbone.load(str(tmp_path / "whole.pth")).startswith("whole.pth sha256:")
    image = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        (expected,) = whole.forward_intermediates(
            image, indices=[19], norm=True, intermediates_only=True
        )
        (got,) = backbone(image)
    assert got.shape == (2, 192, 14, 14)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_wrong_files_are_reported(tmp_path: Path) -> None:
    backbone = CaiT(NAME)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TrainError, match=r"not of cait_xxs24_224 \(\d+ tensors differ, first"):
        backbone.load(str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(TrainError, match="neither a torch state_dict nor safetensors"):
        backbone.load(str(tmp_path / "text.pth"))
    with pytest.raises(TrainError, match="cannot be read"):
        backbone.load(str(tmp_path / "absent.pth"))
    with pytest.raises(TrainError, match="none of cait_xxs24_224; choose --backbone resnet18"):
        backbone.load("texture")


@pytest.mark.slow
def test_the_flow_trains_on_it_and_its_export_is_the_same_function() -> None:
    method = SSNF(replace(SSNF.settings_for(NAME), blocks=2))
    good = [render("board", None, seed, 224)[0] for seed in range(3)]
    method.backbone.load("random", 0)
    method.backbone.estimate_batchnorm(good)  # of which it has none
    assert method.fit(Fit(good, 1)) == 1
    assert torch.equal(method.mean, torch.zeros(192))  # its tokens are normalised already
    graph = onnx_from_module(method.fused(), method.geometry)
    engine = open_reference(graph, (224, 224), threads=1)
    image = torch.from_numpy(good[0])[None]
    with torch.inference_mode():
        score, anomaly_map = method(image)
    got_score, got_map = engine(image.numpy())
    spread = float(anomaly_map.std())
    torch.testing.assert_close(torch.from_numpy(got_score), score, rtol=1e-3, atol=1e-3 * spread)
    torch.testing.assert_close(
        torch.from_numpy(got_map), anomaly_map, rtol=1e-3, atol=1e-3 * spread
    )


def test_other_sizes_and_other_methods_are_refused() -> None:
    geometry = Geometry("stretch", 256, 256)
    with pytest.raises(TrainError, match="takes images of 224 x 224 only"):
        SSNF(replace(SSNF.settings_for(NAME), geometry=geometry))
    with pytest.raises(TrainError, match=r"does not have the levels 2, 3 .*known: resnet18"):
        SimpleNet(replace(SimpleNet.settings_for(NAME), geometry=Geometry("stretch", 224, 224)))
