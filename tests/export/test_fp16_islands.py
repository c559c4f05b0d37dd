"""FP32 islands: overflows, sums and flows that plain FP16 breaks, and a real engine and images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import random_images, small_simplenet
from conftest import shared
from rounding import RoundingEvaluator
from sample_graphs import (
    FLOAT,
    HALF,
    SIMPLENET_ISLANDS,
    graph,
    run_onnxruntime,
    simplenet_graph,
    types,
)
from torch import Tensor, nn

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.export.parity import ScoresAndMaps, compare
from flawline.runtime.engines.tensorrt.library import logger
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.runtime.tolerances import Tolerances
from flawline.train.data import PreparedImages, hold_out, open_data
from flawline.train.method import Fit
from flawline.train.methods.simplenet import SimpleNet

pytestmark = pytest.mark.torch
# An export allows a score to be off by this part of the standard deviation of good images' scores.
TOLERANCE = 0.05


class Affine(nn.Module):
    """A coupling's scale and shift; the clamp lets each gain a factor of exp(1.9) = 6.7."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        gain: Tensor = torch.exp(1.9 * 0.636 * torch.atan(s))
        return x * gain + t


class NegativeLogLikelihood(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z * z).mean(1, keepdim=True) / 2


class Flow(nn.Module):
    """A normalising flow of four couplings over 8 channels; subnets are FP16."""

    islands = ("/affines.0", "/affines.1", "/affines.2", "/affines.3", "/likelihood", "/Resize")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 8, 4, 4, bias=False)
        self.subnets = nn.ModuleList(nn.Conv2d(4, 8, 1) for _ in range(4))
        self.affines = nn.ModuleList(Affine() for _ in range(4))
        self.likelihood = NegativeLogLikelihood()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        z = self.features(image.permute(0, 3, 1, 2).to(torch.float32) - 120) / 2
        for subnet, affine in zip(self.subnets, self.affines, strict=True):
            a, b = z.chunk(2, 1)
            s, t = subnet(a).chunk(2, 1)
            z = torch.cat([affine(b, s, t), a], 1)
        anomaly_map = self.likelihood(z)
        return anomaly_map.amax((1, 2, 3)), nn.functional.interpolate(
            anomaly_map, scale_factor=4.0, mode="bilinear"
        )[:, 0]


class Distances(nn.Module):
    """Squared distances to the nearest of 16 stored patches, as |x|^2 + |m|^2 - 2 x.m."""

    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "bank", torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x: Tensor) -> Tensor:
        products: Tensor = x @ self.bank.T
        return (x * x).sum(-1, keepdim=True) + (self.bank * self.bank).sum(-1) - 2 * products


class NearestPatch(nn.Module):
    islands = ("/distances", "/Resize")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 32, 4, 4, bias=False)
        self.distances = Distances()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(image.permute(0, 3, 1, 2).to(torch.float32) - 120) * 2
        nearest = self.distances(x.flatten(2).transpose(1, 2)).amin(2)
        anomaly_map = nearest.view(-1, 1, 8, 8)
        return anomaly_map.amax((1, 2, 3)), nn.functional.interpolate(
            anomaly_map, scale_factor=4.0, mode="bilinear"
        )[:, 0]


def parts() -> Any:
    """Five good images, grey with noise, and one with a bright defect: uint8 [6, 32, 32, 3]."""
    images = np.random.default_rng(0).normal(120, 4, (6, 32, 32, 3)).clip(0, 255).astype(np.uint8)
    images[5, 8:20, 8:20] = (255, 255, 0)
    return images


@pytest.mark.parametrize("kind", [Flow, NearestPatch])
def test_islands_keep_an_anomaly_finite_and_above_every_good_image(kind: Any) -> None:
    module = kind().eval()
    model = onnx_from_module(module, Geometry("stretch", 32, 32))
    with torch.inference_mode():
        reference = module(torch.from_numpy(parts()))[0].numpy()
    # The anomaly is one that FP16 cannot square.
    assert reference[5] > 300**2 / 2 > 20 * reference[:5].max()
    half = to_fp16(model, kind.islands)
    score, anomaly_map = run_onnxruntime(half, parts())
    for values in (RoundingEvaluator(half)(image=parts()), {"score": score, "map": anomaly_map}):
        assert np.isfinite(values["map"]).all()
        np.testing.assert_allclose(values["score"], reference, rtol=0.02)
        assert values["score"][5] > values["score"][:5].max()
    control = RoundingEvaluator(to_fp16(model, ()))(image=parts())["score"]
    assert np.isfinite(control[:5]).all()
    assert not np.isfinite(control[5])


def test_the_state_between_couplings_stays_fp32() -> None:
    """Split and Concat are between the islands and in none, where FP16 would round z."""
    half = to_fp16(onnx_from_module(Flow().eval(), Geometry("stretch", 32, 32)), Flow.islands)
    kinds = types(half)
    joined = [n for n in graph(half).node if n.op_type == "Concat"]
    assert len(joined) == 4
    assert {kinds[n.output[0]] for n in joined} == {FLOAT}
    subnets = [n for n in graph(half).node if n.name.startswith("/subnets")]
    assert {kinds[n.output[0]] for n in subnets} == {HALF}


def test_simplenets_sum_over_hidden_units_needs_its_island() -> None:
    """Hidden units of one sign, each within FP16, whose sum is not."""
    model: Any = small_simplenet()
    last = model.discriminator[3].weight
    images = random_images(count=4)
    with torch.no_grad():
        last.copy_(-last.abs())
        last.mul_(1e5 / model(images)[0].min())
        reference = model(images)[0].numpy()
    exported = onnx_from_module(model.fused(), model.geometry)
    half = RoundingEvaluator(to_fp16(exported, SIMPLENET_ISLANDS))(image=images.numpy())
    assert 1e3 < np.abs(half["/LeakyRelu_output_0"]).max() < 65504
    np.testing.assert_allclose(half["score"], reference, rtol=0.01)
    assert (half["score"].argsort() == reference.argsort()).all()
    control = RoundingEvaluator(to_fp16(exported, ()))(image=images.numpy())
    assert np.isinf(control["score"]).all()
    # Neither island is enough alone: without /smooth the map overflows.
    for island in SIMPLENET_ISLANDS:
        alone = RoundingEvaluator(to_fp16(exported, [island]))(image=images.numpy())
        assert not (np.isfinite(alone["score"]).all() and np.isfinite(alone["map"]).all())


def test_a_score_only_graph_is_cut_from_the_converted_one() -> None:
    proto = onnx.load_model_from_string(to_fp16(simplenet_graph(), SIMPLENET_ISLANDS))
    cut = onnx.utils.Extractor(proto).extract_model(["image"], ["score"])
    onnx.checker.check_model(cut, full_check=True)
    whole = run_onnxruntime(proto.SerializeToString(), random_images())[0]
    alone = run_onnxruntime(cut.SerializeToString(), random_images())[0]
    np.testing.assert_array_equal(whole, alone)


# ---------------------------------------------------------------- real engines, real images


@pytest.mark.alone
@pytest.mark.parametrize("islands", [(), SIMPLENET_ISLANDS])
def test_tensorrt_rtx_parses_and_builds_it_strongly_typed(islands: tuple[str, ...]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    log = logger(trt)  # one per process: TensorRT keeps the first that it gets
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(to_fp16(simplenet_graph(), islands)), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    assert len(convolutions) == 20
    for layer in convolutions:
        expected = trt.float32 if islands_of(layer.name, islands) else trt.float16
        assert layer.get_input(0).dtype == expected, layer.name
        assert layer.get_output(0).dtype == expected, layer.name
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 64, 64, 3), (1, 64, 64, 3), (4, 64, 64, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def test_real_images_are_judged_as_in_fp32() -> None:
    """A short training on bottles: FP16 errors are small, and no verdict flips."""
    weights = shared("weights", "resnet18_imagenet1k_v1_bnfolded_stem_to_layer3.pth")
    data = open_data(shared("data", "mvtec_bottle"))
    method = SimpleNet(replace(SimpleNet.settings_for("resnet18"), vectors=512))
    method.backbone.load(str(weights), 0)
    train, held_out = hold_out(data.train_good)
    method.fit(Fit(PreparedImages(train[::5], method.geometry), steps=100))
    exported = onnx_from_module(method.eval().fused(), method.geometry)
    good = held_out[::2]
    paths = good + [sample.path for sample in data.test][::4]
    images = [np.asarray(image)[None] for image in PreparedImages(paths, method.geometry)]
    reference = np.array([run_onnxruntime(exported, image)[0][0] for image in images])
    half = RoundingEvaluator(to_fp16(exported, SIMPLENET_ISLANDS))
    scores = np.array([half(image=image)["score"][0] for image in images])
    std = float(reference[: len(good)].std())
    threshold = float(reference[: len(good)].max())
    no_maps = np.zeros((len(paths), 0, 0))
    parity = compare(
        paths,
        ScoresAndMaps(reference, no_maps),
        ScoresAndMaps(scores, no_maps),
        threshold,
        Tolerances(TOLERANCE * std, 1.0, 0.001),
        std,
    )
    assert parity.clear_flips == ()
    assert parity.worst_relative < TOLERANCE
    assert 0 < np.sqrt(np.mean((scores - reference) ** 2)) < 0.02 * std
