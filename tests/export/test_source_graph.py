"""Graphs that take a camera's frame: equal to prepare() in front of the plain graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the train extra")

from onnx import TensorProto, helper

from flawline.export import ExportError
from flawline.export.graphs.area import area_weights, linear_weights
from flawline.export.graphs.edit import element_types
from flawline.export.graphs.prologue import PROLOGUE
from flawline.export.graphs.source import with_source
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry
from flawline.runtime.source_frame import LAYOUTS, PREPARED, SourceFrame, parse_source

GEOMETRIES = {
    "stretch": Geometry("stretch", 64, 80),
    "crop": Geometry("shorter-crop", 64, 64, 75),
    "letterbox": Geometry("letterbox", 64, 80),
}


def plain_graph(geometry: Geometry, readers: str = "planes") -> bytes:
    """A graph whose outputs are its image as floats, in planes or as it is."""
    size = (geometry.height, geometry.width)
    nodes = [helper.make_node("Cast", ["image"], ["floats"], "/input/Cast", to=TensorProto.FLOAT)]
    output, shape = "pixels", ["N", *size, 3]
    if readers == "planes":
        nodes.append(
            helper.make_node("Transpose", ["floats"], ["planes"], "/input/T", perm=[0, 3, 1, 2])
        )
        output, shape = "planes", ["N", 3, *size]
    nodes.append(
        helper.make_node("Mul", [output if readers == "planes" else "floats", "one"], ["y"])
    )
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *size, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    opset = [helper.make_opsetid("", 17)]
    model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return model


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colour image with edges and noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 7 + 2, width // 7 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return (smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)


def run(model: bytes, frames: Any) -> np.ndarray:
    result: np.ndarray = open_session(model, threads=1).run(None, {"image": frames})[0]
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize(
    "size",
    [
        "320x256",  # halved twice
        "322x258",  # halved once, then averaged over fractions
        "130x600",  # halved more often in one axis
        "160x128",  # an exact half
        "99x97",  # odd, averaged over fractions alone
        "240x192",  # a third
    ],
)
def test_the_graph_prepares_a_frame_as_prepare_does(layout: str, kind: str, size: str) -> None:
    geometry = GEOMETRIES[kind]
    if size == "99x97" and layout.startswith("bayer"):
        size = "98x94"
    source = parse_source(f"{size}:{layout}")
    image = textured(source.height, source.width)
    if layout == "mono":
        image = image[..., 0].copy()
    form = GraphInput(geometry, source)
    frame = form.of_image(image)
    graph = with_source(plain_graph(geometry), source, geometry)
    computed = run(graph.model, np.stack([frame, 255 - frame]))
    expected = form.prepared(image).transpose(2, 0, 1).astype(np.float32)
    differences = np.abs(computed[0] - expected)
    # Exact values half way between two grey levels are rounded to either.
    assert differences.max() <= 1
    assert np.count_nonzero(differences) <= 0.001 * differences.size
    assert graph.nodes <= 24


@pytest.mark.parametrize("size", ["60x40", "40x300", "72x72"])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_an_axis_that_grows_is_interpolated_as_opencv_does(kind: str, size: str) -> None:
    geometry = GEOMETRIES[kind]
    source = parse_source(size)
    form = GraphInput(geometry, source)
    image = textured(source.height, source.width)
    computed = run(
        with_source(plain_graph(geometry), source, geometry).model, form.of_image(image)[None]
    )
    differences = np.abs(computed[0] - form.prepared(image).transpose(2, 0, 1))
    assert differences.max() <= 1
    assert np.count_nonzero(differences) <= 0.01 * differences.size


def test_the_outermost_pixels_of_a_mosaic_are_those_of_opencv() -> None:
    geometry = Geometry("stretch", 32, 32)
    rng = np.random.default_rng(1)
    for layout in LAYOUTS[2:]:
        for size in (32, 64):
            source = SourceFrame(size, size, layout)
            frame = rng.integers(0, 256, source.shape, dtype=np.uint8)
            graph = with_source(plain_graph(geometry), source, geometry)
            expected = GraphInput(geometry).of_frame(source.picture(frame))
            assert (run(graph.model, frame[None])[0] == expected.transpose(2, 0, 1)).all()


def test_readers_of_another_order_than_planes_get_it() -> None:
    geometry = GEOMETRIES["stretch"]
    source = SourceFrame(128, 160)
    image = textured(128, 160)
    graph = with_source(plain_graph(geometry, "pixels"), source, geometry)
    expected = GraphInput(geometry, source).prepared(image)
    assert (run(graph.model, image[None])[0] == expected).all()


def test_a_graph_that_reads_bytes_is_refused() -> None:
    model = onnx.load_model_from_string(plain_graph(GEOMETRIES["stretch"]))
    model.graph.node[0].attribute[0].i = TensorProto.FLOAT16
    with pytest.raises(ExportError, match=r"/input/Cast reads the image .*; build .* without"):
        with_source(model.SerializeToString(), SourceFrame(128, 160), GEOMETRIES["stretch"])


def test_the_batch_of_the_graph_stays_and_the_nodes_are_counted() -> None:
    geometry = Geometry("stretch", 256, 256)
    model = onnx.load_model_from_string(plain_graph(geometry))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = with_source(model.SerializeToString(), SourceFrame(1080, 1920), geometry)
    proto = onnx.load_model_from_string(graph.model)
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in dimensions] == [1, 1080, 1920, 3]
    added = [node for node in proto.graph.node if node.name.startswith(PROLOGUE)]
    assert len(added) == graph.nodes == len(proto.graph.node) - 1
    # A convolution of 36 weights at 960 x 540, a mean of 960 x 540 pixels and two matrices for 480
    # x 270 pixels, in three colours.
    matrices = 256 * 270 * 480 + 256 * 480 * 256
    assert graph.macs == 36 * 960 * 540 + 3 * 960 * 540 + 3 * matrices


def test_frames_are_prepared_in_fp32_in_the_fp16_graph() -> None:
    geometry = GEOMETRIES["stretch"]
    source = SourceFrame(258, 322)
    graph = with_source(plain_graph(geometry), source, geometry)
    half = to_fp16(graph.model, (PROLOGUE,))
    proto = onnx.load_model_from_string(half)
    types = element_types(proto)
    for node in proto.graph.node:
        if node.name.startswith(PROLOGUE):
            assert types[node.output[0]] == TensorProto.FLOAT
    assert types[f"{PREPARED}_fp16"] == TensorProto.FLOAT16
    image = textured(258, 322)[None]
    assert (run(half, image) == run(graph.model, image)).all()


def test_weights_of_resizing_add_up_to_one() -> None:
    for length, target in ((270, 256), (97, 64), (300, 100), (64, 64)):
        assert area_weights(length, target).sum(1) == pytest.approx(1, abs=1e-6)
        before, after = linear_weights(target, length)
        assert ((before + after).sum(1) == 1).all()


@pytest.mark.alone
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("322x258", "stretch"),
        ("320x256:bayer-rggb", "letterbox"),
        ("98x94:bayer-gbrg", "crop"),
        ("60x40:mono", "crop"),
    ],
)
def test_nvidias_builder_takes_the_graphs(text: str, kind: str) -> None:
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (pip install 'flawline[rtx]')"
    )
    from flawline.runtime.engines.tensorrt.build import BuildJob, compile_plan
    from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions

    geometry = GEOMETRIES[kind]
    fp32 = with_source(plain_graph(geometry), parse_source(text), geometry).model
    for precision, model in (("fp32", fp32), ("fp16", to_fp16(fp32, (PROLOGUE,)))):
        bundle = Mock(spec=Bundle)
        bundle.read_model.return_value = model
        bundle.model.return_value = Path(f"{precision}.onnx")
        options = BuildOptions(capabilities=(86,), max_batch=2)
        job = BuildJob(
            engine="tensorrt-rtx",
            bundle=bundle,
            graph=precision,
            strongly_typed=True,
            precision=precision,
            islands=(),
            options=options,
            capabilities=(86,),
            source="",
        )
        assert len(compile_plan(trt, job, None)) > 1000
