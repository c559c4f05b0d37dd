"""RevDist against its specification: networks, literal pipeline, training and exported graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method, random_images
from oracles import assert_equal_state, assert_fused_equals_literal
from rounding import RoundingEvaluator
from teacher_oracles import resized, state_of, trained_like, unit
from torch import nn

from flawline.export import ExportError
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones.torchvision_files import initialise
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.reverse_resnet import Decoder, Embedding
from flawline.train.methods.rd4ad import BATCH, SIGMA, RevDist, RevDistSettings

pytestmark = pytest.mark.torch
SIZE = 64


def unfitted(size: tuple[int, int] = (SIZE, SIZE)) -> RevDist:
    return RevDist(RevDistSettings("resnet18", Geometry("stretch", *size)))


# ---------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("name", "width", "blocks"),
    [("resnet18", 64, (2, 2, 2)), ("resnet34", 64, (3, 4, 6)), ("wide_resnet50_2", 256, (3, 4, 6))],
)
def test_the_decoder_mirrors_the_levels(name: str, width: int, blocks: Any) -> None:
    """Its stages have the numbers of blocks of the authors' code, which reads them in order."""
    with torch.device("meta"):
        embedding, decoder = Embedding(name), Decoder(name)
        levels = [torch.empty(1, width << k, 64 >> k, 64 >> k) for k in range(3)]
        embedded = embedding(*levels)
        decoded = decoder(embedded)
    assert embedded.shape == (1, 8 * width, 8, 8)
    assert [x.shape for x in decoded] == [x.shape for x in levels]
    assert tuple(len(stage) for stage in decoder.stages) == blocks
    doubling = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(doubling) == 6
    assert all(m.kernel_size == m.stride == (2, 2) and m.bias is None for m in doubling)
    assert embedding.stage[0].conv1.in_channels == 3 * 4 * width


def test_a_backbone_that_is_no_residual_network_is_refused() -> None:
    with pytest.raises(TrainError, match="known: resnet18"):
        Decoder("cait_m48_448")


def test_initial_weights_are_the_authors_and_follow_the_seed() -> None:
    """Kaiming's for convolutions, torch's default for transposed ones."""
    networks = []
    for seed, other in ((0, 1), (0, 2), (1, 3)):
        torch.manual_seed(other)
        network = Decoder("resnet18")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(9.0)
        initialise(network, seed)
        networks.append(network)
    assert_equal_state(networks[0], networks[1])
    first = networks[0].stages[0][0]
    assert not torch.equal(first.conv1.weight, networks[2].stages[0][0].conv1.weight)
    # Kaiming with fan-out 256 * 9; U(-b, b) with b = 1 / sqrt(256 * 4).
    assert float(first.conv2.weight.detach().std()) == pytest.approx(
        (2 / (256 * 9)) ** 0.5, rel=0.02
    )
    assert float(first.conv1.weight.detach().abs().max()) == pytest.approx(1024**-0.5, rel=0.01)
    assert torch.equal(first.bn1.weight.detach(), torch.ones(256))


def test_a_size_that_the_decoder_cannot_reach_is_refused() -> None:
    with pytest.raises(TrainError, match=r"--size 100 is not a multiple of 32, .* use --size 96"):
        unfitted((96, 100))


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_forward_by_hand(size: tuple[int, int]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    model = trained_like(unfitted(size)).double()
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        score, anomaly_map = model(image)
        levels = model.backbone.extract(image)
        decoded = model.decoder(model.embedding(*levels))
    total = 0.0
    for level, other in zip(levels, decoded, strict=True):
        distance = 1 - (unit(level) * unit(other)).sum(1)
        total = total + resized(distance, size, align_corners=True)
    expected = ndimage.gaussian_filter(total, sigma=(0, SIGMA, SIGMA))
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9)
    np.testing.assert_allclose(score, expected.max((1, 2)), rtol=1e-9)


def test_the_loss_is_one_minus_the_cosine_of_whole_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline.train.loop._multiplies_bfloat16", lambda: False)
    model = trained_like(unfitted())
    with torch.inference_mode():
        levels = model.backbone.extract(random_images(SIZE))
        decoded = model.decoder(model.embedding(*levels))
        loss = float(model.loss(levels))
    expected = 0.0
    for level, other in zip(levels, decoded, strict=True):
        a = level.double().numpy().reshape(2, -1)
        b = other.double().numpy().reshape(2, -1)
        lengths = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        expected += (1 - (a * b).sum(1) / lengths).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- training


def test_training_lowers_the_loss_and_leaves_the_teacher_as_it_is() -> None:
    images = board_images(SIZE, 4)
    model = unfitted()
    model.load_weights("random", 0, images)
    teacher = state_of(model.backbone)
    levels = model.backbone.extract(torch.from_numpy(np.stack(images)))
    losses = []
    for steps in (1, 6):
        fit_method(model, images, steps)
        with torch.inference_mode():
            losses.append(float(model.train().loss(levels)))
    assert losses[1] < 0.8 * losses[0]
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, teacher[name]), name


def test_a_last_batch_of_one_image_has_statistics_at_the_smallest_size() -> None:
    size = RevDist.smallest_size
    images = board_images(size, BATCH + 1)
    model = unfitted((size, size))
    model.load_weights("random", 0, images)
    fit_method(model, images, 2)
    with pytest.raises(TrainError, match="--size 32 is below 64"):
        unfitted((32, 32))


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_fused_equals_literal(size: tuple[int, int]) -> None:
    model = trained_like(unfitted(size), 1)
    image = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    assert_fused_equals_literal(model, image)


def test_the_graph_has_no_node_too_many() -> None:
    nodes = onnx.load_model_from_string(exported(trained_like(unfitted()))).graph.node

    def kinds(prefix: str) -> Counter[str]:
        inside = [node for node in nodes if node.name.startswith(prefix)]
        return Counter(node.op_type for node in inside if node.op_type != "Constant")

    assert kinds("/embedding/") == {"Conv": 3 + 5, "Relu": 3 + 4, "Concat": 1, "Add": 2}
    assert kinds("/decoder/") == {"ConvTranspose": 6, "Conv": 9, "Relu": 12, "Add": 6}
    distance = {"ReduceL2": 3, "Clip": 2, "Div": 2, "Mul": 2, "Sub": 1}
    for level in range(3):
        assert kinds(f"/distances.{level}/") == distance
    assert kinds("/smooth/") == {"MatMul": 4, "Concat": 1}
    rest = kinds("/") - kinds("/backbone/") - kinds("/embedding/") - kinds("/decoder/")
    assert rest["Squeeze"] == 3
    assert not {"Split", "Gather", "Reshape", "BatchNormalization", "DepthToSpace"} & set(rest)


# ---------------------------------------------------------------- FP16


def test_the_islands_keep_features_finite_whose_squares_are_not() -> None:
    images = torch.from_numpy(np.stack(board_images(SIZE, 3)))
    model = trained_like(unfitted())
    with torch.no_grad():
        model.backbone.bn1.weight.mul_(300)
    with torch.inference_mode():
        reference, _ = model(images)
        halves = [level.numpy().astype(np.float16) for level in model.backbone.extract(images)]
    with np.errstate(over="ignore"):
        assert all(np.isinf((x * x).sum(1, dtype=np.float16)).any() for x in halves)
    data = exported(model)
    got = RoundingEvaluator(to_fp16(data, fp32_islands(model.fused())))(image=images.numpy())
    np.testing.assert_allclose(got["score"], reference, rtol=0.02)
    with pytest.raises(ExportError, match="is too small for FP16"):
        to_fp16(data, ())


def test_the_marked_parts_are_those_of_the_specification() -> None:
    islands = fp32_islands(unfitted().eval().fused())
    assert islands == ("/distances.0", "/distances.1", "/distances.2", "/smooth", "/largest")
