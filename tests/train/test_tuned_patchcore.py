"""CutPaste and CutSwap: what is fine-tuned, what is exported, and what the checkpoint says."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method
from oracles import assert_equal_state, assert_fused_equals_literal
from rounding import RoundingEvaluator
from torch import nn

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.anomalies.cut_swap import CutSwap as SwappedPatches
from flawline.train.anomalies.three_way import CutPaste as PastedPatches
from flawline.train.backbones import create_backbone
from flawline.train.blocks.fused import fold_batchnorm, fp32_islands
from flawline.train.blocks.patch_classifier import PatchClassifier
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit
from flawline.train.methods.cutpaste import CutPaste
from flawline.train.methods.cutswap import CutSwap
from flawline.train.methods.patchcore import PatchCore
from flawline.train.saliency.base import ImageMaps, SaliencyNetwork

pytestmark = pytest.mark.torch
SIZE = 64
STEPS = 4
KINDS = (CutPaste, CutSwap)


@pytest.fixture(scope="module")
def good() -> list[Any]:
    return board_images(SIZE, 6)


def new_method(kind: Any, weights: str = "random", **changes: Any) -> Any:
    settings = kind.settings_for("resnet18")
    geometry = Geometry("stretch", SIZE, SIZE)
    settings = dataclasses.replace(settings, geometry=geometry, batch=3)
    method = kind(dataclasses.replace(settings, **changes))
    method.provenance = method.load_weights(weights, 0, board_images(SIZE, 2))
    return method


def random_weights(path: Path, last_stage: bool) -> Path:
    """A file in torchvision's format, with or without layer4."""
    backbone = create_backbone("resnet18", (2, 3))
    backbone.load("random", 5)
    backbone.estimate_batchnorm(board_images(SIZE, 2))
    state = dict(backbone.state_dict())
    if last_stage:
        stage, _ = backbone.stage_after("random", 6)
        for name, value in stage.state_dict().items():
            state[f"layer4.{name}"] = value
    torch.save(state, path)
    return path


def folded_copy(path: Path, source: Path) -> Path:
    """The same weights with every BatchNorm folded into its convolution, by torchvision's names."""
    backbone = create_backbone("resnet18", (2, 3))
    backbone.load(str(source))
    folded = fold_batchnorm(backbone).state_dict()
    state = {}
    for name, value in backbone.state_dict().items():
        conv = name.replace("bn", "conv").replace("downsample.1", "downsample.0")
        if name.endswith("running_mean"):
            value = torch.zeros_like(value)
        elif name.endswith("running_var"):
            value = torch.full_like(value, 1 - 1e-5)
        elif conv != name and name.endswith("weight"):
            value = torch.ones_like(value)
        elif conv != name and name.endswith("bias"):
            value = folded[conv]
        else:
            value = folded.get(name, value)
        state[name] = value
    torch.save(state, path)
    return path


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("kind", KINDS)
def test_only_late_convolutions_of_the_backbone_are_trained(kind: Any, good: list[Any]) -> None:
    method = new_method(kind)
    fit_method(method, good, STEPS)
    before = method.pretrained.state_dict()
    for name, value in method.backbone.state_dict().items():
        norm = "bn" in name or "downsample.1" in name
        late = name.startswith(("layer2.", "layer3."))
        assert torch.equal(before[name], value) == (norm or not late), name
    assert not any(parameter.requires_grad for parameter in method.parameters())


def test_the_first_trained_stage_can_be_chosen(good: list[Any]) -> None:
    method = new_method(CutPaste, first_level=3)
    fit_method(method, good, STEPS)
    before = method.pretrained.state_dict()
    changed = set()
    for name, value in method.backbone.state_dict().items():
        if not torch.equal(before[name], value):
            changed.add(name.split(".")[0])
    assert changed == {"layer3"}


def test_folded_weights_stay_folded_and_give_the_same_function(
    good: list[Any], tmp_path: Path
) -> None:
    original = random_weights(tmp_path / "original.pth", last_stage=False)
    folded = folded_copy(tmp_path / "folded.pth", original)
    image = torch.from_numpy(np.stack(good[:2]))
    plain = new_method(CutPaste, str(original))
    method = new_method(CutPaste, str(folded))
    with torch.inference_mode():
        pairs = zip(plain.pretrained.extract(image), method.pretrained.extract(image), strict=True)
        for expected, level in pairs:
            torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-3)
    fit_method(method, good, STEPS)
    for module in method.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
            assert torch.equal(module.weight, torch.ones_like(module.weight))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in method.fused().backbone.modules())


def test_a_last_stage_in_the_file_is_used_and_a_missing_one_is_new(tmp_path: Path) -> None:
    whole = random_weights(tmp_path / "whole.pth", last_stage=True)
    method = new_method(CutPaste, str(whole))
    saved = torch.load(whole, weights_only=True)
    assert not method.fresh_stage
    for name, value in method.pretrained_stage.state_dict().items():
        torch.testing.assert_close(value, saved[f"layer4.{name}"])
    assert "last stage from the same weights" in method.provenance
    short = random_weights(tmp_path / "short.pth", last_stage=False)
    method = new_method(CutPaste, str(short))
    assert method.fresh_stage
    assert "last stage random, seed 0" in method.provenance


def test_a_damaged_last_stage_is_an_error(tmp_path: Path) -> None:
    whole = random_weights(tmp_path / "whole.pth", last_stage=True)
    state = torch.load(whole, weights_only=True)
    del state["layer4.1.conv2.weight"]
    torch.save(state, whole)
    with pytest.raises(TrainError, match=r"not of layer4 of resnet18 .*1.conv2.weight"):
        new_method(CutPaste, str(whole))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_pretrained_stage_keeps_its_batchnorms_and_a_new_one_does_not(fresh: bool) -> None:
    backbone = create_backbone("resnet18", (2, 3))
    backbone.load("random", 0)
    stage, _ = backbone.stage_after("random", 0)
    PatchClassifier(backbone, stage, fresh, 2, 0).train()
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.training == fresh
        assert norm.weight.requires_grad == fresh
    assert not any(module.training for module in backbone.modules())


def test_the_classifier_learns_to_name_the_anomalies(good: list[Any]) -> None:
    """The classes are balanced, so the loss of a classifier that has learnt nothing is log 3."""
    method = new_method(CutPaste, batch=6)
    trained: list[Any] = []
    method.keep = trained.append
    fit_method(method, good, 20)
    series = CutPaste.anomalies(method.settings, good, 0)
    images, labels = series.labelled(range(6))
    logits = trained[0](torch.from_numpy(np.stack(images)))
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels))
    assert loss < 0.95


# ---------------------------------------------------------------- the exported form


def nodes(graph: bytes) -> list[tuple[str, str]]:
    model = onnx.load_model_from_string(graph)
    return [(node.op_type, node.name) for node in model.graph.node]


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_has_the_nodes_and_sizes_of_patchcore(kind: Any, good: list[Any]) -> None:
    method = new_method(kind)
    fit_method(method, good, STEPS)
    settings = PatchCore.settings_for("resnet18")
    plain = PatchCore(dataclasses.replace(settings, geometry=method.geometry))
    plain.load_weights("random", 0, good)
    fit_method(plain, good)
    graphs = [exported(method), exported(plain)]
    assert nodes(graphs[0]) == nodes(graphs[1])
    assert len(graphs[0]) == len(graphs[1])
    assert graphs[0] != graphs[1]


@pytest.fixture(scope="module")
def gaussian(good: list[Any]) -> Any:
    method = new_method(CutPaste, density="gaussian")
    fit_method(method, good, STEPS)
    return method


def test_the_gaussian_scores_whole_images_and_the_map_is_patchcores(
    gaussian: Any, good: list[Any]
) -> None:
    image = torch.from_numpy(np.stack(good[:3]))
    score, anomaly_map = gaussian(image)
    embedding = gaussian.embedding(image)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    offset = embedding - gaussian.embedding_mean
    distance = torch.linalg.vector_norm(offset @ gaussian.whitening, dim=1)
    torch.testing.assert_close(score, distance, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(anomaly_map, PatchCore.forward(gaussian, image)[1])


def test_the_gaussian_is_exported_exactly(gaussian: Any) -> None:
    unseen = board_images(SIZE, 9)[6:]
    assert_fused_equals_literal(gaussian, torch.from_numpy(np.stack(unseen)))
    half = RoundingEvaluator(to_fp16(exported(gaussian), fp32_islands(gaussian.fused())))
    noise = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    images = np.concatenate([np.stack(unseen), noise, np.zeros_like(noise)])
    results = half(image=images)
    assert np.isfinite(results["score"]).all()
    with torch.inference_mode():
        score, _ = gaussian(torch.from_numpy(images))
    np.testing.assert_allclose(results["score"], score, rtol=0.05)


def test_the_gaussian_is_saved_and_resumed(gaussian: Any, good: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    method = new_method(CutPaste, density="gaussian")

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(path, method, {}, state)

    def stop(label: str, done: int, total: int) -> None:
        if label == "features":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.fit(Fit(good, STEPS, progress=stop, save=save))
    saved = load_checkpoint(path)
    assert saved.method.fit(Fit(good, STEPS, state=saved.training)) == STEPS
    assert_equal_state(saved.method, gaussian)


@pytest.mark.parametrize("density", ["patchcore", "gaussian"])
def test_nothing_is_exported_before_fit(density: str) -> None:
    with pytest.raises(TrainError, match="cutpaste has no bank yet"):
        new_method(CutPaste, density=density).fused()


# ---------------------------------------------------------------- saliency in a training


class Coordinates(SaliencyNetwork):
    """Brightness at two scales; counts how many images it has seen."""

    strides = (2, 4)
    title = "a test"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = 0
        self.description = "a test"

    def forward(self, image: Any) -> Any:
        self.seen += len(image)
        planes = image.permute(0, 3, 1, 2) / 255 * self.weight
        levels = [nn.functional.avg_pool2d(planes, stride) for stride in self.strides]
        levels[1] = nn.functional.avg_pool2d(levels[0], 2)
        return levels, levels[1].mean((2, 3))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Coordinates]:
    """The networks that were opened instead of the one that the settings name."""
    networks: list[Coordinates] = []

    def open_test(name: str) -> Coordinates:
        networks.append(Coordinates())
        return networks[-1]

    monkeypatch.setattr("flawline.train.methods.cutswap.open_network", open_test)
    return networks


def test_trainings_on_parts_of_the_images_share_the_maps(
    opened: list[Coordinates], good: list[Any]
) -> None:
    method = new_method(CutSwap, saliency="lite0")
    assert method.provenance.endswith("CutSwap, saliency of a test")
    fit_method(method, good, STEPS)
    other = CutSwap(method.settings)
    other.start_like(method)
    fit_method(other, good[:4], STEPS)
    copy.deepcopy(method).double()
    (network,) = opened
    assert network.seen == len(good)
    assert_equal_state(other.pretrained, method.pretrained)
    assert not any(name.startswith("image_maps") for name in method.state_dict())


def test_a_resumed_training_opens_the_network_again(
    opened: list[Coordinates], good: list[Any], tmp_path: Path
) -> None:
    whole = new_method(CutSwap, saliency="lite0")
    fit_method(whole, good, STEPS)
    path = tmp_path / "run.pt"
    method = new_method(CutSwap, saliency="lite0")

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(path, method, {}, state)

    def stop(label: str, done: int, total: int) -> None:
        if label == "fine-tuning" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.fit(Fit(good, STEPS, progress=stop, save=save))
    saved = load_checkpoint(path)
    assert saved.method.fit(Fit(good, STEPS, state=saved.training)) == STEPS
    assert_equal_state(saved.method, whole)
    assert len(opened) == 3


def test_the_own_saliency_begins_after_pasted_patches(good: list[Any]) -> None:
    method = new_method(CutSwap)
    backbone = method.pretrained
    stage = method.pretrained_stage
    series = method.series(Fit(good, 10), PatchClassifier(backbone, stage, True, 2, 0).eval())
    kinds = [type(series.at(step)) for step in range(10)]
    assert kinds == [PastedPatches] * 3 + [SwappedPatches] * 7
    assert "not the paper's" in method.provenance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 0}, "--clusters 0"),
        ({"cluster": "middle"}, "--cluster middle"),
        ({"most_salient": -1}, "--most-salient -1"),
        ({"maps": "1,6"}, "--maps 1,6: '6' is not a number from 1 to 5"),
        ({"maps": "one"}, "--maps one"),
        ({"first_level": 4}, "first_level 4"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        dataclasses.replace(CutSwap.settings_for("resnet18"), **changes)


def test_a_map_that_the_network_lacks_is_refused_before_training(
    opened: list[Coordinates],
) -> None:
    with pytest.raises(TrainError, match="number from 1 to 4"):
        new_method(CutSwap, maps="5")
    with pytest.raises(TrainError, match="number from 1 to 2"):
        new_method(CutSwap, saliency="lite0", maps="3")


def test_drawn_samples_need_a_network_that_is_there(
    opened: list[Coordinates], good: list[Any]
) -> None:
    settings = dataclasses.replace(CutSwap.settings_for("resnet18"), maps="2")
    with pytest.raises(TrainError, match="--saliency vgg16 or lite0"):
        CutSwap.anomalies(settings, good, 0)
    settings = dataclasses.replace(settings, saliency="lite0")
    series = CutSwap.anomalies(settings, good, 0)
    assert isinstance(series.maps, ImageMaps)
    assert series.settings.levels == (1,)
    assert CutPaste.anomalies(CutPaste.settings_for("resnet18"), good, 0).images is good


def test_the_gaussian_score_is_not_reweighted() -> None:
    settings = CutPaste.settings_for("resnet18")
    with pytest.raises(TrainError, match="--density gaussian"):
        dataclasses.replace(settings, density="gaussian", reweight=9)
    with pytest.raises(TrainError, match="--density median"):
        dataclasses.replace(settings, density="median")
