"""Writes tiny.onnx: map = mean of the three colours, score = the maximum of the map. Needs onnx.

tiny-score.onnx is the same graph with the score alone, and tiny-source.onnx takes the frames of a
camera, as conftest.SOURCE says.
"""

from pathlib import Path

from onnx import TensorProto, checker, helper

from flawline.export.graphs.source import with_source
from flawline.runtime.image import Geometry
from flawline.runtime.source_frame import SourceFrame

nodes = [
    helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
    helper.make_node("ReduceMean", ["float"], ["map"], axes=[3], keepdims=0),
    helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2], keepdims=0),
]
graph = helper.make_graph(
    nodes,
    "tiny",
    [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 64, 64, 3])],
    [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 64, 64]),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
checker.check_model(model, full_check=True)
Path(__file__).with_name("tiny.onnx").write_bytes(model.SerializeToString())
framed = with_source(
    model.SerializeToString(), SourceFrame(128, 192, "bayer-grbg"), Geometry("stretch", 64, 64)
)
Path(__file__).with_name("tiny-source.onnx").write_bytes(framed.model)
del model.graph.output[1]
checker.check_model(model, full_check=True)
Path(__file__).with_name("tiny-score.onnx").write_bytes(model.SerializeToString())
