"""FP16 written into the graph: its types, its Casts, what it refuses, and what its FP32 islands are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
import onnxruntime as ort
from conftest import shared
from onnx import TensorProto, helper, numpy_helper
from rounding import RoundingEvaluator
from test_simplenet import net, picture
from torch import Tensor, nn

from flawline.export.graphs.to_fp16 import in_island, to_fp16
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.export.parity import ExportError, compare
from flawline.runtime.engines.tensorrt.library import logger
from flawline.runtime.image import Geometry
from flawline.train.data.images import PreparedImages, hold_out, open_data
from flawline.train.method import Fit
from flawline.train.methods.simplenet import SimpleNet

pytestmark = pytest.mark.torch
ISLANDS = ("/tail", "/smooth")  # SimpleNet's
TOLERANCE = 0.05  # of the good images' standard deviation: what an export allows a score to be off
FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def small_simplenet(size: int = 64) -> bytes:
    model = net(size=size)
    return onnx_from_module(model.fused(), model.geometry)


def graph_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], outputs: Sequence[str] = ("y",)
) -> bytes:
    """x float32 [N, 4] -> outputs. Weights are float32 unless they are arrays."""
    arrays = {
        k: v if isinstance(v, np.ndarray) else np.asarray(v, np.float32) for k, v in weights.items()
    }
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def node(kind: str, inputs: str, output: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name, **attributes)


def graph(model: bytes) -> onnx.GraphProto:
    return onnx.load_model_from_string(model).graph


def types(model: bytes) -> dict[str, int]:
    """Element type of every value, weights included, by strict inference."""
    proto = onnx.load_model_from_string(model)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return {**found, **{t.name: t.data_type for t in inferred.initializer}}


def casts(model: bytes) -> list[tuple[str, int]]:
    return [(n.input[0], n.attribute[0].i) for n in graph(model).node if n.op_type == "Cast"]


def onnxruntime(model: bytes, image: Any) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return list(
        ort.InferenceSession(model, options, ["CPUExecutionProvider"]).run(
            None, {"image": np.asarray(image)}
        )
    )


# ---------------------------------------------------------------- the evaluator that rounds


def test_the_rounding_evaluator_overflows_and_rounds_between_nodes() -> None:
    """300^2 is beyond FP16 and 2049 between two of its values; both come back where FP32 stays between the nodes."""
    squared = [node("Mul", "x x", "s", "/a/Mul"), node("Mul", "s small", "y", "/b/Mul")]
    half = RoundingEvaluator(to_fp16(graph_of(squared, {"small": [1e-3]}), ()))(
        x=np.full((1, 4), 300, np.float32)
    )
    assert np.isinf(half["s"]).all()
    assert np.isinf(half["y"]).all()
    added = [node("Add", "x one", "s", "/a/Add"), node("Sub", "s one", "y", "/b/Sub")]
    half = RoundingEvaluator(to_fp16(graph_of(added, {"one": [1]}), ()))(
        x=np.full((1, 4), 2048, np.float32)
    )
    assert (half["y"] == 2047).all()


# ---------------------------------------------------------------- types and Casts


@pytest.mark.parametrize("size", [64, 72])
def test_every_node_is_fp16_but_the_islands(size: int) -> None:
    model = small_simplenet(size)
    half = to_fp16(model, ISLANDS)
    before, after = onnx.load_model_from_string(model), onnx.load_model_from_string(half)
    onnx.checker.check_model(after, full_check=True)
    assert (after.ir_version, after.opset_import) == (before.ir_version, before.opset_import)
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    kinds = types(half)
    computing = [n for n in after.graph.node if n.op_type not in ("Cast", "Squeeze", "ReduceMax")]
    assert Counter(n.op_type for n in computing)["Conv"] == 20
    for n in computing:
        expected = FLOAT if in_island(n.name, ISLANDS) else HALF
        floats = [
            kinds[i] for i in n.input if i and not (n.op_type == "Resize" and i == n.input[2])
        ]
        assert {kinds[n.output[0]], *floats} == {expected}, n.name
    # What only moves or selects an island's result leaves it in FP32.
    assert {
        kinds[n.output[0]] for n in after.graph.node if n.op_type in ("Squeeze", "ReduceMax")
    } == {FLOAT}
    # One Cast in, one where the island begins, none between the islands or at the end.
    assert casts(half) == [("image", HALF), ("/LeakyRelu_output_0", FLOAT)]
    assert not [
        n.name for n in after.graph.node if n.op_type == "Cast" and in_island(n.name, ISLANDS)
    ]
    assert len(half) < 0.6 * len(model)


def test_without_islands_all_is_fp16_and_the_outputs_go_back_to_fp32() -> None:
    half = to_fp16(small_simplenet(), ())
    assert casts(half) == [("image", HALF), ("score_fp16", FLOAT), ("map_fp16", FLOAT)]
    left = [t.name for t in graph(half).initializer if t.data_type == FLOAT]
    assert left == [
        n.input[2] for n in graph(half).node if n.op_type == "Resize"
    ]  # ONNX has no FP16 scales


def test_bytes_meet_a_cast_before_anything_else() -> None:
    """TensorRT takes uint8 into a Cast only."""
    model = small_simplenet()
    for each in (model, to_fp16(model, ISLANDS)):
        assert [n.op_type for n in graph(each).node if "image" in n.input] == ["Cast"]


@pytest.mark.parametrize(
    "islands", [(), ISLANDS, ("/heads.0", "/backbone/layer1", "/input", "/Add")]
)
def test_fp16_scores_as_fp32_does_for_any_batch(islands: tuple[str, ...]) -> None:
    model = small_simplenet(72)
    half = to_fp16(model, islands)
    image = picture(72, n=3)
    for n in (1, 3):
        expected, got = onnxruntime(model, image[:n]), onnxruntime(half, image[:n])
        rounded = RoundingEvaluator(half)(image=image[:n].numpy())
        for i, name in enumerate(("score", "map")):
            assert got[i].dtype == rounded[name].dtype == np.float32
            assert got[i].shape == expected[i].shape
            np.testing.assert_allclose(got[i], expected[i], rtol=0.01, atol=0.01)
            np.testing.assert_allclose(rounded[name], expected[i], rtol=0.01, atol=0.01)
            assert np.abs(rounded[name] - expected[i]).max() > 1e-6  # it did round


def test_a_value_is_cast_once_and_never_back_and_forth() -> None:
    """x -> FP16 a -> island i, used by two FP16 nodes, a Squeeze and a second island."""
    nodes = [
        node("Mul", "x w", "a", "/a/Mul"),
        node("Mul", "a w", "i", "/i/Mul"),
        node("Add", "i w", "b", "/b/Add"),
        node("Sub", "i w", "c", "/c/Sub"),
        node("Mul", "b c", "d", "/d/Mul"),
        node("Unsqueeze", "i axes", "u", "/Unsqueeze"),
        node("Squeeze", "u axes", "s", "/Squeeze"),
        node("Concat", "s d", "k", "/Concat", axis=1),
        node("ReduceSum", "k", "y", "/j/ReduceSum", keepdims=0),
    ]
    half = to_fp16(graph_of(nodes, {"w": [2], "axes": np.array([0])}), ["/i", "/j"])
    assert casts(half) == [("x", HALF), ("a", FLOAT), ("i", HALF), ("d", FLOAT)]
    kinds = types(half)
    assert [kinds[name] for name in "aibcdusky"] == [
        HALF,
        FLOAT,
        HALF,
        HALF,
        HALF,
        FLOAT,
        FLOAT,
        FLOAT,
        FLOAT,
    ]
    # The weight that both kinds use is there twice, under two names.
    assert {t.name: t.data_type for t in graph(half).initializer if t.name.startswith("w")} == {
        "w": FLOAT,
        "w_fp16": HALF,
    }
    assert RoundingEvaluator(half)(x=np.ones((1, 4), np.float32))["y"] == 4 * 4 + 4 * (6 * 2)


def test_an_output_that_is_used_again_is_cast_once() -> None:
    nodes = [
        node("Mul", "x w", "y", "/a/Mul"),
        node("Mul", "y w", "z", "/b/Mul"),
        node("Mul", "y w", "v", "/c/Mul"),
    ]
    half = to_fp16(graph_of(nodes, {"w": [2]}, outputs=["y", "z", "v"]), ["/c"])
    assert casts(half) == [("x", HALF), ("y_fp16", FLOAT), ("z_fp16", FLOAT)]
    values = RoundingEvaluator(half)(x=np.ones((1, 4), np.float32))
    assert [values[name].flat[0] for name in "yzv"] == [2, 4, 4]


def test_wider_integers_are_not_counted_in_fp16() -> None:
    """2049, a number of pixels say, is cast to FP32, since FP16 would make 2048 of it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], "/Shape"),
        node("Cast", "n", "f", "/Cast", to=FLOAT),
        node("ReduceMax", "f", "y", "/ReduceMax", keepdims=0),
    ]
    values = RoundingEvaluator(to_fp16(graph_of(nodes, {}), ()))(x=np.zeros((2049, 4), np.float32))
    assert values["y"] == 2049


def test_islands_are_whole_components_of_module_paths() -> None:
    assert in_island("/tail/Conv", ["/tail"])
    assert in_island("/backbone/layer1/layer1.0/Add", ["/smooth", "/backbone/layer1"])
    assert in_island("/Add", ["/Add"])
    assert not in_island("/tailor/Conv", ["/tail"])
    assert not in_island("/Add_1", ["/Add"])
    assert not in_island("/heads.0/Conv", ["/heads"])
    assert not in_island("/tail/Conv", ())


@pytest.mark.parametrize("island", ["/tai", "tail", "/tail/Convolution", "/"])
def test_an_island_that_is_not_there_is_refused(island: str) -> None:
    with pytest.raises(ExportError, match=f"FP32 island '{island}' matches no node"):
        to_fp16(small_simplenet(), ["/tail", island])


def test_a_graph_that_branches_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(1)))],
        "branch",
        [],
        [helper.make_tensor_value_info("c", FLOAT, None)],
    )
    either = helper.make_node(
        "If", ["condition"], ["y"], "/If", then_branch=branch, else_branch=branch
    )
    model = graph_of([either], {"condition": np.array(True)})
    with pytest.raises(ExportError, match="branches or loops"):
        to_fp16(model, ())


# ---------------------------------------------------------------- weights


def scaled(weight: Any, island: Sequence[str] = ()) -> bytes:
    return to_fp16(graph_of([node("Mul", "x w", "y", "/part/scale/Mul")], {"w": weight}), island)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            [1, -7e4, 0, 0],
            r"w holds 7e\+04, FP16 ends at 65504; declare /part/scale in the method's fp32_islands",
        ),
        (1e-12, r"w is too small for FP16 \(largest 1e-12\); declare /part/scale in"),
        ([2e-8, 0, 1e-8, 0], r"w is too small for FP16"),
        ([1e-6, 0, 0, 0], r"w is too small for FP16"),
    ],
)
def test_weights_that_fp16_cannot_hold_are_refused_outside_of_islands(
    weight: Any, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        scaled(weight)
    kept = graph(scaled(weight, ["/part/scale"])).initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), np.float32(weight))


@pytest.mark.parametrize("weight", [65504, [1, 1e-9, 0, 0], 0, [np.inf, 1, -np.inf, 1], 1e-5])
def test_weights_that_fp16_holds_pass(weight: Any) -> None:
    kept = graph(scaled(weight)).initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), np.asarray(weight, np.float16))


def test_constants_are_weights_whatever_node_makes_them() -> None:
    """A bound of 1e6 would be infinite in FP16; an Identity of a weight, as exporters write, hides no rounding."""
    million = helper.make_node("Constant", [], ["c"], "/Constant", value_float=1e6)
    nodes = [
        million,
        node("Identity", "c", "bound", "/Identity"),
        node("Abs", "x", "a", "/Abs"),
        node("Min", "a bound", "y", "/clamp/Min"),
    ]
    with pytest.raises(ExportError, match=r"bound holds 1e\+06.*declare /clamp in"):
        to_fp16(graph_of(nodes, {}), ())
    tied = [node("Identity", "w", "v", "/Identity"), node("Mul", "x v", "y", "/i/Mul")]
    half = to_fp16(graph_of(tied, {"w": [1 + 2**-20]}), ["/i"])
    assert RoundingEvaluator(half)(x=np.ones((1, 4), np.float32))["y"].flat[0] == np.float32(
        1 + 2**-20
    )


# ---------------------------------------------------------------- what islands are for


class Affine(nn.Module):
    """A coupling's scale and shift; the clamp lets each gain a factor of exp(1.9) = 6.7."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        gain: Tensor = torch.exp(1.9 * 0.636 * torch.atan(s))
        return x * gain + t


class NegativeLogLikelihood(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z * z).mean(1, keepdim=True) / 2


class Flow(nn.Module):
    """A normalising flow of four couplings over 8 channels: FP16 subnets, the latent and its likelihood in islands."""

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
        heat = self.likelihood(z)
        return heat.amax((1, 2, 3)), nn.functional.interpolate(
            heat, scale_factor=4.0, mode="bilinear"
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
        heat = nearest.view(-1, 1, 8, 8)
        return heat.amax((1, 2, 3)), nn.functional.interpolate(
            heat, scale_factor=4.0, mode="bilinear"
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
    assert (
        reference[5] > 300**2 / 2 > 20 * reference[:5].max()
    )  # the anomaly is one that FP16 cannot square
    half = to_fp16(model, kind.islands)
    score, heat = onnxruntime(half, parts())
    for values in (RoundingEvaluator(half)(image=parts()), {"score": score, "map": heat}):
        assert np.isfinite(values["map"]).all()
        np.testing.assert_allclose(values["score"], reference, rtol=0.02)
        assert values["score"][5] > values["score"][:5].max()
    control = RoundingEvaluator(to_fp16(model, ()))(image=parts())["score"]
    assert np.isfinite(control[:5]).all()
    assert not np.isfinite(control[5])


def test_the_state_between_couplings_stays_fp32() -> None:
    """Split and Concat lie between the islands and belong to none: z would be rounded, or infinite, there."""
    half = to_fp16(onnx_from_module(Flow().eval(), Geometry("stretch", 32, 32)), Flow.islands)
    kinds = types(half)
    joined = [n for n in graph(half).node if n.op_type == "Concat"]
    assert len(joined) == 4
    assert {kinds[n.output[0]] for n in joined} == {FLOAT}
    subnets = [n for n in graph(half).node if n.name.startswith("/subnets")]
    assert {kinds[n.output[0]] for n in subnets} == {HALF}


def test_simplenets_sum_over_hidden_units_needs_its_island() -> None:
    """Hidden units of one sign, each within FP16, whose sum is not."""
    model: Any = net()
    last = model.discriminator[3].weight
    images = picture(n=4)
    with torch.no_grad():
        last.copy_(-last.abs())
        last.mul_(1e5 / model(images)[0].min())
        reference = model(images)[0].numpy()
    exported = onnx_from_module(model.fused(), model.geometry)
    half = RoundingEvaluator(to_fp16(exported, ISLANDS))(image=images.numpy())
    assert 1e3 < np.abs(half["/LeakyRelu_output_0"]).max() < 65504
    np.testing.assert_allclose(half["score"], reference, rtol=0.01)
    assert (half["score"].argsort() == reference.argsort()).all()
    control = RoundingEvaluator(to_fp16(exported, ()))(image=images.numpy())
    assert np.isinf(control["score"]).all()
    for island in ISLANDS:  # neither alone will do: without /smooth the map overflows
        alone = RoundingEvaluator(to_fp16(exported, [island]))(image=images.numpy())
        assert not (np.isfinite(alone["score"]).all() and np.isfinite(alone["map"]).all())


def test_a_score_only_graph_is_cut_from_the_converted_one() -> None:
    proto = onnx.load_model_from_string(to_fp16(small_simplenet(), ISLANDS))
    cut = onnx.utils.Extractor(proto).extract_model(["image"], ["score"])
    onnx.checker.check_model(cut, full_check=True)
    whole, alone = (onnxruntime(p.SerializeToString(), picture())[0] for p in (proto, cut))
    np.testing.assert_array_equal(whole, alone)


# ---------------------------------------------------------------- real engines, real images


@pytest.mark.alone
@pytest.mark.parametrize("islands", [(), ISLANDS])
def test_tensorrt_rtx_parses_and_builds_it_strongly_typed(
    islands: tuple[str, ...], tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    log = logger(trt)  # the one of the process: TensorRT keeps the first that it meets
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(to_fp16(small_simplenet(), islands)), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    assert len(convolutions) == 20
    for layer in convolutions:
        expected = trt.float32 if in_island(layer.name, islands) else trt.float16
        assert (layer.get_input(0).dtype, layer.get_output(0).dtype) == (expected, expected), (
            layer.name
        )
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", (1, 64, 64, 3), (1, 64, 64, 3), (4, 64, 64, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def test_real_images_are_judged_as_in_fp32() -> None:
    """A short training on bottles: FP16's error stays a small part of the good images' spread, and no verdict flips."""
    weights = shared("weights", "resnet18_imagenet1k_v1_bnfolded_stem_to_layer3.pth")
    data = open_data(shared("data", "mvtec_bottle"))
    model = SimpleNet(replace(SimpleNet.settings_for("resnet18"), vectors=512))
    model.backbone.load(str(weights))
    train, held = hold_out(data.train_good)
    model.fit(Fit(PreparedImages(train[::5], model.geometry, None), 100))
    exported = onnx_from_module(model.eval().fused(), model.geometry)
    good = held[::2]
    paths = good + [sample.path for sample in data.test][::4]
    images = [np.asarray(image)[None] for image in PreparedImages(paths, model.geometry, None)]
    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    reference = np.array([session.run(["score"], {"image": image})[0][0] for image in images])
    half = RoundingEvaluator(to_fp16(exported, ISLANDS))
    scores = np.array([half(image=image)["score"][0] for image in images])
    spread, threshold = float(reference[: len(good)].std()), float(reference[: len(good)].max())
    found = compare(paths, reference, scores, threshold, TOLERANCE * spread, spread)
    assert found.clear_flips == ()
    assert found.worst_over_spread < TOLERANCE
    assert 0 < np.sqrt(np.mean((scores - reference) ** 2)) < 0.02 * spread
