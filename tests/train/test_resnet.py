"""The ResNets against torchvision's, and their weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images

from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.resnet import ARCHITECTURES, ResNet

pytestmark = pytest.mark.torch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_levels_are_torchvisions(name: str, torchvision_models: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = getattr(torchvision_models, name)(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = ResNet(name, (1, 2, 3)).eval()
    backbone.load(str(tmp_path / "weights.pth"))
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        level1 = reference.layer1(y)
        level2 = reference.layer2(level1)
        level3 = reference.layer3(level2)
        got = backbone(x)
        stage, known = backbone.stage_after(str(tmp_path / "weights.pth"), 0)
        torch.testing.assert_close(stage.eval()(level3), reference.layer4(level3))
    assert known
    for level, expected in zip(got, (level1, level2, level3), strict=True):
        torch.testing.assert_close(level, expected)


@pytest.mark.filterwarnings("ignore")
def test_layer4_is_built_for_a_method_that_reads_it(
    torchvision_models: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    reference = torchvision_models.resnet18(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = ResNet("resnet18", (2, 4)).eval()
    backbone.load(str(tmp_path / "weights.pth"))
    assert ResNet("resnet18", (2, 3)).layer4 is None
    assert (backbone.channels, backbone.grids(64, 90)) == ((128, 512), ((8, 12), (2, 3)))
    x = torch.randn(1, 3, 64, 90)
    with torch.inference_mode():
        y = reference.layer1(reference.maxpool(reference.relu(reference.bn1(reference.conv1(x)))))
        level2 = reference.layer2(y)
        expected = (level2, reference.layer4(reference.layer3(level2)))
        for got, level in zip(backbone(x), expected, strict=True):
            torch.testing.assert_close(got, level)


def test_weights_without_the_layer4_that_is_read_are_refused() -> None:
    with pytest.raises(TrainError, match=r"end at layer3, .* layer4 of resnet18; use a file"):
        ResNet("resnet18", (3, 4)).load("texture")


def test_wrong_weights_are_reported(tmp_path: Path) -> None:
    backbone = ResNet("resnet18")
    path = tmp_path / "w.pth"
    for content, message in (
        (ResNet("resnet34").state_dict(), "not of resnet18"),
        ({"a": torch.zeros(1)}, r"no conv1\.weight"),
        ([1, 2], "no state_dict of resnet18"),
    ):
        torch.save(content, path)
        with pytest.raises(TrainError, match=message):
            backbone.load(str(path))
    path.write_bytes(b"rubbish")
    with pytest.raises(TrainError, match="not a torch state_dict"):
        backbone.load(str(path))
    with pytest.raises(TrainError, match="cannot be read"):
        backbone.load(str(tmp_path / "absent.pth"))


def test_a_download_that_fails_says_how_to_pass_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    message = r"resnet18-f37072fd\.pth cannot be downloaded .*; use --weights texture, .*"
    with pytest.raises(TrainError, match=message + "--weights resnet18-f37072fd"):
        ResNet("resnet18").load("imagenet")
    message = r"cannot be downloaded .*; use --backbone resnet18 --weights texture, .*"
    with pytest.raises(TrainError, match=message + "--weights resnet50-0676ba61"):
        ResNet("resnet50").load("imagenet")


def test_a_stage_that_the_weights_lack_is_random_by_the_seed() -> None:
    backbone = ResNet("resnet18")
    stages = []
    for seed in (1, 1, 2):
        stage, known = backbone.stage_after("texture", seed)
        assert not known
        stages.append(stage.state_dict()["0.conv1.weight"])
    assert torch.equal(stages[0], stages[1])
    assert not torch.equal(stages[0], stages[2])
    assert backbone.stages_from(2) == [backbone.layer2, backbone.layer3]


def test_a_backbone_without_a_further_stage_says_so() -> None:
    backbone = FlatBackbone("resnet18", (1,))
    for use in (lambda: backbone.stage_after("random", 0), lambda: backbone.stages_from(1)):
        with pytest.raises(TrainError, match="take another --backbone"):
            use()


class FlatBackbone(ResNet):
    """A backbone that inherits the defaults of the interface."""

    stage_after = Backbone.stage_after
    stages_from = Backbone.stages_from


def test_normalise_is_rgb_with_imagenet_statistics() -> None:
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[..., 2] = 255  # red, in BGR
    normalised = ResNet("resnet18").normalise(image)[0, :, 0, 0].tolist()
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert normalised == pytest.approx(expected)


def test_estimated_statistics_keep_random_features_near_a_deviation_of_one() -> None:
    backbone = ResNet("resnet18").eval()
    backbone.load("random", 1)
    images = random_images(count=16)
    backbone.estimate_batchnorm(list(images.numpy()))
    with torch.inference_mode():
        *_, level3 = backbone.extract(images)
    assert 0.1 < float(level3.std()) < 3


def test_statistics_are_estimated_for_any_number_of_images() -> None:
    """A batch of one image would have none on layer3 of 16 pixels, which has one position."""
    backbone = ResNet("resnet18").eval()
    backbone.load("random", 1)
    backbone.estimate_batchnorm(list(random_images(16, 9).numpy()))
    assert int(backbone.bn1.num_batches_tracked) == 2


def test_texture_weights_that_do_not_exist_name_those_that_do() -> None:
    with pytest.raises(TrainError, match="none of resnet101, only of resnet18"):
        ResNet("resnet101").load("texture")
