"""What every listed backbone must do, over BACKBONES: a backbone that is listed is tested."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from oracles import assert_equal_state
from torch import nn

from flawline.train import TrainError
from flawline.train.backbones import BACKBONES, backbone_facts, create_backbone, resolve_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import BackboneFacts
from flawline.train.blocks.fused import fold_backbone

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("torchvision_operators"),
    pytest.mark.filterwarnings("ignore"),
]
SIZE = 64
# Tests that compute with a larger network run in make test-slow.
LARGE = 40_000_000  # parameters


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    missing = resolve_backbone(request.param).missing()
    if missing:
        pytest.skip(missing)
    return str(request.param)


@pytest.fixture(scope="module")
def facts(name: str) -> BackboneFacts:
    return backbone_facts(name)


@pytest.fixture(scope="module")
def levels(facts: BackboneFacts) -> tuple[int, ...]:
    return tuple(facts.levels)


@pytest.fixture(scope="module")
def shapes_only(name: str, levels: tuple[int, ...]) -> Backbone:
    """The backbone without values: it computes shapes alone."""
    with torch.device("meta"):
        return create_backbone(name, levels).eval()


@pytest.fixture(scope="module")
def network(
    name: str, levels: tuple[int, ...], shapes_only: Backbone, request: pytest.FixtureRequest
) -> Backbone:
    """The backbone with random weights; tests must not change it."""
    size = sum(p.numel() for p in shapes_only.parameters())
    if size > LARGE and not request.config.getoption("--slow"):
        pytest.skip(f"{size / 1e6:.0f} million parameters: runs in make test-slow")
    backbone = create_backbone(name, levels)
    backbone.load("random", 1)
    return backbone.eval()


def images(facts: BackboneFacts, count: int = 2) -> Any:
    return random_images(facts.fixed_size or SIZE, count)


# ---------------------------------------------------------------- facts and shapes


def test_the_facts_are_complete(facts: BackboneFacts) -> None:
    assert facts.levels
    strides = [level.stride for level in facts.levels.values()]
    assert strides == sorted(strides)
    assert all(level.channels > 0 for level in facts.levels.values())
    if facts.fixed_size is not None:
        assert all(facts.fixed_size % stride == 0 for stride in strides)


def test_maps_have_the_shapes_of_the_facts(
    shapes_only: Backbone, facts: BackboneFacts, levels: tuple[int, ...]
) -> None:
    sizes = [facts.fixed_size] if facts.fixed_size else [SIZE, 90]
    for size in sizes:
        maps = shapes_only(torch.empty(3, 3, size, size, device="meta"))
        grids = shapes_only.grids(size, size)
        for level, features, grid in zip(levels, maps, grids, strict=True):
            assert features.shape == (3, facts.levels[level].channels, *grid)
    assert shapes_only.levels == levels
    assert shapes_only.channels == tuple(level.channels for level in facts.levels.values())
    assert shapes_only.strides == tuple(level.stride for level in facts.levels.values())


def test_levels_come_in_the_order_asked_for(name: str, levels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, levels[::-1]).eval()
    size = backbone_facts(name).fixed_size or SIZE
    maps = backbone(torch.empty(1, 3, size, size, device="meta"))
    assert [features.shape[1] for features in maps] == list(backbone.channels)
    assert backbone.levels == levels[::-1]


def test_an_unknown_level_is_refused(name: str) -> None:
    with pytest.raises(TrainError, match=f"backbone {name} does not have the levels 9"):
        create_backbone(name, (9,))


def test_the_first_convolution_is_the_one_that_reads_the_image(
    shapes_only: Backbone, facts: BackboneFacts
) -> None:
    called: list[nn.Module] = []
    handles = []
    for module in shapes_only.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(lambda conv, _: called.append(conv)))
    size = facts.fixed_size or SIZE
    shapes_only(torch.empty(1, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    assert called[0] is shapes_only.first_convolution
    assert shapes_only.first_convolution.in_channels == 3


# ---------------------------------------------------------------- values


def test_normalise_is_rgb_with_the_statistics(network: Backbone) -> None:
    image = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    image[..., 2] = 255  # red, in BGR
    normalised = network.normalise(image)
    assert normalised.shape == (1, 3, SIZE, SIZE)
    for channel, value in enumerate((1.0, 0.0, 0.0)):
        expected = (value - network.mean_rgb[channel]) / network.std_rgb[channel]
        assert float(normalised[0, channel, 0, 0]) == pytest.approx(expected)


def test_random_weights_are_a_function_of_the_seed(
    name: str, network: Backbone, levels: tuple[int, ...]
) -> None:
    torch.manual_seed(5)
    again = create_backbone(name, levels)
    assert again.load("random", 1) == "random, seed 1"
    assert_equal_state(again, network)
    again.load("random", 2)
    assert not torch.equal(again.first_convolution.weight, network.first_convolution.weight)


def test_estimated_statistics_keep_activations_in_range(
    name: str, facts: BackboneFacts, network: Backbone, levels: tuple[int, ...]
) -> None:
    backbone = create_backbone(name, levels).eval()
    backbone.load_state_dict(network.state_dict())
    batch = images(facts, 16)
    backbone.estimate_batchnorm(list(batch.numpy()))
    assert not backbone.training
    with torch.inference_mode():
        maps = backbone.extract(batch)
    normalises = any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    for features in maps:
        assert torch.isfinite(features).all()
        assert float(features.std()) > 0
        if normalises:
            assert 0.05 < float(features.std()) < 5


def test_folding_is_exact(network: Backbone, facts: BackboneFacts) -> None:
    """With BatchNorm and the input folded, the maps are those of the literal form, in float64."""
    literal = copy.deepcopy(network).double()
    before = copy.deepcopy(literal)
    read, folded = fold_backbone(literal)
    assert_equal_state(before, literal)
    batch = images(facts)
    with torch.inference_mode():
        expected = literal.extract(batch)
        got = folded(read(batch))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9 * float(b.std()))


def test_wrong_weights_are_reported(network: Backbone, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"weights .*absent"):
        network.load(str(tmp_path / "absent.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(TrainError, match=r"weights .*text"):
        network.load(str(tmp_path / "text.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TrainError, match=r"weights .*other"):
        network.load(str(tmp_path / "other.pth"))


def test_a_state_dict_loads_again(name: str, network: Backbone, levels: tuple[int, ...]) -> None:
    other = create_backbone(name, levels)
    other.load_state_dict(network.state_dict())
    assert_equal_state(other, network)
