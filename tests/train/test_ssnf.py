"""SSNF against its specification: the literal pipeline, the training and the exported graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import (
    ATTENTION,
    FLOW_TOLERANCES,
    SIZE,
    Size,
    boards,
    both_sides,
    counted,
    exported,
    images_with_defect,
    literal_flow,
    random_images,
    trained_like,
    upsampled,
)
from oracles import assert_equal_state, assert_fused_equals_literal
from rounding import RoundingEvaluator

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import node_types
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.train import TrainError
from flawline.train.anomalies.blend import Blended
from flawline.train.blocks.averaged_levels import average_levels, channel_statistics
from flawline.train.blocks.contrastive_loss import KEPT_SHARE, Contrast, draw_images
from flawline.train.blocks.flow import flow_forward, latent_nll
from flawline.train.blocks.flow_scores import literal_score
from flawline.train.blocks.fused import fp32_islands
from flawline.train.data import CachedImages, PreparedImages
from flawline.train.method import Fit
from flawline.train.methods import ssnf
from flawline.train.methods.ssnf import SSNF, SSNFSettings

pytestmark = pytest.mark.torch


def net(size: Size = SIZE, **options: Any) -> SSNF:
    """A small SSNF with a random backbone, before its training."""
    small = {"projected": 24, "blocks": 2, "hidden": 8, "heads": 2, "batch": 8, **options}
    torch.manual_seed(0)
    settings = SSNFSettings("resnet18", Geometry("stretch", *both_sides(size)), **small)
    model = SSNF(settings).eval()
    model.load_weights("random", 0, list(random_images(8, 5, size)))
    return model


def trained_net(size: Size = SIZE, seed: int = 0, **options: Any) -> SSNF:
    """A small SSNF as a long training might leave it."""
    model = net(size, **options)
    model._initialise(seed)
    trained_like(model.flow, seed)
    generator = torch.Generator().manual_seed(seed)
    model.mean.normal_(0, 1, generator=generator)
    model.std.uniform_(0.5, 2, generator=generator)
    return model


# ---------------------------------------------------------------- the literal pipeline


@pytest.mark.parametrize("projected", [None, 24])
@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        (64, 8, (8, 8)),
        (64, 16, (4, 4)),
        ((72, 90), 8, (9, 12)),
        ((72, 90), 16, (5, 6)),
    ],
)
def test_features_are_the_averaged_levels_on_the_grid_of_the_stride(
    size: Size, stride: int, grid: tuple[int, int], projected: int | None
) -> None:
    """The averaged levels are held to loops in test_averaged_levels."""
    model = trained_net(size, stride=stride, projected=projected)
    assert model.grid == grid
    image = torch.from_numpy(random_images(2, 0, size))
    with torch.inference_mode():
        features = model.features(image)
        levels = model.backbone.extract(image)
        expected = average_levels(levels, stride // 8, model.rotation)
    assert [level.shape[1] for level in levels] == [128, 256]
    assert features.shape == (2, projected or 384, *grid)
    assert torch.equal(features, expected)


def test_the_seed_draws_the_rotation() -> None:
    rotation = trained_net().rotation
    assert rotation.shape == (24, 384)
    assert torch.equal(rotation, trained_net().rotation)
    assert not torch.equal(rotation, trained_net(seed=1).rotation)
    assert not len(trained_net(projected=None).rotation)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("by_energy", [True, False])
@pytest.mark.parametrize("size", [64, (72, 90)])
def test_forward_is_the_literal_pipeline(size: Size, by_energy: bool, window: int) -> None:
    model = trained_net(size, window=window).double()
    model.by_energy.fill_(by_energy)
    image = torch.from_numpy(random_images(2, 0, size))
    with torch.inference_mode():
        standard = (model.features(image) - model.mean[:, None, None]) / model.std[:, None, None]
        z, _ = literal_flow(model.flow, standard)
        score, anomaly_map = model(image)
    positions = literal_score(z, by_energy).numpy()
    expected = upsampled(positions, both_sides(size))
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-9, atol=1e-12)
    largest = expected.max((1, 2))
    if window == 3:
        largest = largest_window(positions)
    np.testing.assert_allclose(score, largest, rtol=1e-9)


def largest_window(positions: Any) -> Any:
    """The largest mean [N] over 3x3 of the positions [N, h, w], fewer at the border."""
    _, height, width = positions.shape
    means = []
    for y in range(height):
        for x in range(width):
            window = positions[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            means.append(window.mean((1, 2)))
    return np.max(means, 0)


def test_nll_is_of_the_standardised_features() -> None:
    model = trained_net()
    x = 3 * torch.randn(2, 24, 4, 4) + 1
    with torch.inference_mode():
        z, log_det = model.flow((x - model.mean[:, None, None]) / model.std[:, None, None])
        expected = latent_nll(z, log_det)
        # The sub-networks may run in bfloat16 in training.
        np.testing.assert_allclose(model.nll(x), expected, rtol=0.05)


# ---------------------------------------------------------------- training


def fit(model: SSNF, steps: int, images: Any = None) -> Fit:
    """The record of a finished training."""
    record = Fit(images or boards(), steps, 3)
    assert model.fit(record) == steps
    return record


@pytest.mark.parametrize("negatives", ["none", "limited", "near"])
def test_good_images_become_likelier(negatives: str) -> None:
    model = net(negatives=negatives)
    fit(model, 8)
    assert not any(module.training for module in model.modules())
    before = net(negatives=negatives)
    before._initialise(3)
    before.mean.copy_(model.mean)
    before.std.copy_(model.std)
    with torch.inference_mode():
        features = model.features(torch.from_numpy(np.stack(boards())))
        standard = model.standardised(features)
        first = latent_nll(*flow_forward(before.flow, standard))
        last = latent_nll(*flow_forward(model.flow, standard))
    assert float(last.mean()) < float(first.mean())
    assert int((last < first).sum()) >= 9
    # The statistics are those of the images that were trained on.
    assert float(standard.mean((0, 2, 3)).abs().max()) < 0.5


@pytest.mark.parametrize("negatives", ["limited", "near", "none"])
@pytest.mark.parametrize("warm_up", [0, 0.5])
def test_negatives_are_as_asked(
    negatives: str, warm_up: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(negatives=negatives, warm_up=warm_up)
    calls: list[Any] = []
    loss_of_step = Contrast.loss

    def recorded(contrast: Any, step: int, good: Any, synthetic: Any) -> Any:
        assert model.flow.training  # so that dropout is active
        assert not model.backbone.training
        assert tuple(contrast._shape) == (24, 4, 4)
        calls.append((step, len(good), len(synthetic)))
        return loss_of_step(contrast, step, good, synthetic)

    monkeypatch.setattr(Contrast, "loss", recorded)
    fit(model, 4)
    assert [step for step, _, _ in calls] == [0, 1, 2, 3]
    for step, good, synthetic in calls:
        assert good == model.settings.batch
        blended = negatives != "none" and step >= 4 * warm_up
        assert (0 < synthetic <= good) == blended


def test_an_anomaly_that_is_empty_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(negatives="near")
    monkeypatch.setattr(Blended, "anomalies", lambda self, draws: [])
    record = fit(model, 1)
    assert KEPT_SHARE not in record.facts


def test_the_share_of_the_blended_images_that_count_is_a_fact_also_after_an_interruption() -> None:
    """It is known after the first phase; the second one, which comes then, is interrupted."""
    images = boards()
    whole = Fit(images, 4, 3)
    net(negatives="near").fit(whole)
    assert 0 <= float(whole.facts[KEPT_SHARE]) <= 1
    states: list[Any] = []

    def stop(label: str, done: int, total: int) -> None:
        if label == "choosing the score":
            raise KeyboardInterrupt

    model = net(negatives="near")
    with pytest.raises(KeyboardInterrupt):
        model.fit(Fit(images, 4, 3, progress=stop, save=states.append))
    resumed = Fit(images, 4, 3, state=states[-1])
    model.fit(resumed)
    assert resumed.facts == whole.facts
    assert resumed.notes == whole.notes


@pytest.mark.parametrize(
    ("shots", "used", "held_out"), [(None, 18, 2), (10, 10, 0), (3, 3, 0), (50, 18, 2)]
)
def test_training_and_validation_images_follow_the_shots_and_the_seed(
    shots: int | None, used: int, held_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(shots=shots)
    trained: list[Any] = []
    judged: list[Any] = []

    def record(images: Any) -> list[bytes]:
        return [image.tobytes() for image in images]

    monkeypatch.setattr(
        model, "_train", lambda images, fit: trained.append(record(images)) or fit.steps
    )
    monkeypatch.setattr(model, "_choose_score", lambda images, fit: judged.append(record(images)))
    images = boards(20)
    for seed in (3, 3, 4):
        model.fit(Fit(images, 1, seed))
    assert len(set(trained[0])) == used
    if held_out:
        assert len(judged[0]) == held_out
        assert not set(trained[0]) & set(judged[0])
    else:
        assert set(judged[0]) == set(trained[0])
    assert trained[0] == trained[1]
    assert set(trained[0]) != set(trained[2])


def test_training_standardises_by_the_images_that_it_uses() -> None:
    model = net()
    fit(model, 1)
    images, _ = draw_images(boards(), None, 3)
    with torch.inference_mode():
        features = model.features(torch.from_numpy(np.stack(images)))
    mean, std = channel_statistics(features.numpy())
    torch.testing.assert_close(model.mean, mean.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.std, std.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_energy", [True, False])
def test_the_better_score_is_chosen(by_energy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With latents of good and of blended images that only one of the two scores can tell apart."""
    model = net()
    flat = torch.ones(1, 24, 4, 4)  # energy 1 / 2, density p(1)
    peak = torch.zeros(1, 24, 4, 4)  # energy 18 / 24, density 23 / 24 p(0)
    peak[:, 0] = 6
    images = list(random_images(4, 1))
    good = {image.tobytes() for image in images}
    judged: list[bool] = []

    def features(image: Any) -> Any:
        is_good = image[0].numpy().tobytes() in good
        judged.append(is_good)
        return flat if is_good == by_energy else peak

    monkeypatch.setattr(model, "features", features)
    monkeypatch.setattr(model, "standardised", lambda x: x)
    monkeypatch.setattr(ssnf, "flow_forward", lambda _, x: (x, torch.zeros(1)))
    model.by_energy.fill_(not by_energy)
    model._choose_score(images, Fit(images, 1))
    assert bool(model.by_energy) == by_energy
    assert judged.count(True) >= len(images)
    assert judged.count(False) >= len(images)


def test_a_single_shot_is_enough() -> None:
    model = net(shots=1)
    fit(model, 2)
    with torch.inference_mode():
        score, anomaly_map = model(torch.from_numpy(np.stack(boards(2))))
    assert bool(anomaly_map.isfinite().all())
    assert bool(score.isfinite().all())


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "some"}, "--negatives some is unknown; known: limited, near, none"),
        ({"shots": 0}, "--shots 0 is not above 0"),
        ({"shots": -2}, "--shots -2 is not above 0"),
        ({"stride": 4}, "stride 4 is unknown"),
        ({"window": 4}, "window 4 is not odd; give 1, 3, 5 or 7"),
        ({"window": -1}, "window -1 is not odd"),
        ({"hidden": 10, "heads": 4}, "10 hidden channels are no multiple"),
    ],
)
def test_wrong_settings_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        net(**options)


def test_the_product_comes_from_the_name_of_the_data() -> None:
    settings = SSNF.settings_for("resnet18")
    assert SSNF.complete_settings(settings, Path("/data/bottle")).product == "bottle"
    assert SSNF.complete_settings(settings, Path("/data/gear")).product is None


def test_images_from_the_cache_train_the_same_as_images_in_memory(tmp_path: Path) -> None:
    paths = []
    for number, image in enumerate(boards()):
        paths.append(tmp_path / f"{number:03d}.png")
        paths[-1].write_bytes(cv2.imencode(".png", image)[1])
    prepared = PreparedImages(paths, Geometry("stretch", *both_sides(SIZE)))
    models = []
    for images in (list(prepared), CachedImages(prepared)):
        model = net()
        fit(model, 3, images)
        models.append(model)
    assert_equal_state(*models)


def test_shots_limit_the_images_used() -> None:
    geometry = Geometry("stretch", SIZE, SIZE)
    few = SSNFSettings("resnet18", geometry, shots=3)
    assert SSNF.images_used(few, 20) == 3
    assert SSNF.images_used(few, 2) == 2
    assert SSNF.images_used(SSNFSettings("resnet18", geometry), 20) == 20


def test_the_anomalies_are_blended_as_for_the_product() -> None:
    settings = SSNFSettings("resnet18", Geometry("stretch", SIZE, SIZE), product="bottle")
    anomalies = SSNF.anomalies(settings, boards(3), 0)
    assert anomalies.settings == ssnf.product_settings("bottle")
    assert anomalies.description == "blend settings of bottle"


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize(
    ("size", "stride", "projected", "window", "by_energy"),
    [
        (64, 8, None, 1, True),
        (64, 8, 24, 3, True),
        (64, 16, None, 5, False),
        (64, 16, 24, 1, False),
        ((72, 90), 8, None, 1, False),
        ((72, 90), 8, 24, 5, False),
        ((90, 72), 16, None, 3, True),
        ((90, 72), 16, 24, 1, True),
    ],
)
def test_fused_equals_literal(
    size: Size, stride: int, projected: int | None, by_energy: bool, window: int
) -> None:
    options = {"stride": stride, "projected": projected, "window": window}
    model = trained_net(size, 1, blocks=3, **options)
    model.by_energy.fill_(by_energy)
    images = torch.from_numpy(random_images(2, 0, size))
    assert_fused_equals_literal(model, images, tolerances=FLOW_TOLERANCES)


def nodes_of(data: bytes) -> list[Any]:
    return list(onnx.load_model_from_string(data).graph.node)


@pytest.mark.parametrize("by_energy", [True, False])
@pytest.mark.parametrize("options", [{"projected": None}, {"stride": 8}])
def test_the_graph_has_no_node_too_many(options: dict[str, Any], by_energy: bool) -> None:
    model = trained_net(blocks=3, **options)
    model.by_energy.fill_(by_energy)
    data = exported(model)
    nodes = nodes_of(data)
    flow = counted(n for n in nodes if n.name.startswith("/flow"))
    assert flow == Counter({kind: 3 * number for kind, number in ATTENTION.items()})
    assert ATTENTION.total() == 24
    assert not {"Gather", "Split", "Slice", "Concat", "ReduceSum", "ReduceMean"} & set(flow)
    whole = set(node_types(data))
    assert not {"Log", "Gather", "Split", "Slice", "Einsum", "Expand", "Softplus"} & whole
    assert "BatchNormalization" not in whole
    score = counted(n for n in nodes if n.name.startswith("/score"))
    expected = {"Mul": 1, "Conv": 1} if by_energy else {"Mul": 3, "Exp": 1, "ReduceSum": 1}
    assert score == Counter(expected)
    # Standardisation has no node of its own: a level has an average, and with a rotation one more.
    levels = counted(n for n in nodes if n.name.startswith("/levels"))
    if "projected" in options:
        assert levels == Counter({"Conv": 2, "Concat": 1})
    else:
        assert levels == Counter({"Conv": 4, "Resize": 1, "Add": 1})


# ---------------------------------------------------------------- FP16


@torch.no_grad()
def sensitive(
    level: int, factor: float, by_energy: bool, last_scale: float = 10, norm: float = 0.6
) -> tuple[SSNF, Any, Any]:
    """An SSNF with an anomaly far from its good images, images, and the scores that torch computes.

    `factor` multiplies the last weights of the sub-networks; `norm` is that of the rows of their
    projections. Initially they are 1 and 0.6.
    """
    good, images = images_with_defect(level)
    model = net(projected=None, blocks=4, hidden=16)
    model.backbone.estimate_batchnorm(list(good))
    trained_like(model.flow, 0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.flow.named_parameters():
        if name.endswith("global_scale"):
            parameter.normal_(10, 0.5, generator=generator)
        elif name.endswith("global_offset"):
            parameter.normal_(0, 0.1, generator=generator)
        elif name.endswith("original0"):
            parameter.fill_(norm)
        elif ".last." in name:
            parameter.mul_(factor / 15)
    model.flow.module_list[-1].global_scale.fill_(last_scale)
    mean, std = channel_statistics(model.features(torch.from_numpy(good)).numpy())
    model.mean.copy_(mean)
    model.std.copy_(std)
    model.by_energy.fill_(by_energy)
    return model, images, model(torch.from_numpy(images))[0].numpy()


def rounded(model: SSNF, images: Any, without: str | None = None) -> Any:
    """All values of the FP16 graph, without the islands whose name contains `without`."""
    islands = fp32_islands(model.fused())
    if without is not None:
        islands = tuple(island for island in islands if without not in island)
    return RoundingEvaluator(to_fp16(exported(model), islands))(image=images)


def peak_of(model: SSNF, images: Any) -> float:
    with torch.inference_mode():
        z, _ = model.flow(model.standardised(model.features(torch.from_numpy(images))))
    return float(z[-1].abs().max())


@pytest.mark.parametrize("by_energy", [True, False])
def test_islands_keep_an_anomaly_finite_and_above_every_good_image(by_energy: bool) -> None:
    model, images, reference = sensitive(20, 3, by_energy)
    assert 300 < peak_of(model, images) < 6e4
    got = rounded(model, images)
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, rtol=0.05)
    assert got["score"][2] > got["score"][:2].max()
    control = rounded(model, images, without="")
    assert np.isfinite(control["score"][:2]).all()
    if by_energy:
        assert not np.isfinite(control["score"][2])
    else:  # the density saturates: an infinite latent has none
        assert not np.isfinite(control["/score/Mul_output_0"]).all()


def test_score_and_upsampling_need_fp32() -> None:
    """With latents three times as large, the largest energy exceeds FP16 as well."""
    model, images, reference = sensitive(20, 3, True, last_scale=30)
    assert reference[2] > 65504

    def finite(without: str | None) -> bool:
        values = rounded(model, images, without)
        return bool(np.isfinite(values["score"]).all() and np.isfinite(values["map"]).all())

    assert finite(None)
    assert not finite("/score")
    assert not finite("/upsample")


@pytest.mark.parametrize("by_energy", [True, False])
def test_parts_around_the_flow_are_marked_and_in_the_graph(by_energy: bool) -> None:
    model = trained_net()
    model.by_energy.fill_(by_energy)
    islands = fp32_islands(model.fused())
    assert {"/input", "/backbone/conv1", "/score", "/upsample", "/largest"} < set(islands)
    names = [node.name for node in nodes_of(exported(model))]
    for island in islands:
        assert any(islands_of(name, [island]) for name in names), island


def test_the_affine_of_every_coupling_is_in_an_island() -> None:
    model = trained_net(blocks=3)
    islands = fp32_islands(model.fused())
    affine = []
    for node in nodes_of(exported(model)):
        if node.name.startswith("/flow/") and node.op_type in ("Exp", "Tanh"):
            affine.append(node.name)
    assert len(affine) == 2 * 3
    assert all(islands_of(name, islands) for name in affine)


def test_a_latent_beyond_fp16_in_the_last_coupling_is_finite() -> None:
    """Only the score reads it."""
    model, images, _ = sensitive(80, 1, True, norm=0.05)
    with torch.no_grad():
        for block in model.flow.module_list[-2:]:
            bias = block.subnet.last.bias
            bias[: len(bias) // 2] = 1000  # a log-scale of 2
        reference = model(torch.from_numpy(images))[0].numpy()
    assert peak_of(model, images) > 65504
    assert not np.isfinite(rounded(model, images, without="affine")["score"]).all()
    got = rounded(model, images)
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, rtol=0.05)


@pytest.mark.parametrize("by_energy", [True, False])
def test_a_plain_defect_is_finite_too(by_energy: bool) -> None:
    """With 40 grey levels the latent is far from the limit of FP16, but squares in it are not."""
    model, images, _ = sensitive(40, 1, by_energy, norm=1.5)
    assert 300 < peak_of(model, images) < 6e4
    got = rounded(model, images)
    assert np.isfinite(got["map"]).all()
    assert got["score"][2] > got["score"][:2].max()
