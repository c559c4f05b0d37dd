"""DifferNet: its literal pipeline by hand, its two settings, its training and its FP16 form."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import board_images, exported, random_images
from oracles import assert_fused_equals_literal
from rounding import RoundingEvaluator

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.engines import open_reference
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import PRECISIONS
from flawline.train import TrainError
from flawline.train.backbones.rotated import rotate_images
from flawline.train.blocks import vector_flow
from flawline.train.blocks.fused import fp32_islands
from flawline.train.method import Fit
from flawline.train.methods.differnet import DifferNet, DifferNetSettings, mean_features

pytestmark = pytest.mark.torch
SIZE = 64
IMAGES = 4


def settings(**changes: Any) -> DifferNetSettings:
    light = DifferNet.settings_for("resnet18")
    small = {"geometry": Geometry("stretch", SIZE, SIZE), "blocks": 2, "hidden": 32}
    return dataclasses.replace(light, **{**small, **changes})


@cache
def backbone_state() -> Any:
    """Random weights with the statistics of a few images."""
    model = DifferNet(settings()).eval()
    model.load_weights("random", 0, board_images(SIZE, 4))
    return model.backbone.state_dict()


def net(**changes: Any) -> DifferNet:
    """A DifferNet with a random backbone and a flow that is not trained."""
    model = DifferNet(settings(**changes)).eval()
    model.backbone.load_state_dict(backbone_state())
    model.flow.initialise(torch.Generator().manual_seed(0))
    return model


def trained(steps: int = 2, **changes: Any) -> DifferNet:
    model = net(**changes)
    assert model.fit(Fit(board_images(SIZE, IMAGES), steps, 1)) == steps
    return model


@cache
def light_graph() -> bytes:
    """The exported form of a net that is not trained."""
    return exported(net())


def all_vectors(model: DifferNet, images: list[Any]) -> Any:
    """The vectors of all cached rotations of images, [n * rotations, D]."""
    vectors = []
    with torch.inference_mode():
        for image in images:
            vectors.append(model._all_vectors(torch.from_numpy(image)[None])[0])
    return torch.cat(vectors)


# ---------------------------------------------------------------- the literal pipeline


def test_the_score_is_the_logarithm_of_the_mean_square_over_right_angles_and_dimensions() -> None:
    model = trained().double()
    images = torch.from_numpy(np.stack(board_images(SIZE, IMAGES + 2)[IMAGES:]))
    backbone = model.backbone
    with torch.inference_mode():
        score, anomaly_map = model(images)
        expected = []
        for image in images:
            squares = []
            for turns in range(4):
                x = backbone.normalise(torch.rot90(image, turns)[None])
                parts = []
                for step in (1, 2, 4):
                    (level,) = backbone.network(x[:, :, ::step, ::step])
                    parts.append(level.mean((2, 3)))
                vector = (torch.cat(parts, 1) - model.mean) / model.std
                squares.append(model.flow(vector)[0].square().mean())
            expected.append(float(torch.stack(squares).mean()))
    np.testing.assert_allclose(score, np.log(np.array(expected) + 1e-4), rtol=1e-9)
    assert anomaly_map.shape == (2, 0, 0)


def test_the_loss_is_the_nll_per_dimension() -> None:
    model = trained().double()
    vectors = torch.randn(5, 768, dtype=torch.float64)
    standard = (vectors - model.mean) / model.std
    z, log_determinant = model.flow(standard)
    expected = ((z**2).sum(1) / 2 - log_determinant).mean() / 768
    torch.testing.assert_close(model.loss(vectors), expected)


def test_the_published_setting_is_that_of_the_authors() -> None:
    published = DifferNet.settings_for("alexnet")
    assert (published.geometry.height, published.blocks, published.hidden) == (448, 8, 2048)
    assert (published.angles, published.cached, published.standardised) == (64, None, False)
    assert (published.learning_rate, published.noise) == (2e-4, 0.0)
    assert DifferNet.steps(published, 240, None) == 24 * 8 * 10
    with torch.device("meta"):
        flow = vector_flow.VectorFlow(768, published.blocks, published.hidden)
    assert round(sum(p.numel() for p in flow.parameters()) / 1e6) == 172


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles": 6}, "angles 6 is not a multiple of 4"),
        ({"angles": 0}, "angles 0 is not a multiple of 4"),
        ({"geometry": Geometry("stretch", 64, 96)}, "cannot be rotated and halved; give a --size"),
        ({"geometry": Geometry("stretch", 66, 66)}, "cannot be rotated and halved; give a --size"),
        ({"cached": None}, "not cached have no statistics"),
        ({"backbone": "alexnet"}, "--size 64 is too small for alexnet"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        DifferNet(settings(**changes))


# ---------------------------------------------------------------- training


def test_training_reduces_the_loss_on_its_images() -> None:
    images = board_images(SIZE, IMAGES)
    losses = []
    for steps in (1, 8):
        model = trained(steps, learning_rate=5e-3)
        with torch.inference_mode():
            losses.append(float(model.loss(all_vectors(model, images))))
    assert losses[1] < losses[0] - 0.01


def test_statistics_are_those_of_the_cached_vectors() -> None:
    model = trained(cached=2)
    vectors = all_vectors(model, board_images(SIZE, IMAGES))
    assert vectors.shape == (IMAGES * 6, 768)
    torch.testing.assert_close(model.mean, vectors.mean(0), rtol=1e-4, atol=1e-5)
    wide = vectors.std(0, correction=0) > 0.1 * vectors.std(0).mean()
    assert wide.float().mean() > 0.8
    ratio = model.std[wide] / vectors.std(0, correction=0)[wide]
    assert float(ratio.min()) > 0.99
    unchanged = trained(standardised=False)
    assert torch.equal(unchanged.mean, torch.zeros(768))
    assert torch.equal(unchanged.std, torch.ones(768))


def test_cached_rotations_depend_on_the_image_alone() -> None:
    """So that the trainings of folds, which leave out images, have the same ones."""
    images = torch.from_numpy(np.stack(board_images(SIZE, 2)))
    model = net(cached=3)
    with torch.inference_mode():
        first = model._all_vectors(images[:1])
        again = model._all_vectors(images[:1])
        other = model._all_vectors(images[1:])
    assert first.shape == (1, 7, 768)
    assert torch.equal(first, again)
    distances = torch.cdist(first[0], first[0]) + torch.eye(7)
    assert float(distances.min()) > 1e-3  # no rotation twice
    assert not torch.allclose(first[:, 4:], other[:, 4:], rtol=1e-2)


def test_noise_is_in_multiples_of_the_deviations_and_new_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    exact = DifferNet.loss

    def recorded(self: DifferNet, vectors: Any) -> Any:
        seen.append(vectors.clone())
        return exact(self, vectors)

    monkeypatch.setattr(DifferNet, "loss", recorded)
    trained(noise=0.0)
    plain = [seen.pop() for _ in range(2)]
    model = trained(noise=0.5)
    noises = []
    for noisy, without in zip([seen.pop() for _ in range(2)], plain, strict=True):
        noises.append((noisy - without) / model.std)
    assert all(float(noise.std()) == pytest.approx(0.5, rel=0.05) for noise in noises)
    assert not torch.allclose(noises[0], noises[1])


def test_without_a_cache_every_step_has_new_rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[float]] = []

    def recorded(images: Any, degrees: Any) -> Any:
        drawn.append(list(degrees))
        return rotate_images(images, degrees)

    monkeypatch.setattr("flawline.train.methods.differnet.rotate_images", recorded)
    model = trained(cached=None, standardised=False)
    assert [len(degrees) for degrees in drawn] == [IMAGES * 4, IMAGES * 4]
    assert len({*drawn[0], *drawn[1]}) == 2 * IMAGES * 4
    assert all(-180 <= degree <= 180 for degrees in drawn for degree in degrees)
    first = list(drawn)
    drawn.clear()
    again = trained(cached=None, standardised=False)
    assert drawn == first
    assert torch.equal(model.flow.from_first[0].last.weight, again.flow.from_first[0].last.weight)


# ---------------------------------------------------------------- the exported form


def test_tilted_rotations_are_exported_exactly() -> None:
    assert_fused_equals_literal(net(angles=8), random_images(SIZE, 2))


def test_the_graph_has_no_node_too_many() -> None:
    """Per block, two gathers and one Concat; per half of it, four products and one Split."""
    kinds = node_types(light_graph())
    assert not {"Shape", "Expand", "Resize", "Unsqueeze"} & set(kinds)
    assert kinds["Gather"] == 2 * 2
    # Of three feature maps and of the squares.
    assert kinds["ReduceMean"] == 4
    assert kinds["Atan"] == kinds["Exp"] == 2 * 2
    assert kinds["Gemm"] == 4 * 2 * 2
    assert kinds["Split"] == 2 * 2
    # Of the rotations, the scales and the halves.
    assert kinds["Concat"] == 2 + 2
    tilted = node_types(exported(net(angles=8)))
    assert tilted["Gather"] == 2 * 2 + 1  # all angles below 90 degrees
    assert "Shape" not in tilted


def test_a_fixed_batch_is_that_of_the_images() -> None:
    model = net()
    graph = onnx_from_module(model.fused(), model.geometry, model.outputs, batch=2)
    images = random_images(SIZE, 2)
    score = open_reference(graph, (0, 0), threads=1)(images.numpy())[0]
    with torch.inference_mode():
        np.testing.assert_allclose(score, model(images)[0], rtol=1e-4)


# ---------------------------------------------------------------- FP16


def far_from_good() -> DifferNet:
    """A net whose statistics say that every image is very far from good ones."""
    model = net()
    model.std.fill_(1e-7)
    return model


def rounded(graph: bytes, islands: Any) -> Any:
    images = np.stack([board_images(SIZE, 1)[0], random_images(SIZE, 1)[0].numpy()])
    return RoundingEvaluator(to_fp16(graph, islands))(image=images)["score"]


def test_islands_and_clamps_keep_far_images_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = far_from_good()
    islands = fp32_islands(model.fused())
    graph = exported(model)
    with torch.inference_mode():
        expected = model(random_images(SIZE, 1))[0]
    assert float(expected[0].exp()) > 65504
    assert np.isfinite(rounded(graph, islands)).all()
    without_squares = [island for island in islands if island != "/score"]
    assert not np.isfinite(rounded(graph, without_squares)).all()
    # The clamp of the authors' code is infinite in FP16.
    monkeypatch.setattr(vector_flow, "STATE_CLAMP", 1e6)
    assert not np.isfinite(rounded(exported(model), islands)).all()


def test_fp16_is_within_the_tolerance_of_scores_far_from_the_threshold() -> None:
    """Errors of features are 0.1 % and more of the energy, and not of its logarithm."""
    model = net()
    model.std.fill_(1e-3)
    images = np.stack([board_images(SIZE, 1)[0], random_images(SIZE, 1)[0].numpy()])
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))[0].numpy()
    errors = np.abs(rounded(exported(model), fp32_islands(model.fused())) - expected)
    far = PRECISIONS["fp16"].far
    assert (errors < far * expected).all()
    assert (errors > far).any()


def test_the_islands_are_means_affine_maps_and_squares() -> None:
    islands = fp32_islands(net().fused())
    affine = []
    for number in range(2):
        affine += [f"/flow/blocks.{number}/{half}/affine" for half in ("to_first", "to_second")]
    assert sorted(islands) == sorted(["/vectors", "/score", *affine])


def test_only_islands_and_what_moves_values_between_them_are_fp32() -> None:
    model = net()
    proto = onnx.load_model_from_string(to_fp16(light_graph(), fp32_islands(model.fused())))
    halves = 0
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            halves += int(np.prod(tensor.dims))
    assert halves > 0.99 * sum(p.numel() for p in model.parameters())


def test_mean_features_are_joined_over_scales() -> None:
    levels = [torch.ones(2, 3, 4, 4), 2 * torch.ones(2, 3, 1, 2)]
    assert mean_features(levels).tolist() == 2 * [[1.0, 1, 1, 2, 2, 2]]
